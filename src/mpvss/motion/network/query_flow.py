"""The learned propagators: one flow per segment query, and one flow per pixel.

Paper: section 3 of "Mask Propagation for Efficient Video Semantic Segmentation" (NeurIPS 2023).
"""

from dataclasses import replace
from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from mpvss.motion.network.config import QueryFlowConfig
from mpvss.motion.network.decoder import Mlp, PixelFlowDecoder, TokenLayer, position_encoding
from mpvss.motion.network.encoder import MotionEncoder, prepare_image
from mpvss.motion.network.pretrained import Pretrained


@lru_cache(maxsize=4)
def _random_queries(number: int, width: int, seed: int) -> Float[Tensor, "Q D"]:
    # Made on the CPU from a seed, so that they are part of the configuration and not of the weights.
    return torch.randn(number, width, generator=torch.Generator().manual_seed(seed))


def _prepare_pair(
    current: Float[Tensor, "B 3 H W"], key: Float[Tensor, "Bk 3 Hk Wk"], downscale: int
) -> tuple[Float[Tensor, "B 3 h w"], Float[Tensor, "B 3 h w"]]:
    if current.shape[-2:] != key.shape[-2:]:
        raise ValueError(
            f"the current frame and the key frame must have one size, got {tuple(current.shape[-2:])} and "
            f"{tuple(key.shape[-2:])}; resize one of them"
        )
    if current.numel() == 0 or key.numel() == 0:
        raise ValueError(f"the images are empty: {tuple(current.shape)} and {tuple(key.shape)}")
    batch = current.shape[0]
    if key.shape[0] not in (1, batch):
        raise ValueError(f"expected 1 or {batch} key frames for {batch} current frames, got {key.shape[0]}")
    prepared = prepare_image(key, downscale)
    return prepare_image(current, downscale), prepared.expand(batch, -1, -1, -1)


