"""EfficientNet-Lite as a backbone of the transformers library: no squeeze-excitation, ReLU6, quick on a CPU.

Paper: Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks" (ICML 2019); the Lite
variants keep the first and the last stage and the activation of MobileNetV2. Strides 4, 8, 16 and 32.
"""

from typing import Any, no_type_check

import torch
from huggingface_hub.dataclasses import strict
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from transformers import AutoBackbone, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
from transformers.modeling_outputs import BackboneOutput

# (blocks, kernel, stride, expansion, channels) of each group of blocks in Lite0.
LITE0_GROUPS = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_STEM_CHANNELS = 32
# The groups whose output is a stage: the last ones at strides 4, 8, 16 and 32.
_STAGE_ENDS = (1, 2, 4, 6)
_BATCH_NORM_EPS = 1e-3


# The library checks and extends the arguments itself; a second check around it knows only the fields declared here.
@no_type_check
@strict
class EfficientNetLiteConfig(BackboneConfigMixin, PreTrainedConfig):
    """Configuration of the backbone: which of ``stage1`` to ``stage4`` (strides 4 to 32) it returns."""

    model_type = "efficientnet_lite"

    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.stage_names = [f"stage{number}" for number in range(1, len(_STAGE_ENDS) + 1)]
        self.set_output_features_output_indices(
            out_indices=kwargs.pop("out_indices", None), out_features=kwargs.pop("out_features", None)
        )
        super().__post_init__(**kwargs)


class _SameConv(nn.Conv2d):
    """A convolution that pads as the original weights were trained: at stride 2 one more at right and bottom.

    Exact for even sizes, which a network input padded to a multiple of 32 always has.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        before = (kernel - stride) // 2
        super().__init__(inputs, outputs, kernel, stride, padding=before, groups=groups, bias=False)
        self._extra = (kernel - stride) % 2

    def forward(self, x: Tensor) -> Tensor:
        if self._extra:
            x = nn.functional.pad(x, (0, self._extra, 0, self._extra))
        return super().forward(x)


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    return [
        _SameConv(inputs, outputs, kernel, stride, groups),
        nn.BatchNorm2d(outputs, eps=_BATCH_NORM_EPS, momentum=0.01),
    ]


class _InvertedResidual(nn.Module):
    """Expand, depthwise convolution, project; added to its input where the shapes allow."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        layers: list[nn.Module] = []
        if expansion > 1:
            layers += [*_convolution(inputs, inner, 1), nn.ReLU6(inplace=True)]
        layers += [*_convolution(inner, inner, kernel, stride, groups=inner), nn.ReLU6(inplace=True)]
        layers += _convolution(inner, outputs, 1)
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out + x if self.residual else out


class EfficientNetLiteBackbone(BackboneMixin, PreTrainedModel):
    """EfficientNet-Lite0 without its classification head."""

    config_class = EfficientNetLiteConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config)
        self.stem = nn.Sequential(*_convolution(3, _STEM_CHANNELS, 3, 2), nn.ReLU6(inplace=True))
        channels = _STEM_CHANNELS
        groups = []
        for blocks, kernel, stride, expansion, outputs in LITE0_GROUPS:
            group = []
            for block in range(blocks):
                group.append(_InvertedResidual(channels, outputs, kernel, stride if block == 0 else 1, expansion))
                channels = outputs
            groups.append(nn.Sequential(*group))
        self.groups = nn.ModuleList(groups)
        self.num_features = [LITE0_GROUPS[end][-1] for end in _STAGE_ENDS]
        self.post_init()

    def forward(self, pixel_values: Float[Tensor, "B 3 H W"], **_: Any) -> BackboneOutput:
        """Return the feature maps of the configured stages; H and W are multiples of 32."""
        features = []
        x = self.stem(pixel_values)
        for number, group in enumerate(self.groups):
            x = group(x)
            if number in _STAGE_ENDS:
                features.append(x)
        maps = tuple(features[index] for index in self.out_indices)
        return BackboneOutput(feature_maps=maps)


@torch.no_grad()
def fold_batch_norm(model: nn.Module) -> None:
    """Put each batch norm of the backbone into the convolution before it, in place: the same numbers to rounding.

    For inference alone: what is left no longer has the state that checkpoints hold.
    """
    for part in model.modules():
        if not isinstance(part, nn.Sequential):
            continue
        for index in range(len(part) - 1):
            convolution, norm = part[index], part[index + 1]
            if isinstance(convolution, _SameConv) and isinstance(norm, nn.BatchNorm2d):
                assert norm.running_mean is not None and norm.running_var is not None
                convolution.weight, convolution.bias = fuse_conv_bn_weights(
                    convolution.weight, None, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
                )
                convolution.requires_grad_(False)
                part[index + 1] = nn.Identity()


def register() -> None:
    """Make the backbone known to ``AutoBackbone`` and ``AutoConfig``; calling it again does nothing."""
    AutoConfig.register(EfficientNetLiteConfig.model_type, EfficientNetLiteConfig, exist_ok=True)
    AutoBackbone.register(EfficientNetLiteConfig, EfficientNetLiteBackbone, exist_ok=True)
