"""The motion module: equal to its specification, exact shortcuts, zero at the start, right gradients."""

import json
import math
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mpvss.convert.checkpoint import convert_motion_state_dict
from mpvss.errors import ConfigError
from mpvss.motion import PixelFlow, QueryFlow, QueryFlowConfig
from mpvss.motion.network import encoder
from mpvss.motion.network.decoder import position_encoding
from mpvss.motion.network.encoder import MotionEncoder, prepare_image

DATA = Path(__file__).parent / "data"
# Small in everything, with an odd number of levels, two stages below the flow's grid, and a narrow query.
TINY = QueryFlowConfig(
    num_queries=3,
    query_width=8,
    encoder_channels=(4, 6, 6, 8, 8),
    encoder_kernels=(3, 3, 3, 3, 3),
    encoder_depths=(1, 1, 2, 1, 1),
    levels=2,
    upsampled_channels=(4, 4, 3),
    layers=3,
    heads=2,
    ffn_width=12,
    mlp_width=10,
)
LIGHT = QueryFlowConfig(
    num_queries=32,
    query_width=96,
    encoder_channels=(16, 32, 64, 96, 128),
    encoder_kernels=(5, 3, 3, 3, 3),
    encoder_depths=(1, 1, 1, 1, 1),
    upsampled_channels=(64, 48, 32),
    layers=3,
    heads=4,
    ffn_width=192,
    mlp_width=96,
)


def published_parameters():
    """The parameters that the expected output was made with, in double precision."""

    def value(name, shape):
        x = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(math.prod(shape)).reshape(shape)
        if name.endswith("norm.weight"):
            return 1 + 0.1 * x
        return x / math.sqrt(math.prod(shape[1:])) if len(shape) >= 2 else 0.05 * x

    shapes = json.loads((DATA / "motion_module_parameters.json").read_text())
    return {name: torch.from_numpy(value(name, shape)) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def published():
    module = QueryFlow(num_queries=100).double().eval()
    module.load_state_dict(convert_motion_state_dict(published_parameters()), strict=True)
    return module


def _images(*shape, seed=0):
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed)).double()


def _inputs(config, size=(40, 70), batch=1):
    generator = torch.Generator().manual_seed(3)
    queries = torch.randn(batch, config.num_queries, config.query_width, dtype=torch.float64, generator=generator)
    return _images(batch, 3, *size), _images(batch, 3, *size, seed=1), queries


def _trained(config, kind=QueryFlow):
    """A module whose zero-initialised layer is no longer zero, as after training."""
    torch.manual_seed(0)
    module = kind(config).double().eval()
    for parameter in module.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)
    return module


