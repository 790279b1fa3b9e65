"""The fast forward pass of Mask2Former computes what the library computes."""

import copy

import pytest
import torch
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, ResNetConfig, SwinConfig

from mpvss.convert.cost import count_gmac
from mpvss.segmentors import HuggingFaceSegmentor, InputRule, fast_mask2former
from mpvss.segmentors.tensors import normalised

STAGES = ["stage1", "stage2", "stage3", "stage4"]
QUERIES = 7


def _backbone(name):
    if name == "resnet":
        return ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1] * 4, out_features=STAGES)
    window, positions = (7, False) if name == "swin" else (4, True)
    return SwinConfig(
        image_size=64,
        embed_dim=8,
        depths=[2, 2, 2, 1],
        num_heads=[1, 2, 2, 4],
        window_size=window,
        use_absolute_embeddings=positions,
        out_features=STAGES,
    )


def _model(backbone="swin", **settings):
    """Small, and far from its initial values: offsets of some pixels, masks of both signs."""
    torch.manual_seed(0)
    widths = {"hidden_dim": 32, "feature_size": 32, "mask_feature_size": 16, "encoder_layers": 2, "decoder_layers": 5}
    inner = {"encoder_feedforward_dim": 48, "dim_feedforward": 40, "num_attention_heads": 4, "num_queries": QUERIES}
    config = Mask2FormerConfig(backbone_config=_backbone(backbone), num_labels=5, **(widths | inner | settings))
    model = Mask2FormerForUniversalSegmentation(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    for layer in model.model.pixel_level_module.decoder.encoder.layers:
        layer.self_attn.sampling_offsets.weight.mul_(5)
    return model


def _pixels(batch, height, width):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def _library(model, pixels):
    outputs = model(pixel_values=pixels)
    norm = model.model.transformer_module.decoder.layernorm
    queries = norm(outputs.transformer_decoder_last_hidden_state)
    return outputs.class_queries_logits, outputs.masks_queries_logits, queries


def _assert_equal(model, pixels):
    found, expected = fast_mask2former.predict(model, pixels), _library(model, pixels)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0)
    return found


@pytest.mark.parametrize(
    ("backbone", "settings"),
    [
        ("swin", {}),
        ("swin with positions", {}),
        ("resnet", {}),
        ("swin", {"hidden_dim": 24, "activation_function": "gelu"}),
        ("resnet", {"common_stride": 2, "enforce_input_projection": True}),
    ],
)
@pytest.mark.parametrize(("batch", "height", "width"), [(1, 64, 64), (2, 96, 160), (3, 32, 224)])
def test_classes_masks_and_queries_equal_the_librarys(backbone, settings, batch, height, width):
    if backbone == "swin with positions" and (height, width) != (64, 64):
        pytest.skip("the library adds absolute positions to images of one size only")
    _, masks, queries = _assert_equal(_model(backbone, **settings), _pixels(batch, height, width))
    assert 0.02 < (masks > 0).float().mean() < 0.98
    assert masks.std() > 0.1
    assert queries.std(1).min() > 0.01


def test_blocks_of_any_length_give_the_same(monkeypatch):
    model, pixels = _model(), _pixels(2, 96, 160)
    whole = fast_mask2former.predict(model, pixels)
    for rows in (1, 37):
        monkeypatch.setattr(fast_mask2former, "_ROWS", rows)
        for a, b in zip(fast_mask2former.predict(model, pixels), whole, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


@pytest.mark.parametrize("reach", [40.0, 1e12])
def test_points_far_outside_the_picture_count_as_zero(reach):
    model = _model()
    for layer in model.model.pixel_level_module.decoder.encoder.layers:
        layer.self_attn.sampling_offsets.bias.mul_(reach)
    _assert_equal(model, _pixels(1, 64, 96))


def test_a_query_without_any_mask_looks_everywhere():
    model = _model()
    head = model.model.transformer_module.decoder.mask_predictor.mask_embedder.layers[-1].layers[0]
    head.weight.zero_()
    head.bias.fill_(1)
    projection = model.model.pixel_level_module.decoder.mask_projection
    projection.weight.zero_()
    projection.bias.fill_(-1)
    _, masks, _ = _assert_equal(model, _pixels(1, 64, 96))
    assert masks.max() < 0


def test_the_model_is_left_as_it_was_and_followed_when_it_changes():
    model, pixels = _model(), _pixels(1, 64, 96)
    before = copy.deepcopy(model.state_dict())
    places = [parameter.data_ptr() for parameter in model.parameters()]
    first = fast_mask2former.predict(model, pixels)
    after = model.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert places == [parameter.data_ptr() for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.mul_(1.1)
    changed = _assert_equal(model, pixels)
    assert (changed[1] - first[1]).abs().max() > 0.1


def test_nan_goes_through_as_in_the_library():
    # One head and odd widths: what NaN becomes as a whole number must not wrap around to a valid entry by accident.
    model = _model(num_attention_heads=1)
    model.model.pixel_level_module.decoder.level_embed.fill_(torch.nan)
    assert all(x.isnan().any() for x in _library(model, _pixels(1, 96, 96)))
    assert all(x.isnan().any() for x in fast_mask2former.predict(model, _pixels(1, 96, 96)))


def _segmentors(model):
    return [HuggingFaceSegmentor(model, InputRule(), fast=fast) for fast in (True, False)]


def test_the_switch_chooses_between_the_two(monkeypatch):
    used = []
    real = fast_mask2former.predict
    monkeypatch.setattr(fast_mask2former, "predict", lambda *given: (used.append(1), real(*given))[1])
    fast, plain = _segmentors(_model())
    images = torch.randint(0, 256, (2, 3, 61, 90), dtype=torch.uint8)
    a = fast.predict(images)
    assert used == [1]
    b = plain.predict(images)
    assert used == [1]
    for name in ("class_logits", "mask_logits", "queries"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), atol=1e-4, rtol=0)
    pixels = normalised(plain.rule, images)
    torch.testing.assert_close(b.mask_logits, _library(plain.model, pixels)[1], atol=1e-5, rtol=0)


def test_a_decoder_that_norms_first_goes_through_the_library():
    fast, plain = _segmentors(_model(pre_norm=True))
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    a, b = fast.predict(images), plain.predict(images)
    assert torch.equal(a.mask_logits, b.mask_logits)
    assert not fast_mask2former.supports(fast.model)


def test_multiply_adds_are_those_of_the_library_less_the_masks_that_are_not_made():
    model, pixels = _model(), _pixels(1, 64, 96)
    # Per decoder layer: masks at stride 4 and their resizing, against masks of three levels in turn (32, 16, 8, 32).
    layers, width = 4, 16
    full, levels = 16 * 24, [2 * 3, 4 * 6, 8 * 12, 2 * 3]
    product = QUERIES * width * (layers * full - sum(levels))
    resized = 4 * (QUERIES * (sum(levels) + levels[1]) - width * sum(levels[:3]))
    classes = layers * QUERIES * 32 * 6
    saved = count_gmac(lambda: _library(model, pixels)) - count_gmac(lambda: fast_mask2former.predict(model, pixels))
    assert saved == pytest.approx((product + resized + classes) / 1e9, rel=1e-6)
