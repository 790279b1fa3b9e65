"""The parts of the motion decoder: token layers, position encoding and the coarse-to-fine pixel flow."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mpvss.motion.network.encoder import LEAKY_SLOPE

_TEMPERATURE = 10000
_EPS = 1e-6


def position_encoding(height: int, width: int, like: Float[Tensor, "... D"]) -> Float[Tensor, "hw D"]:
    """Return the sine encoding of every grid position, y before x, in dtype and on the device of ``like``.

    Positions are normalised to 0..2 pi; each axis takes half of the D numbers, sine and cosine alternating.

    Paper: section 3. It is the encoding of DETR and Mask2Former.
    """
    per_axis = like.shape[-1] // 2
    exponent = torch.arange(0, per_axis, 2, dtype=like.dtype, device=like.device) / per_axis
    wavelength = _TEMPERATURE**exponent

    def encode(length: int) -> Tensor:
        position = torch.arange(1, length + 1, dtype=like.dtype, device=like.device)
        angle = (position / (length + _EPS) * (2 * math.pi))[:, None] / wavelength
        return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2)

    rows = encode(height)[:, None].expand(height, width, per_axis)
    columns = encode(width)[None].expand(height, width, per_axis)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)


class Mlp(nn.Module):
    """Linear layers with ReLU between them, over the last dimension."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(inputs, outputs) for inputs, outputs in pairwise(widths))

    def hidden(self, x: Float[Tensor, "... i"]) -> Float[Tensor, "... m"]:
        """Return what goes into the last layer."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return x

    def forward(self, x: Float[Tensor, "... i"]) -> Float[Tensor, "... o"]:
        """Map the last dimension."""
        out: Tensor = self.layers[-1](self.hidden(x))
        return out


class TokenLayer(nn.Module):
    """Self-attention over queries and tokens together, then a feed-forward layer; both post-norm."""

    def __init__(self, width: int, heads: int, ffn_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_in = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width)
        self.ffn = Mlp(width, ffn_width, width)
        self.ffn_norm = nn.LayerNorm(width)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        """Let every row look at every other."""
        q, k, v = self.attention_in(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = self.attention_norm(x + self.attention_out(attended))
        out: Tensor = self.ffn_norm(x + self.ffn(x))
        return out


class PixelFlowDecoder(nn.Module):
    """One flow per pixel, predicted on the coarsest grid and refined on each finer one.

    Paper: section 3, the pixel-wise flow (the decoder of FlowNetS).

    Args:
        channels: Channels of the features of each grid, coarsest first.
        upsampled: Channels that the features are upsampled to on the way to each next grid; one fewer.
    """

    def __init__(self, channels: Sequence[int], upsampled: Sequence[int]) -> None:
        super().__init__()
        inputs = [channels[0]]
        inputs += [own + coming + 2 for own, coming in zip(channels[1:], upsampled, strict=True)]
        self.predict = nn.ModuleList(nn.Conv2d(n, 2, 3, padding=1, bias=False) for n in inputs)
        self.upsample_flow = nn.ModuleList(
            nn.ConvTranspose2d(2, 2, 4, stride=2, padding=1, bias=False) for _ in upsampled
        )
        self.upsample_features = nn.ModuleList(
            nn.ConvTranspose2d(n, out, 4, stride=2, padding=1, bias=False)
            for n, out in zip(inputs[:-1], upsampled, strict=True)
        )

    def forward(self, features: list[Float[Tensor, "B _ _ _"]]) -> Float[Tensor, "B 2 h w"]:
        """Return the flow on the finest grid, in its pixels, order (x, y).

        Args:
            features: One map per grid, coarsest first; each grid is half of the next, rounded up.
        """
        x = features[0]
        flow: Tensor = self.predict[0](x)
        for finer, predict, upsample_flow, upsample_features in zip(
            features[1:], self.predict[1:], self.upsample_flow, self.upsample_features, strict=True
        ):
            height, width = finer.shape[-2:]
            coming = F.leaky_relu(upsample_features(x), LEAKY_SLOPE)[..., :height, :width]
            x = torch.cat([finer, coming, upsample_flow(flow)[..., :height, :width]], dim=1)
            flow = predict(x)
        return flow
