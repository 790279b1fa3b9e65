"""The motion encoder: two images in, a pyramid of motion features out."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mpvss.motion.network.config import PAD_MULTIPLE

# The mean of each colour, RGB, that is subtracted from images scaled to 0..1.
IMAGE_MEAN = (0.411, 0.432, 0.450)
LEAKY_SLOPE = 0.1
# Up to so many positions, all images together, a stage is one matrix product with the weights in their stored order.
# torch's convolution would reorder them on each call, which takes longer than the product (docs/LOG.md).
_FEW_POSITIONS = 128


def prepare_image(image: Float[Tensor, "B 3 H W"], downscale: int) -> Float[Tensor, "B 3 h w"]:
    """Prepare an image as the encoder's input: normalised, then zero-padded at right and bottom, then reduced.

    The mean over each square is, for a factor of 2, what bilinear resizing gives.

    Args:
        image: RGB, 0..255.
        downscale: Factor by which height and width shrink.
    """
    mean = image.new_tensor(IMAGE_MEAN)[:, None, None]
    height, width = image.shape[-2:]
    padded = F.pad(image / 255 - mean, (0, -width % PAD_MULTIPLE, 0, -height % PAD_MULTIPLE))
    return shrink(padded, downscale)


def shrink(padded: Float[Tensor, "B 3 H W"], downscale: int) -> Float[Tensor, "B 3 h w"]:
    """Return the mean over each square of ``downscale`` pixels a side."""
    return F.avg_pool2d(padded, downscale) if downscale > 1 else padded


def _convolve_few(convolution: nn.Conv2d, x: Float[Tensor, "B _ _ _"]) -> Float[Tensor, "B _ _ _"]:
    """An odd convolution as one matrix product; equal to rounding."""
    kernel, stride = convolution.kernel_size[0], convolution.stride[0]
    height, width = (-(-length // stride) for length in x.shape[-2:])
    patches = F.unfold(x, kernel, padding=(kernel - 1) // 2, stride=stride).transpose(1, 2)
    rows = F.linear(patches, convolution.weight.flatten(1), convolution.bias)
    return rows.transpose(1, 2).reshape(x.shape[0], -1, height, width)


class MotionEncoder(nn.Module):
    """Convolutions over the concatenated images; each stage halves the grid.

    Paper: section 3, the motion encoder (that of FlowNetS). Differs from the paper: starts from random weights, not
    from a FlowNet trained on synthetic flow.

    Args:
        channels: Output channels of each stage.
        kernels: Size of the first convolution of each stage, odd; the others are 3x3.
        depths: Number of convolutions of each stage.
    """

    def __init__(self, channels: Sequence[int], kernels: Sequence[int], depths: Sequence[int]) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        inputs = 6
        for outputs, kernel, depth in zip(channels, kernels, depths, strict=True):
            layers: list[nn.Module] = []
            for number in range(depth):
                size, stride = (kernel, 2) if number == 0 else (3, 1)
                convolution = nn.Conv2d(inputs, outputs, size, stride, padding=(size - 1) // 2)
                nn.init.kaiming_normal_(convolution.weight, a=LEAKY_SLOPE)
                nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
                layers += [convolution, nn.LeakyReLU(LEAKY_SLOPE)]
                inputs = outputs
            self.stages.append(nn.Sequential(*layers))

    def forward(
        self, current: Float[Tensor, "B 3 h w"], key: Float[Tensor, "B 3 h w"]
    ) -> list[Float[Tensor, "B _ _ _"]]:
        """Return the output of every stage, finest first.

        Args:
            current: The current frame from ``prepare_image``.
            key: The frame that the flow shall point to, likewise.
        """
        x = torch.cat([current, key], dim=1)
        features = []
        for stage in self.stages:
            small = x.device.type == "cpu" and not torch.compiler.is_compiling()  # an export serves every size
            few = small and x.shape[0] * x.shape[2] * x.shape[3] <= _FEW_POSITIONS
            for layer in stage.children():
                x = _convolve_few(layer, x) if few and isinstance(layer, nn.Conv2d) else layer(x)
            features.append(x)
        return features
