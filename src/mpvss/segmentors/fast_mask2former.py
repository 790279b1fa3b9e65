"""Mask2Former's forward pass for inference, faster than the library's and equal to it to rounding.

It reads the library model's own modules and weights: nothing is copied, nothing is changed, and training goes through
the library. What differs is the order of the work:

- Deformable attention is a weighted sum of table rows. Bilinear corners, points and levels of one query and head
  become one bag of one ``embedding_bag``, which never makes the sampled values.
- Layers run over a thousand rows at a time, so that what is between their matrix products stays in cache.
- Attention masks come from mask features that were reduced to the level's size: both steps are linear.
- Masks at full size, and classes, are made once, after the last layer.
- Swin's padding, shift and partition are one gather, and their way back is another.
- Everything is (row, channel) from the backbone to the masks; nothing is transposed.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

# Rows that a layer works on at a time on a CPU, so that what lies between its products stays in cache (docs/LOG.md).
_ROWS = 1024
_LEVELS = 3
_TEMPERATURE = 10000
_EPS = 1e-6

Size = tuple[int, int]


def supports(model: Any) -> bool:
    """Whether the fast path computes what this model computes: a Mask2Former whose decoder norms after each step."""
    return model.config.model_type == "mask2former" and not model.config.pre_norm


def predict(
    model: Any, pixels: Float[Tensor, "B 3 H W"]
) -> tuple[Float[Tensor, "B Q K1"], Float[Tensor, "B Q h w"], Float[Tensor, "B Q D"]]:
    """Return class logits, mask logits, and queries after the decoder's layer norm.

    Args:
        model: The library's ``Mask2FormerForUniversalSegmentation``, in evaluation mode, that ``supports`` accepts.
        pixels: Normalised images; both sides multiples of 32.
    """
    level_module = model.model.pixel_level_module
    features = _backbone(level_module.encoder, pixels)
    levels, mask_features = _decode_pixels(level_module.decoder, features)
    queries = _decode_queries(model.model.transformer_module, levels, mask_features)
    return *_heads(model, queries, mask_features), queries


def _heads(
    model: Any, queries: Float[Tensor, "B Q D"], mask_features: Float[Tensor, "B M h w"]
) -> tuple[Float[Tensor, "B Q K1"], Float[Tensor, "B Q h w"]]:
    embeddings = model.model.transformer_module.decoder.mask_predictor.mask_embedder(queries)
    masks = embeddings @ _rows(mask_features).transpose(1, 2)
    return model.class_predictor(queries), masks.view(*masks.shape[:2], *mask_features.shape[-2:])


# Maps and rows: (B, C, h, w) in channels-last memory and (B, h * w, C) are two views of the same numbers.


def _rows(image: Float[Tensor, "B C h w"]) -> Float[Tensor, "B hw C"]:
    return image.flatten(2).transpose(1, 2)


def _map(rows: Float[Tensor, "B hw C"], size: Size) -> Float[Tensor, "B C h w"]:
    return rows.transpose(1, 2).view(rows.shape[0], -1, *size)


def _pointwise(convolution: Any, image: Float[Tensor, "B C h w"]) -> Float[Tensor, "B D h w"]:
    """A 1x1 convolution as the matrix product that it is."""
    rows = F.linear(_rows(image), convolution.weight.flatten(1), convolution.bias)
    return _map(rows, (image.shape[-2], image.shape[-1]))


def _blocks(count: int, rows_each: int, device: torch.device) -> list[slice]:
    """Cut items of so many rows into blocks that fit the cache; on a GPU all of them are one block."""
    step = max(1, _ROWS // rows_each) if device.type == "cpu" else max(1, count)
    return [slice(start, start + step) for start in range(0, count, step)]


# Backbone


def _backbone(backbone: Any, pixels: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B _ _ _"]]:
    from transformers import SwinBackbone

    pixels = pixels.contiguous(memory_format=torch.channels_last)
    if type(backbone) is SwinBackbone:
        return _swin(backbone, pixels)
    return list(backbone(pixels).feature_maps)


def _swin(backbone: Any, pixels: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B _ _ _"]]:
    rows, size = backbone.swin.embeddings(pixels)
    outputs = [(rows, size)]
    for stage in backbone.swin.encoder.layers:
        for layer in stage.blocks:
            rows = _swin_layer(layer, rows, size)
        outputs.append((rows, size))
        if stage.downsample is not None:
            rows = stage.downsample(rows, size)
            size = ((size[0] + 1) // 2, (size[1] + 1) // 2)
    norms = backbone.hidden_states_norms
    named = zip(backbone.stage_names, outputs, strict=True)
    return [_map(norms[name](rows), size) for name, (rows, size) in named if name in backbone.out_features]


def _swin_layer(layer: Any, rows: Float[Tensor, "B hw C"], size: Size) -> Float[Tensor, "B hw C"]:
    """Attention within shifted windows, then the MLP, each with its residual."""
    attention = layer.attention
    batch, count, width = rows.shape
    window = int(layer.window_size)
    sources, is_padding, back, apart = _windows(size, window, int(layer.shift_size), rows.device)
    bias = attention.relative_position_bias()

    def heads(projection: Any, windows: Float[Tensor, "Bn n C"]) -> Float[Tensor, "Bn H n d"]:
        projected: Tensor = projection(windows)
        return projected.view(*projected.shape[:2], attention.num_attention_heads, -1).transpose(1, 2)

    outputs = []
    for block in _blocks(len(sources), batch * window**2, rows.device):
        windows = layer.layernorm_before(rows.index_select(1, sources[block].flatten()))
        windows.masked_fill_(is_padding[block].flatten()[:, None], 0)
        windows = windows.view(-1, window**2, width)
        q, k, v = (heads(part, windows) for part in (attention.q_proj, attention.k_proj, attention.v_proj))
        here = bias
        if apart is not None:
            here = (bias - 100 * apart[block, None].to(bias.dtype)).repeat(batch, 1, 1, 1)
        attended = F.scaled_dot_product_attention(q, k, v, here, scale=attention.scaling)
        outputs.append(attention.o_proj(attended.transpose(1, 2).flatten(2)).view(batch, -1, width))
    # A tensor of our own from here on, so that the MLP can be added in place.
    rows = rows + torch.cat(outputs, dim=1).index_select(1, back)
    for block in _blocks(count, batch, rows.device):
        rows[:, block] += layer.mlp(layer.layernorm_after(rows[:, block]))
    return rows


@lru_cache(maxsize=32)
def _windows(
    size: Size, window: int, shift: int, device: torch.device
) -> tuple[Int64[Tensor, "N n"], Bool[Tensor, "N n"], Int64[Tensor, " hw"], Bool[Tensor, "N n n"] | None]:
    """The source row of each cell of each window, and the way back.

    Returns:
        For each cell of each window its row; whether the cell is padding; for each row its cell; and for each window
        which pairs of cells the shift brought together from opposite borders, or ``None`` without a shift.
    """
    height, width = size
    padded = (-(-height // window) * window, -(-width // window) * window)

    def partition(grid: Tensor) -> Tensor:
        cut = grid.roll((-shift, -shift), (0, 1)).view(padded[0] // window, window, padded[1] // window, window)
        return cut.transpose(1, 2).reshape(-1, window**2)

    y, x = torch.meshgrid(torch.arange(padded[0]), torch.arange(padded[1]), indexing="ij")
    inside = (y < height) & (x < width)
    sources, is_padding = partition(torch.where(inside, y * width + x, 0)), partition(~inside)
    back = torch.empty(height * width, dtype=torch.long)
    real = (~is_padding.flatten()).nonzero()[:, 0]
    back[sources.flatten()[real]] = real
    apart = None
    if shift:
        # What the shift brought from the top is not the neighbour of what it met at the bottom; columns likewise.
        region = partition((y < shift) * 2 + (x < shift) * 1)
        apart = (region[:, :, None] != region[:, None, :]).to(device)
    return sources.to(device), is_padding.to(device), back.to(device), apart


# Pixel decoder


def _decode_pixels(
    decoder: Any, features: list[Float[Tensor, "B _ _ _"]]
) -> tuple[list[Float[Tensor, "B D _ _"]], Float[Tensor, "B M h w"]]:
    """Return the three levels, coarsest first, and the mask features."""
    coarse_first = features[::-1][:_LEVELS]
    projected = [
        projection[1](_pointwise(projection[0], feature))
        for projection, feature in zip(decoder.input_projections, coarse_first, strict=True)
    ]
    sizes = tuple((x.shape[-2], x.shape[-1]) for x in projected)
    positions = torch.cat(
        [
            position_rows(*size, x.shape[1], x.device).to(x.dtype) + embedding
            for size, x, embedding in zip(sizes, projected, decoder.level_embed, strict=True)
        ]
    )
    rows = torch.cat([_rows(x) for x in projected], dim=1)
    for layer in decoder.encoder.layers:
        rows = _encoder_layer(layer, rows, positions, sizes)
    parts = torch.split(rows, [height * width for height, width in sizes], dim=1)
    levels = [_map(part, size) for part, size in zip(parts, sizes, strict=True)]
    x = levels[-1]
    fine = features[: decoder.num_fpn_levels][::-1]
    for feature, lateral, output in zip(fine, decoder.lateral_convolutions, decoder.output_convolutions, strict=True):
        own = lateral[1](_pointwise(lateral[0], feature))
        x = output(own + F.interpolate(x, size=own.shape[-2:], mode="bilinear", align_corners=False))
    return levels, _pointwise(decoder.mask_projection, x)


def _encoder_layer(
    layer: Any, rows: Float[Tensor, "B S D"], positions: Float[Tensor, "S D"], sizes: tuple[Size, ...]
) -> Float[Tensor, "B S D"]:
    """Deformable attention over all levels, then the feed-forward layer; both post-norm."""
    attention = layer.self_attn
    batch, count, width = rows.shape
    heads, points = attention.n_heads, attention.n_levels * attention.n_points
    # One product for what one input gives, sorted so that x, y and the weights each lie together.
    offsets = (parameter.view(-1, 2, *parameter.shape[1:]) for parameter in attention.sampling_offsets.parameters())
    weight, bias = (
        torch.cat([offset[:, 0], offset[:, 1], logits])
        for offset, logits in zip(offsets, attention.attention_weights.parameters(), strict=True)
    )
    # One row of the table per image, position and head.
    table = attention.value_proj(rows).float().view(batch * count * heads, width // heads)
    grid = _grid(sizes, heads, attention.n_points, rows.device)
    images = torch.arange(0, table.shape[0], count * heads, dtype=torch.int32, device=rows.device)[:, None, None]
    done = torch.empty_like(rows)
    for block in _blocks(count, batch, rows.device):
        part = rows[:, block]
        x, y, logits = F.linear(part + positions[block], weight, bias).float().chunk(3, dim=2)
        entries, shares = grid.corners(x, y, block)
        logits = logits.view(*logits.shape[:2], heads, points)
        attended = (logits - logits.amax(3, keepdim=True)).exp_()
        bags = torch.cat([(entry + images).view_as(logits) for entry in entries], dim=3)
        weights = torch.cat([share.view_as(logits) * attended for share in shares], dim=3)
        sampled = F.embedding_bag(bags.flatten(0, 2), table, mode="sum", per_sample_weights=weights.flatten(0, 2))
        sampled = sampled.view(*logits.shape[:3], -1) / attended.sum(3, keepdim=True)
        sampled = attention.output_proj(sampled.flatten(2))
        part = layer.self_attn_layer_norm(part + sampled)
        done[:, block] = layer.final_layer_norm(part + layer.fc2(F.relu(layer.fc1(part), inplace=True)))
    return done


@dataclass(frozen=True, eq=False)
class _Grid:
    """Where deformable attention looks: constants of the levels' sizes, per column (head, level, point).

    Attributes:
        centres: x and y, in pixels of each column's level, of each row's own position.
        last: Last column and last row of each level's grid.
        width: Columns of the level's grid.
        start: First entry of the level, for this head, in the table of (row, head).
        heads: Entries from one row to the next.
    """

    centres: Float[Tensor, "2 S c"]
    last: Float[Tensor, "2 c"]
    width: Int[Tensor, " c"]
    start: Int[Tensor, " c"]
    heads: int

    def corners(
        self, x: Float[Tensor, "B n c"], y: Float[Tensor, "B n c"], block: slice
    ) -> tuple[list[Int[Tensor, "B n c"]], list[Float[Tensor, "B n c"]]]:
        """Return table entries and bilinear shares of the four pixels around each point; those outside share nothing.

        Args:
            x: Offset from the centre, in pixels of the level.
            y: Likewise.
            block: Which rows these are.
        """
        across, down = self._axis(x, 0, block), self._axis(y, 1, block)
        entries = [(row * self.width + column) * self.heads + self.start for row, _ in down for column, _ in across]
        return entries, [a * b for _, a in down for _, b in across]

    def _axis(self, offset: Float[Tensor, "B n c"], axis: int, block: slice) -> list[tuple[Tensor, Tensor]]:
        position = offset + self.centres[axis, block]
        before = position.floor()
        corners = []
        for pixel in (before, before + 1):
            inside = pixel.clamp_min(0).minimum(self.last[axis])
            share = (1 - (position - pixel).abs()) * (inside == pixel)
            # NaN has no whole number: some entry, and a share that is NaN, so that NaN goes on as in the library.
            corners.append((inside.int().clamp_min_(0), share))
        return corners


@lru_cache(maxsize=2)
def _grid(sizes: tuple[Size, ...], heads: int, points: int, device: torch.device) -> _Grid:
    per_level = torch.tensor(sizes, dtype=torch.float32)
    height, width = per_level.repeat_interleave(points, 0).repeat(heads, 1).unbind(1)
    own = []
    for rows, columns in sizes:
        y, x = torch.meshgrid((torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns, indexing="ij")
        own.append(torch.stack([x.flatten(), y.flatten()]))
    centres = torch.cat(own, 1)[:, :, None] * torch.stack([width, height])[:, None] - 0.5
    counts = [rows * columns for rows, columns in sizes]
    starts = torch.tensor([0, *counts[:-1]]).cumsum(0).repeat_interleave(points).repeat(heads)
    head = torch.arange(heads).repeat_interleave(points * len(sizes))
    return _Grid(
        centres.to(device),
        torch.stack([width - 1, height - 1]).to(device),
        width.int().to(device),
        (starts * heads + head).int().to(device),
        heads,
    )


@lru_cache(maxsize=16)
def position_rows(height: int, width: int, channels: int, device: torch.device) -> Float[Tensor, "hw D"]:
    """Return the library's sine encoding of every position of a grid, y before x."""
    exponent = torch.arange(0, channels // 2, 2, device=device) / (channels // 2)

    def encode(length: int) -> Tensor:
        position = torch.arange(1, length + 1, device=device) / (length + _EPS) * (2 * math.pi)
        angle = position[:, None] / _TEMPERATURE**exponent
        return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)

    y, x = encode(height)[:, None], encode(width)[None]
    return torch.cat([y.expand(-1, width, -1), x.expand(height, -1, -1)], dim=2).flatten(0, 1)