def test_reproduces_the_expected_output(published):
    expected = np.load(DATA / "motion_module_96x160.npz")
    height, width, batch, number = (int(expected[name]) for name in ("height", "width", "batch", "queries"))
    random = np.random.RandomState(int(expected["seed"]))
    current = torch.from_numpy(random.randint(0, 256, (batch, 3, height, width))).double()
    key = torch.from_numpy(random.randint(0, 256, (batch, 3, height, width))).double()
    queries = torch.from_numpy(random.standard_normal((number, batch, 256)))
    with torch.inference_mode():
        flow = published(current, key, queries.transpose(0, 1))
    assert flow.shape == (batch, number, 2, height // 8, width // 8)
    assert np.abs(flow.flatten(0, 1).numpy() - expected["flow"]).max() <= 1e-6


def test_padding_is_zero_after_normalisation_and_nothing_is_cropped(published):
    current, key, queries = _inputs(published.config, size=(33, 50))
    mean = torch.tensor([0.411, 0.432, 0.450], dtype=torch.float64)[:, None, None] * 255
    padded = [mean.expand(1, 3, 64, 64).clone() for _ in range(2)]
    padded[0][..., :33, :50], padded[1][..., :33, :50] = current, key
    with torch.inference_mode():
        flow = published(current, key, queries)
        torch.testing.assert_close(flow, published(*padded, queries), rtol=0, atol=1e-10)
    assert flow.shape == (1, 100, 2, 8, 8)


def test_a_batch_equals_its_members_and_one_key_frame_serves_many(published):
    current, key, queries = _inputs(published.config, size=(32, 64), batch=2)
    with torch.inference_mode():
        together = published(current, key, queries)
        for index in range(2):
            one = slice(index, index + 1)
            alone = published(current[one], key[one], queries[one])
            torch.testing.assert_close(together[one], alone, rtol=0, atol=1e-10)
        shared = published(current, key[:1], queries[:1])
        expanded = published(current, key[:1].expand_as(key), queries[:1].expand_as(queries))
    torch.testing.assert_close(shared, expanded, rtol=0, atol=1e-10)
    assert not torch.allclose(shared[1], together[1])


def test_selected_queries_have_the_flow_that_they_have_among_all(published):
    current, key, queries = _inputs(published.config, size=(32, 64))
    active = torch.tensor([97, 0, 5])
    with torch.inference_mode():
        everything = published(current, key, queries)
        torch.testing.assert_close(published(current, key, queries, active), everything[:, active], rtol=0, atol=1e-10)
        assert published(current, key, queries, active[:0]).shape == (1, 0, 2, 4, 8)


def test_reducing_by_two_is_bilinear_resizing():
    image = _images(1, 3, 64, 96)
    expected = F.interpolate(prepare_image(image, 1), scale_factor=0.5, mode="bilinear", align_corners=False)
    torch.testing.assert_close(prepare_image(image, 2), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("size", [(33, 47), (32, 64), (5, 3)])
def test_a_convolution_of_few_places_is_the_same_convolution(size, monkeypatch):
    torch.manual_seed(0)
    module = MotionEncoder((4, 6, 8), (7, 5, 3), (1, 2, 2)).double()
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    pictures = torch.randn(2, 2, 3, *size, dtype=torch.double)
    found = {}
    for places in (0, 10**9):
        monkeypatch.setattr(encoder, "_FEW_POSITIONS", places)
        features = module(*pictures)
        features[-1].square().sum().backward()
        found[places] = [*features, *(parameter.grad.clone() for parameter in module.parameters())]
        module.zero_grad()
    for a, b in zip(*found.values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_position_encoding_is_written_out():
    like = torch.zeros(16, dtype=torch.float64)
    encoding = position_encoding(3, 5, like)
    assert encoding.dtype == torch.float64
    for row in range(3):
        for column in range(5):
            expected = []
            for position, length in ((row, 3), (column, 5)):
                angle = (position + 1) / (length + 1e-6) * 2 * math.pi
                for i in range(8):
                    wave = angle / 10000 ** (2 * (i // 2) / 8)
                    expected.append(math.cos(wave) if i % 2 else math.sin(wave))
            np.testing.assert_allclose(encoding[row * 5 + column].numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("output", ["fused", "pixel", "segment"])
@pytest.mark.parametrize("source", ["segmentor", "learned", "random"])
def test_every_variant_starts_at_zero_flow_and_learns(output, source):
    config = replace(TINY, output=output, query_source=source)
    torch.manual_seed(0)
    module = QueryFlow(config).double()
    flow = module(*_inputs(config))
    assert flow.shape == (1, 3, 2, 8, 12)
    assert not flow.any()
    (flow - 1).square().sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in module.parameters())


@pytest.mark.parametrize("source", ["learned", "random"])
def test_queries_of_the_segmentor_matter_only_where_they_are_the_source(source):
    current, key, queries = _inputs(TINY)
    module = _trained(TINY)
    assert not torch.allclose(module(current, key, queries), module(current, key, queries + 1))
    module = _trained(replace(TINY, query_source=source))
    torch.testing.assert_close(module(current, key, queries), module(current, key, queries + 1))


def test_random_queries_are_fixed_by_their_seed():
    inputs = _inputs(TINY)
    first = _trained(replace(TINY, query_source="random", seed=1))
    second = _trained(replace(TINY, query_source="random", seed=1))
    torch.testing.assert_close(first(*inputs), second(*inputs))
    third = _trained(replace(TINY, query_source="random", seed=2))
    assert not torch.allclose(first(*inputs), third(*inputs))


def test_queries_refine_the_pixel_flow_but_give_no_flow_of_their_own():
    current, key, queries = _inputs(TINY)
    module = _trained(replace(TINY, output="pixel"))
    flow = module(current, key, queries)
    torch.testing.assert_close(flow, flow[:, :1].expand_as(flow))
    assert not torch.allclose(flow, module(current, key, queries + 1))


def test_the_fused_flow_is_a_convolution_of_both_flows():
    inputs = _inputs(TINY)
    module = _trained(TINY)
    flows = {}
    for output in ("pixel", "segment"):
        part = QueryFlow(replace(TINY, output=output)).double()
        wanted = part.state_dict()
        part.load_state_dict({name: value for name, value in module.state_dict().items() if name in wanted})
        flows[output] = part(*inputs)
    both = torch.cat([flows["pixel"], flows["segment"]], dim=2).flatten(0, 1)
    expected = module.fusion(both).unflatten(0, (1, 3))
    torch.testing.assert_close(module(*inputs), expected, rtol=0, atol=1e-12)


def test_pixel_flow_is_one_flow_that_starts_at_zero():
    current, key, _ = _inputs(TINY, batch=2)
    torch.manual_seed(0)
    module = PixelFlow(TINY).double()
    flow = module(current, key)
    assert flow.shape == (2, 1, 2, 8, 12)
    assert not flow.any()
    (flow - 1).square().sum().backward()
    assert module.pixel_flow.predict[-1].weight.grad.any()


def test_pixel_flow_shares_its_parameters_names_with_query_flow():
    query, pixel = QueryFlow(TINY).state_dict(), PixelFlow(TINY).state_dict()
    assert {name: value.shape for name, value in pixel.items()}.items() <= {
        name: value.shape for name, value in query.items()
    }.items()


@pytest.mark.parametrize("output", ["fused", "segment"])
def test_the_gradients_of_a_tiny_module_are_right(output):
    module = _trained(replace(TINY, output=output))
    current, key, queries = _inputs(TINY, size=(32, 32))
    queries.requires_grad_()
    names = ["query_embedding", "level_embedding", "motion_map.layers.2.bias", "layers.0.attention_out.bias"]
    names += ["encoder.stages.0.0.bias"] + (["fusion.weight"] if output == "fused" else [])
    parameters = [module.get_parameter(name) for name in names]

    def run(queries, *values):
        state = dict(zip(names, values, strict=True))
        return torch.func.functional_call(module, state, (current, key, queries))

    assert torch.autograd.gradcheck(run, (queries, *parameters), fast_mode=True, atol=1e-6)


def test_no_buffers_are_saved():
    module = QueryFlow(TINY)
    assert set(module.state_dict()) == {name for name, _ in module.named_parameters()}


def test_the_papers_module_has_the_published_size():
    with torch.device("meta"):
        parameters = sum(p.numel() for p in QueryFlow().parameters())
    assert parameters == 40_085_146


@pytest.mark.parametrize("width", [96, 128])
def test_a_light_variant_is_the_same_code(width):
    config = replace(LIGHT, query_width=width)
    module = QueryFlow(config).eval()
    assert sum(p.numel() for p in module.parameters()) < 1_500_000
    with torch.inference_mode():
        flow = module(torch.zeros(2, 3, 96, 128), torch.zeros(1, 3, 96, 128), torch.zeros(1, 32, width))
    assert flow.shape == (2, 32, 2, 12, 16)


@pytest.mark.parametrize(
    ("current", "key", "queries", "message"),
    [
        ((1, 3, 32, 64), (1, 3, 32, 32), (1, 3, 8), r"must have one size, got \(32, 64\) and \(32, 32\)"),
        ((1, 3, 0, 64), (1, 3, 0, 64), (1, 3, 8), "the images are empty"),
        ((0, 3, 32, 64), (1, 3, 32, 64), (1, 3, 8), "the images are empty"),
        ((1, 3, 32, 64), (1, 3, 32, 64), (1, 3, 12), "expected 3 queries of width 8, got 3 of width 12"),
        ((1, 3, 32, 64), (1, 3, 32, 64), (1, 5, 8), "expected 3 queries of width 8, got 5 of width 8"),
        ((3, 3, 32, 64), (2, 3, 32, 64), (1, 3, 8), "expected 1 or 3 key frames for 3 current frames, got 2"),
        ((3, 3, 32, 64), (3, 3, 32, 64), (2, 3, 8), "expected 1 or 3 sets of queries, got 2"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(current, key, queries, message):
    with pytest.raises(ValueError, match=message):
        QueryFlow(TINY)(torch.zeros(current), torch.zeros(key), torch.zeros(queries))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_queries": 0}, "num_queries must be at least 1, got 0"),
        ({"query_width": 10}, "query_width must be a multiple of 4"),
        ({"heads": 3}, "heads must be a divisor of query_width 8"),
        ({"encoder_kernels": (3, 3, 3, 4, 3)}, "encoder_kernels must be odd numbers"),
        ({"encoder_depths": (1, 1)}, "encoder_depths must be 5 numbers, one per stage"),
        ({"flow_stage": 5}, "flow_stage must be from 1 to 4"),
        ({"levels": 4}, "levels must be at most 3"),
        ({"upsampled_channels": (4, 4)}, "upsampled_channels must be 3 numbers"),
        ({"downscale": 3}, "downscale must be a stride that divides 32, got 12"),
    ],
)
def test_settings_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)
    with pytest.raises(ConfigError, match=message):
        QueryFlowConfig.from_dict({name: getattr(TINY, name) for name in TINY.__dataclass_fields__} | change)


def test_a_configuration_with_unknown_keys_or_wrong_types_is_refused():
    with pytest.raises(ConfigError, match="unknown key widht"):
        QueryFlowConfig.from_dict({"widht": 3})
    for values in (
        {"layers": "9"},
        {"layers": True},
        {"encoder_kernels": [7, 5.0]},
        {"output": "none"},
        {"query_source": 1},
    ):
        with pytest.raises(ConfigError, match=r"configuration: expected (int|str|one of [a-z, ]+), got "):
            QueryFlowConfig.from_dict(values)
    assert QueryFlowConfig.from_dict({"encoder_kernels": [7, 5, 5, 3, 3, 3]}) == QueryFlowConfig()