class _Trunk(Pretrained):
    """What both propagators share: encoder, projections of the coarse stages, pixel flow."""

    def __init__(self, config: QueryFlowConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = MotionEncoder(config.encoder_channels, config.encoder_kernels, config.encoder_depths)
        coarse_first = config.encoder_channels[::-1]
        self.projections = nn.ModuleList(
            nn.Conv2d(channels, config.query_width, 1) for channels in coarse_first[: config.levels]
        )
        fine = coarse_first[config.levels : len(coarse_first) - config.flow_stage + 1]
        self.pixel_flow = PixelFlowDecoder((*[config.query_width] * config.levels, *fine), config.upsampled_channels)

    def _project(
        self, features: list[Float[Tensor, "B _ _ _"]]
    ) -> tuple[list[Float[Tensor, "B D _ _"]], list[Float[Tensor, "B _ _ _"]]]:
        """Split the encoder's output into projected levels and the finer stages, both coarsest first."""
        kept = features[self.config.flow_stage - 1 :][::-1]
        levels = [project(x) for project, x in zip(self.projections, kept[: self.config.levels], strict=True)]
        return levels, kept[self.config.levels :]


class PixelFlow(_Trunk):
    """One flow for all masks: the encoder and the pixel flow of ``QueryFlow`` without queries and token layers.

    Its parameters are a subset of those of a ``QueryFlow`` of the same configuration, with the same names. It starts
    at zero flow.

    Paper: section 4, the optical-flow baseline. Differs from the paper: no initialisation from FlowNet.

    Args:
        config: Widths and strides; the settings of queries and token layers are unused.
    """

    model_type = "pixel_flow"

    def __init__(self, config: QueryFlowConfig | None = None) -> None:
        super().__init__(config or QueryFlowConfig())
        nn.init.zeros_(self.pixel_flow.predict[-1].weight)  # type: ignore[arg-type]

    def forward(
        self, current: Float[Tensor, "B 3 H W"], key: Float[Tensor, "Bk 3 Hk Wk"]
    ) -> Float[Tensor, "B 1 2 h w"]:
        """Estimate the flow from each current frame to the key frame.

        Args:
            current: Current frames, RGB, 0..255.
            key: One key frame for all of them, or one for each; the same size.

        Returns:
            The flow in pixels of its grid, which has a stride of 8 (by default) on the image padded to multiples of 32.

        Raises:
            ValueError: Sizes differ, or an image is empty.
        """
        return self.flow_between(*_prepare_pair(current, key, self.config.downscale))

    def flow_between(
        self, current: Float[Tensor, "B 3 h w"], key: Float[Tensor, "B 3 h w"]
    ) -> Float[Tensor, "B 1 2 hf wf"]:
        """Do the same with images from ``prepare_image``."""
        levels, fine = self._project(self.encoder(current, key))
        flow: Tensor = self.pixel_flow([*levels, *fine])
        return flow[:, None]


class QueryFlow(_Trunk):
    """One flow per segment query.

    Queries of the key frame and motion tokens refine each other in the token layers. Each refined query, as a filter on
    the motion map, gives the flow of its segment; a convolution fuses it with the flow of the pixels.

    Paper: section 3, query-based flow. Differs from the paper: starts at zero flow (the published code at a shift of
    one pixel); no initialisation from FlowNet.

    Args:
        config: Widths, strides and the ablation; the paper's by default.
        num_queries: Replaces the configuration's number of queries.
    """

    model_type = "query_flow"

    def __init__(self, config: QueryFlowConfig | None = None, *, num_queries: int | None = None) -> None:
        config = config or QueryFlowConfig()
        if num_queries is not None:
            config = replace(config, num_queries=num_queries)
        super().__init__(config)
        width = config.query_width
        self.level_embedding = nn.Parameter(torch.randn(config.levels, width))
        self.query_embedding = nn.Parameter(torch.randn(config.num_queries, width))
        self.query_start = (
            nn.Parameter(torch.randn(config.num_queries, width)) if config.query_source == "learned" else None
        )
        self.layers = nn.ModuleList(TokenLayer(width, config.heads, config.ffn_width) for _ in range(config.layers))
        # The last layer of whatever makes the output, and only that one, starts at zero: the flow is zero, and the
        # gradients are not.
        last: nn.Module = self.pixel_flow.predict[-1]
        if config.output != "pixel":
            flow_channels = config.encoder_channels[config.flow_stage - 1]
            self.motion_map = Mlp(flow_channels, config.mlp_width, config.mlp_width, 2 * width)
            self.norm = nn.LayerNorm(width)
            self.query_filter = Mlp(width, config.mlp_width, config.mlp_width, width)
            last = self.query_filter.layers[-1]
        if config.output == "segment":
            del self.pixel_flow
        if config.output == "fused":
            self.fusion = nn.Conv2d(4, 2, 3, padding=1)
            last = self.fusion
        for parameter in last.parameters():
            nn.init.zeros_(parameter)

    def forward(
        self,
        current: Float[Tensor, "B 3 H W"],
        key: Float[Tensor, "Bk 3 Hk Wk"],
        queries: Float[Tensor, "Bq Q D"],
        active: Int64[Tensor, " A"] | None = None,
    ) -> Float[Tensor, "B A 2 h w"]:
        """Estimate the flow of each query from each current frame to the key frame.

        Args:
            current: Current frames, RGB, 0..255.
            key: One key frame for all of them, or one for each; the same size.
            queries: The key frame's query embeddings after the segmentor's last layer norm, one set for all or one for
                each. Only their shape matters where the queries are learned or random.
            active: Indices of the queries whose flow is estimated; all by default. Exact: all queries take part in the
                attention, only the dense work per query is left out.

        Returns:
            The flows in pixels of their grid, which has a stride of 8 (by default) on the image padded to multiples
            of 32; order (x, y).

        Raises:
            ValueError: Sizes differ, an image is empty, or number or width of the queries is not the module's.
        """
        config = self.config
        batch = current.shape[0]
        if queries.shape[1:] != (config.num_queries, config.query_width):
            raise ValueError(
                f"expected {config.num_queries} queries of width {config.query_width}, got {queries.shape[1]} of "
                f"width {queries.shape[2]}; this motion module belongs to another segmentor"
            )
        if queries.shape[0] not in (1, batch):
            raise ValueError(f"expected 1 or {batch} sets of queries, got {queries.shape[0]}")
        return self.flow_between(*_prepare_pair(current, key, config.downscale), queries, active)

    def flow_between(
        self,
        current: Float[Tensor, "B 3 h w"],
        key: Float[Tensor, "B 3 h w"],
        queries: Float[Tensor, "Bq Q D"],
        active: Int64[Tensor, " A"] | None = None,
    ) -> Float[Tensor, "B A 2 hf wf"]:
        """Do the same with images from ``prepare_image``."""
        config = self.config
        features = self.encoder(current, key)
        levels, fine = self._project(features)
        queries, levels = self._refine(self._start(queries).expand(current.shape[0], -1, -1), levels)
        if active is not None:
            queries = queries[:, active]
        pixel: Tensor | None = self.pixel_flow([*levels, *fine]) if config.output != "segment" else None
        if pixel is not None and config.output == "pixel":
            return pixel[:, None].expand(-1, queries.shape[1], -1, -1, -1)
        features_of_flow = features[config.flow_stage - 1]
        segment = self._segment_flow(queries, features_of_flow, folded=active is not None)
        return self._fuse(pixel, segment) if pixel is not None else segment

    def _start(self, queries: Float[Tensor, "Bq Q D"]) -> Float[Tensor, "Bq Q D"]:
        if self.config.query_source == "learned":
            assert self.query_start is not None
            return self.query_start.expand_as(queries)
        if self.config.query_source == "random":
            values = _random_queries(self.config.num_queries, self.config.query_width, self.config.seed)
            return values.to(queries).expand_as(queries)
        return queries

    def _refine(
        self, queries: Float[Tensor, "B Q D"], levels: list[Float[Tensor, "B D _ _"]]
    ) -> tuple[Float[Tensor, "B Q D"], list[Float[Tensor, "B D _ _"]]]:
        """Let queries and the tokens of each level, coarsest first, look at each other in turn."""
        sizes = [(level.shape[-2], level.shape[-1]) for level in levels]
        tokens = [
            level.flatten(2).transpose(1, 2) + embedding
            for level, embedding in zip(levels, self.level_embedding, strict=True)
        ]
        positions = [position_encoding(*size, level_tokens) for size, level_tokens in zip(sizes, tokens, strict=True)]
        number = queries.shape[1]
        for index, layer in enumerate(self.layers):
            level = index % len(tokens)
            x = layer(torch.cat([queries + self.query_embedding, tokens[level] + positions[level]], dim=1))
            queries, tokens[level] = x[:, :number], x[:, number:]
        return queries, [
            x.transpose(1, 2).reshape(*x.shape[:1], -1, *size) for x, size in zip(tokens, sizes, strict=True)
        ]

    def _segment_flow(
        self, queries: Float[Tensor, "B A D"], features: Float[Tensor, "B C h w"], *, folded: bool
    ) -> Float[Tensor, "B A 2 h w"]:
        """Return for each query its filter's response on the two halves of the motion map: y first, then x.

        The map's last layer and the filters are both linear. Folded, they are multiplied with each other first, which
        never makes the map itself: equal to rounding, and much less work for few queries.
        """
        size = features.shape[-2:]
        pixels = features.flatten(2).transpose(1, 2)
        filters = self.query_filter(self.norm(queries))
        if folded:
            last = self.motion_map.layers[-1]
            assert isinstance(last, nn.Linear)
            weight = last.weight.reshape(2, filters.shape[2], -1)
            bias = last.bias.reshape(2, -1)
            hidden_filters = torch.einsum("bad,cdm->bacm", filters, weight)
            offset = torch.einsum("bad,cd->bac", filters, bias)
            y_then_x = (
                torch.einsum("bacm,bpm->bacp", hidden_filters, self.motion_map.hidden(pixels)) + offset[..., None]
            )
        else:
            y_then_x = torch.einsum("bad,bpcd->bacp", filters, self.motion_map(pixels).unflatten(2, (2, -1)))
        return y_then_x.flip(2).reshape(*y_then_x.shape[:3], *size)

    def _fuse(self, pixel: Float[Tensor, "B 2 h w"], segment: Float[Tensor, "B A 2 h w"]) -> Float[Tensor, "B A 2 h w"]:
        """Convolve [pixel flow, segment flow]: by linearity the pixel flow's part is made once for all queries."""
        of_pixel, of_segment = self.fusion.weight[:, :2], self.fusion.weight[:, 2:]
        shared = F.conv2d(pixel, of_pixel, self.fusion.bias, padding=1)
        own = F.conv2d(segment.flatten(0, 1), of_segment, padding=1).view_as(segment)
        return own + shared[:, None]