# Transformer decoder


def _decode_queries(
    module: Any, levels: list[Float[Tensor, "B C _ _"]], mask_features: Float[Tensor, "B M h w"]
) -> Float[Tensor, "B Q D"]:
    """Return the queries after the last layer and the decoder's layer norm."""
    decoder = module.decoder
    batch = mask_features.shape[0]
    values, keys, reduced = [], [], []
    for level, projection, embedding in zip(levels, module.input_projections, module.level_embed.weight, strict=True):
        size = (level.shape[-2], level.shape[-1])
        value = _rows(projection(level)) + embedding
        values.append(value)
        keys.append(value + position_rows(*size, value.shape[2], value.device).to(value.dtype))
        reduced.append(_rows(F.interpolate(mask_features, size=size, mode="bilinear", align_corners=False)))
    queries = module.queries_features.weight.expand(batch, -1, -1)
    positions = module.queries_embedder.weight
    for number, layer in enumerate(decoder.layers):
        index = number % _LEVELS
        embeddings = decoder.mask_predictor.mask_embedder(decoder.layernorm(queries))
        # The library's rule: look only where the mask is, and everywhere where there is none.
        seen = (embeddings @ reduced[index].transpose(1, 2)) >= 0
        seen |= ~seen.any(2, keepdim=True)
        queries = _decoder_layer(layer, queries, positions, keys[index], values[index], seen)
    normed: Tensor = decoder.layernorm(queries)
    return normed


