"""The shape of a motion module, validated."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from mpvss._validate import convert, shown
from mpvss.errors import ConfigError

# What the sides of both images are padded to, the same as for the segmentor, so that flow and masks fit.
PAD_MULTIPLE = 32

QuerySource = Literal["segmentor", "learned", "random"]
FlowOutput = Literal["fused", "pixel", "segment"]
_CHOICES: dict[str, tuple[str, ...]] = {"query_source": get_args(QuerySource), "output": get_args(FlowOutput)}

_DEEPEST = 1000  # a file must not make the program build layers for ever


@dataclass(frozen=True)
class QueryFlowConfig:
    """The shape of a motion module; the defaults are the paper's.

    The ablations of the paper: ``query_source`` says what the queries start as, ``output`` what the flow is made of.
    Queries that only refine the pixel flow are ``output="pixel"``; the pixel flow without any queries is ``PixelFlow``.

    Attributes:
        num_queries: Queries of the segmentor.
        query_width: Width of a query, of the tokens, and of each axis of the motion map; a multiple of 4 and of heads.
        encoder_channels: Output channels of the encoder's stages, finest first. Each stage halves the grid.
        encoder_kernels: Kernel of the first convolution of each stage, odd.
        encoder_depths: Convolutions of each stage.
        downscale: Factor by which both images shrink before the first stage.
        flow_stage: Stage whose grid the flow lives on, counted from 1.
        levels: How many of the last stages become tokens.
        upsampled_channels: Channels of the upsampled features on each step from the last stage to the flow's.
        layers: Token layers; layer i works on the level i modulo ``levels``, coarsest first.
        heads: Attention heads.
        ffn_width: Inner width of the feed-forward layers.
        mlp_width: Inner width of the MLPs that make the motion map and the queries' filters.
        query_source: ``segmentor``: the key frame's queries (the method). ``learned``: a learned table. ``random``:
            fixed random numbers.
        output: ``fused``: pixel and segment flow through a convolution (the method). ``pixel``, ``segment``: only one.
        seed: Seed of random queries.

    Raises:
        ValueError: A value is out of range or does not fit another.
    """

    num_queries: int = 100
    query_width: int = 256
    encoder_channels: tuple[int, ...] = (64, 128, 256, 512, 512, 1024)
    encoder_kernels: tuple[int, ...] = (7, 5, 5, 3, 3, 3)
    encoder_depths: tuple[int, ...] = (1, 1, 2, 2, 2, 2)
    downscale: int = 2
    flow_stage: int = 2
    levels: int = 3
    upsampled_channels: tuple[int, ...] = (128, 128, 128, 64)
    layers: int = 9
    heads: int = 8
    ffn_width: int = 2048
    mlp_width: int = 512
    query_source: QuerySource = "segmentor"
    output: FlowOutput = "fused"
    seed: int = 0

    def __post_init__(self) -> None:
        stages = len(self.encoder_channels)
        for name in ("num_queries", "query_width", "downscale", "levels", "layers", "heads", "ffn_width", "mlp_width"):
            _check(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        for name in ("encoder_channels", "encoder_kernels", "encoder_depths", "upsampled_channels"):
            values = getattr(self, name)
            _check(len(values) >= 1 and min(values) >= 1, name, "numbers of at least 1", values)
        for name in ("encoder_kernels", "encoder_depths"):
            values = getattr(self, name)
            _check(len(values) == stages, name, f"{stages} numbers, one per stage", values)
        _check(all(k % 2 for k in self.encoder_kernels), "encoder_kernels", "odd numbers", self.encoder_kernels)
        _check(self.query_width % 4 == 0, "query_width", "a multiple of 4", self.query_width)
        _check(self.query_width % self.heads == 0, "heads", f"a divisor of query_width {self.query_width}", self.heads)
        _check(1 <= self.flow_stage < stages, "flow_stage", f"from 1 to {stages - 1}", self.flow_stage)
        _check(self.levels <= stages - self.flow_stage, "levels", f"at most {stages - self.flow_stage}", self.levels)
        _check(
            len(self.upsampled_channels) == stages - self.flow_stage,
            "upsampled_channels",
            f"{stages - self.flow_stage} numbers",
            self.upsampled_channels,
        )
        _check(PAD_MULTIPLE % self.stride == 0, "downscale", f"a stride that divides {PAD_MULTIPLE}", self.stride)
        depth = sum(self.encoder_depths) + self.layers
        _check(depth <= _DEEPEST, "layers and encoder_depths", f"at most {_DEEPEST} in all", depth)
        _check(0 <= self.seed < 2**63, "seed", "from 0 to 2^63 - 1", self.seed)
        for name, choices in _CHOICES.items():
            _check(getattr(self, name) in choices, name, f"one of {', '.join(choices)}", getattr(self, name))

    @property
    def stride(self) -> int:
        """Pixels of the padded image per pixel of the flow."""
        return self.downscale * int(2**self.flow_stage)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "QueryFlowConfig":
        """Make a configuration from a mapping such as a parsed JSON file.

        Raises:
            ConfigError: A key is unknown, or a value has the wrong type or is out of range.
        """
        return convert(values, cls, what="a motion module's configuration", error=ConfigError)


def _check(good: bool, name: str, expected: object, value: object) -> None:
    if not good:
        raise ValueError(f"{name} must be {expected}, got {shown(value)}")