def _decoder_layer(
    layer: Any,
    queries: Float[Tensor, "B Q D"],
    positions: Float[Tensor, "Q D"],
    keys: Float[Tensor, "B hw D"],
    values: Float[Tensor, "B hw D"],
    seen: Bool[Tensor, "B Q hw"],
) -> Float[Tensor, "B Q D"]:
    """Masked attention to the pixels, attention among the queries, feed-forward layer; all post-norm."""
    cross = layer.cross_attn
    weights, biases = cross.in_proj_weight.chunk(3), cross.in_proj_bias.chunk(3)
    q, k, v = (
        F.linear(x, weight, bias)
        for x, weight, bias in zip((queries + positions, keys, values), weights, biases, strict=True)
    )
    attended = cross.out_proj(_attend(q, k, v, cross.num_heads, seen[:, None]))
    queries = layer.cross_attn_layer_norm(queries + attended)
    own, positioned = layer.self_attn, queries + positions
    attended = _attend(own.q_proj(positioned), own.k_proj(positioned), own.v_proj(queries), own.num_heads)
    queries = layer.self_attn_layer_norm(queries + own.out_proj(attended))
    out: Tensor = layer.final_layer_norm(queries + layer.fc2(layer.activation_fn(layer.fc1(queries))))
    return out


def _attend(
    q: Float[Tensor, "B Q D"],
    k: Float[Tensor, "B N D"],
    v: Float[Tensor, "B N D"],
    heads: int,
    seen: Bool[Tensor, "B 1 Q N"] | None = None,
) -> Float[Tensor, "B Q D"]:
    q, k, v = (x.view(*x.shape[:2], heads, -1).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, seen).transpose(1, 2).flatten(2)
