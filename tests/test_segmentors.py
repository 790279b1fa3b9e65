"""Laws of the segmentors, on tiny random models: queries that belong to the logits, the input rule, what is refused."""

import importlib
import json
import pickle
import shutil
import socket
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import (
    DetrConfig,
    EomtConfig,
    EomtForUniversalSegmentation,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    MaskFormerConfig,
    MaskFormerForInstanceSegmentation,
    OneFormerConfig,
    OneFormerForUniversalSegmentation,
    SwinConfig,
    ViTConfig,
    ViTForImageClassification,
    image_processing_base,
    image_processing_utils,
)

from family_world import write_tokenizer
from mpvss.engine.decode import class_scores, decode
from mpvss.engine.state import WarpedPrediction
from mpvss.errors import ModelError
from mpvss.segmentors import InputRule, Segmentor, load_segmentor, prepare
from mpvss.segmentors.families import crop_starts
from mpvss.segmentors.huggingface import HuggingFaceSegmentor
from mpvss.segmentors.preprocessing import has_preprocessor, input_rule
from mpvss.segmentors.tensors import normalised
from mpvss.types import Frame, Geometry

FAMILIES = ("mask2former", "maskformer", "oneformer", "eomt")
NAMES = ("road", "sky", "a tree")
QUERIES, WIDTH, SIDE = 7, 32, 64
RULE = {"size": {"shortest_edge": SIDE}, "do_split_image": True}


def _model(family):
    swin = SwinConfig(
        image_size=SIDE,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    names = {"id2label": dict(enumerate(NAMES))}
    decoder = {"num_attention_heads": 4, "dim_feedforward": 32, "decoder_layers": 3, "num_queries": QUERIES}
    pixels = {"backbone_config": swin, "encoder_layers": 1, "encoder_feedforward_dim": 32}
    if family == "mask2former":
        return Mask2FormerForUniversalSegmentation(
            Mask2FormerConfig(hidden_dim=WIDTH, feature_size=32, mask_feature_size=16, **decoder, **pixels, **names)
        )
    if family == "maskformer":
        detr = DetrConfig(
            num_queries=QUERIES,
            d_model=WIDTH,
            encoder_layers=0,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            decoder_ffn_dim=32,
        )
        return MaskFormerForInstanceSegmentation(
            MaskFormerConfig(
                backbone_config=swin, decoder_config=detr, fpn_feature_size=32, mask_feature_size=16, **names
            )
        )
    if family == "oneformer":
        text = {"text_encoder_width": 16, "text_encoder_num_layers": 1, "text_encoder_vocab_size": 64}
        return OneFormerForUniversalSegmentation(
            OneFormerConfig(
                hidden_dim=WIDTH, conv_dim=32, mask_dim=32, query_dec_layers=1, **text, **decoder, **pixels, **names
            )
        )
    return EomtForUniversalSegmentation(
        EomtConfig(
            hidden_size=WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=SIDE,
            patch_size=16,
            num_blocks=1,
            num_queries=QUERIES,
            num_register_tokens=1,
            mlp_ratio=2,
            **names,
        )
    )


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """A directory with one tiny random checkpoint per family."""
    root = tmp_path_factory.mktemp("checkpoints")
    for family in FAMILIES:
        torch.manual_seed(0)
        model = _model(family).eval()
        with torch.no_grad():
            # Far from the initial values, so that a norm more or less is seen.
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        model.save_pretrained(root / family)
        (root / family / "preprocessor_config.json").write_text(json.dumps(RULE))
        if family == "oneformer":
            write_tokenizer(root / family)
    return root


@pytest.fixture(scope="session")
def segmentors(checkpoints):
    return {family: load_segmentor(checkpoints / family) for family in FAMILIES}


@pytest.fixture
def copied(checkpoints, tmp_path):
    """Copy a family's checkpoint to a place of its own, to be damaged."""

    def copy(family="maskformer"):
        return Path(shutil.copytree(checkpoints / family, tmp_path / family))

    return copy


def pictures(*shape, seed=0):
    """Smooth colours, so that two sizes of an image look alike."""
    coarse = torch.rand(shape[0], 3, 6, 7, generator=torch.Generator().manual_seed(seed)) * 255
    return F.interpolate(coarse, size=shape[1:], mode="bilinear").to(torch.uint8)


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _parts(family, model):
    """The module whose output holds the pixel embeddings, how to read it, the class head and the mask embedder."""
    if family == "mask2former":
        embedder = model.model.transformer_module.decoder.mask_predictor.mask_embedder
        return model.model.pixel_level_module, lambda o: o.decoder_last_hidden_state, model.class_predictor, embedder
    if family == "maskformer":
        level = model.model.pixel_level_module
        return level, lambda o: o.decoder_last_hidden_state, model.class_predictor, model.mask_embedder
    if family == "oneformer":
        decoder = model.model.transformer_module.decoder
        return model.model.pixel_level_module, lambda o: o.decoder_last_feature, decoder.class_embed, decoder.mask_embed
    return model.upscale_block, lambda o: o, model.class_predictor, model.mask_head


@pytest.mark.parametrize("family", FAMILIES)
def test_class_and_mask_logits_recomputed_from_the_queries_equal_the_models_own(family, checkpoints):
    segmentor = load_segmentor(checkpoints / family, fast=False)
    module, read, class_head, mask_embedder = _parts(family, segmentor.model)
    seen = []
    hook = module.register_forward_hook(lambda _module, _inputs, output: seen.append(read(output)))
    found = segmentor.predict(pictures(2, SIDE, SIDE))
    hook.remove()
    assert found.queries.shape == (2, QUERIES, WIDTH)
    assert (segmentor.num_queries, segmentor.query_width) == (QUERIES, WIDTH)
    torch.testing.assert_close(class_head(found.queries), found.class_logits, atol=1e-4, rtol=1e-4)
    masks = torch.einsum("bqc,bchw->bqhw", mask_embedder(found.queries), seen[-1])
    torch.testing.assert_close(masks, found.mask_logits, atol=1e-4, rtol=1e-4)
    assert found.mask_logits.std() > 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_a_loaded_segmentor_keeps_the_protocol_and_the_models_names(family, segmentors):
    segmentor = segmentors[family]
    assert isinstance(segmentor, Segmentor)
    assert (segmentor.name, segmentor.class_names) == (family, NAMES)
    assert not segmentor.model.training
    assert not any(parameter.requires_grad for parameter in segmentor.model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_of_two_equals_two_batches_of_one(family, segmentors):
    images = pictures(2, SIDE, 80)
    both = segmentors[family].predict(images)
    for number in range(2):
        one = segmentors[family].predict(images[number : number + 1])
        for name in ("class_logits", "mask_logits", "queries"):
            torch.testing.assert_close(getattr(one, name)[0], getattr(both, name)[number], atol=1e-4, rtol=1e-4)
    assert (both.class_logits[0] - both.class_logits[1]).abs().max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_is_close_to_float32_and_answers_in_float32(family, segmentors, checkpoints):
    images = pictures(1, SIDE, SIDE)
    exact = segmentors[family].predict(images)
    rough = load_segmentor(checkpoints / family, dtype=torch.bfloat16).predict(images)
    for name in ("class_logits", "mask_logits", "queries"):
        a, b = getattr(exact, name), getattr(rough, name)
        assert b.dtype == torch.float32
        assert 0 < (a - b).abs().mean() < 0.1 * a.abs().mean(), name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [(SIDE, SIDE), (SIDE, 93), (97, SIDE)])
def test_masks_cover_the_padded_picture_at_stride_4(family, size, segmentors):
    segmentor = segmentors[family]
    padded = segmentor.rule.fit(size).padded
    found = segmentor.predict(pictures(1, *size))
    assert padded[0] % 32 == padded[1] % 32 == 0
    assert found.mask_logits.shape[2:] == (padded[0] // 4, padded[1] // 4)
    assert found.class_logits.shape[1:] == (found.queries.shape[1], len(NAMES) + 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_arrays_are_answered_with_the_same_numbers_as_tensors(family, segmentors):
    images = pictures(2, SIDE, 93)
    tensors = segmentors[family].predict(images)
    arrays = segmentors[family](images.permute(0, 2, 3, 1).numpy())
    for name in ("class_logits", "mask_logits", "queries"):
        np.testing.assert_array_equal(getattr(arrays, name), getattr(tensors, name).numpy())


@pytest.mark.parametrize(
    "rule", [InputRule(), InputRule(bgr=True, multiple=8, mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0))]
)
def test_images_become_the_same_pixels_as_arrays_and_as_tensors(rule):
    images = pictures(2, 33, 41)
    arrays = rule.normalise(images.permute(0, 2, 3, 1).numpy())
    torch.testing.assert_close(torch.from_numpy(arrays), normalised(rule, images))


# EoMT: one fixed square


def _plain(segmentor, pixels):
    with torch.inference_mode():
        found = segmentor.model(pixel_values=pixels)
    return found.class_queries_logits, found.masks_queries_logits, found.last_hidden_state[:, :QUERIES]


def test_a_square_picture_is_one_plain_pass_of_eomt(segmentors):
    segmentor, images = segmentors["eomt"], pictures(2, SIDE, SIDE)
    found = segmentor.predict(images)
    plain = _plain(segmentor, normalised(segmentor.rule, images))
    for ours, theirs in zip((found.class_logits, found.mask_logits, found.queries), plain, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("longer", "starts"), [(80, [0, 16]), (93, [0, 32]), (128, [0, 64]), (160, [0, 48, 96])])
@pytest.mark.parametrize("tall", [False, True])
def test_each_crop_of_eomt_has_its_own_queries_and_no_opinion_elsewhere(longer, starts, tall, segmentors):
    segmentor = segmentors["eomt"]
    images = pictures(2, *((longer, SIDE) if tall else (SIDE, longer)))
    assert crop_starts(longer, SIDE, 4) == starts
    found = segmentor.predict(images)
    pixels = normalised(segmentor.rule, images)
    assert found.queries.shape == (2, len(starts) * QUERIES, WIDTH)
    grid = torch.arange(pixels.shape[-2 if tall else -1] // 4)
    for number, start in enumerate(starts):
        part = slice(number * QUERIES, (number + 1) * QUERIES)
        cut = pixels[:, :, start : start + SIDE] if tall else pixels[..., start : start + SIDE]
        classes, masks, queries = _plain(segmentor, cut)
        torch.testing.assert_close(found.class_logits[:, part], classes, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found.queries[:, part], queries, atol=1e-4, rtol=1e-4)
        ours = found.mask_logits[:, part].transpose(2, 3) if tall else found.mask_logits[:, part]
        theirs = masks.transpose(2, 3) if tall else masks
        first, last = start // 4, (start + SIDE) // 4
        torch.testing.assert_close(ours[..., first:last], theirs, atol=1e-4, rtol=1e-4)
        # One cell more on either side repeats the edge, for the interpolation between two crops.
        elsewhere = ours[..., (grid < first - 1) | (grid > last)]
        assert elsewhere.numel() == 0 or elsewhere.max() < -1000


@pytest.mark.parametrize("longer", [84, 128, 160])
def test_decoded_crops_of_eomt_equal_the_average_of_the_crops_scores(longer, segmentors):
    """The plain way: every crop is upsampled and scored by itself, scores are averaged where crops overlap."""
    segmentor, images = segmentors["eomt"], pictures(1, SIDE, longer)
    pixels = normalised(segmentor.rule, images)
    total, count = torch.zeros(len(NAMES), SIDE, longer), torch.zeros(longer)
    starts = crop_starts(longer, SIDE, 4)
    for start in starts:
        classes, masks, _ = _plain(segmentor, pixels[..., start : start + SIDE])
        masks = F.interpolate(masks, size=(SIDE, SIDE), mode="bilinear")[0].sigmoid()
        total[..., start : start + SIDE] += torch.einsum("qk,qhw->khw", classes[0].softmax(-1)[:, :-1], masks)
        count[start : start + SIDE] += 1
    found = segmentor.predict(images)
    geometry = Geometry((SIDE, longer), (SIDE, longer), segmentor.rule.fit((SIDE, longer)).padded)
    view = WarpedPrediction(found.class_logits[0].numpy(), found.mask_logits[0].numpy())
    scores = torch.from_numpy(class_scores([view], geometry))
    # The repeated cell reaches two pixels further than a crop, and where it ends nothing is left after two more.
    edges = [edge for start in starts for edge in (start, start + SIDE) if 0 < edge < longer]
    away = torch.tensor([min([abs(x + 0.5 - edge) for edge in edges]) > 6 for x in range(longer)])
    torch.testing.assert_close(scores[..., away], total[..., away], atol=1e-4, rtol=1e-4)
    seam = ~away
    assert (scores[..., seam] > 0.4 * (total / count)[..., seam]).all()  # no hole between two crops
    labels, _ = decode([view], geometry)
    assert (torch.from_numpy(labels) == (total / count).argmax(0)).float().mean() > 0.97


@pytest.mark.parametrize("settings", [{"do_split_image": False}, {}])
def test_an_eomt_that_does_not_split_pads_to_its_square(settings, copied):
    place = copied("eomt")
    (place / "preprocessor_config.json").write_text(json.dumps({"size": {"shortest_edge": SIDE}} | settings))
    segmentor = load_segmentor(place)
    assert segmentor.rule.fit((240, 400)) == Geometry((240, 400), (38, 64), (64, 64))
    images = pictures(1, 38, 64)
    found = segmentor.predict(images)
    classes, masks, queries = _plain(segmentor, normalised(segmentor.rule, images))
    for ours, theirs in ((found.class_logits, classes), (found.mask_logits, masks), (found.queries, queries)):
        torch.testing.assert_close(ours, theirs)


def test_eomt_takes_no_other_size(segmentors):
    rule = segmentors["eomt"].rule
    assert rule.with_short_side(SIDE).short_side == SIDE
    with pytest.raises(ModelError, match=r"takes images of 64 pixels only, got a shorter side of 48"):
        rule.with_short_side(48)


@pytest.mark.parametrize("length", [64, 65, 100, 127, 128, 129, 300, 640])
def test_crops_cover_the_longer_side_from_end_to_end_and_start_on_the_grid(length):
    starts = crop_starts(length, 64, 4)
    assert starts[0] == 0
    assert starts[-1] + 64 - length in range(4)
    assert all(0 < b - a <= 64 for a, b in pairwise(starts))
    assert all(start % 4 == 0 for start in starts)
    plain = [number * (length - 64) / max(1, len(starts) - 1) for number in range(len(starts))]
    assert all(abs(a - b) < 4 for a, b in zip(starts, plain, strict=True))


# The input rule


@pytest.mark.parametrize(
    ("size", "short", "long"),
    [
        ({"size": 80}, 80, None),
        ({"size": 80, "max_size": 200}, 80, 200),
        ({"size": {"shortest_edge": 80}}, 80, None),
        ({"size": {"shortest_edge": 80, "longest_edge": 200}}, 80, 200),
        ({"size": {"height": 96, "width": 160}}, 96, None),
        ({"size": 80, "do_resize": False}, None, None),
        ({}, 800, 1333),
    ],
)
def test_the_size_is_read_in_each_of_its_forms(size, short, long):
    rule = input_rule(size, "maskformer")
    assert (rule.short_side, rule.long_side, rule.multiple) == (short, long, 32)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.3]},
        {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.3], "rescale_factor": 0.01},
        {"image_mean": [90, 80, 70], "image_std": [30, 20, 10], "do_rescale": False},
        {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.3], "do_normalize": False},
    ],
)
def test_numbers_are_scaled_as_the_checkpoint_says(settings):
    images = pictures(1, 32, 32)
    factor = settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 1
    expected = images.double() * factor
    if settings.get("do_normalize", True):
        mean = torch.tensor(settings.get("image_mean", [0.485, 0.456, 0.406])).double()[:, None, None]
        std = torch.tensor(settings.get("image_std", [0.229, 0.224, 0.225])).double()[:, None, None]
        expected = (expected - mean) / std
    found = normalised(input_rule(settings, "maskformer"), images)
    torch.testing.assert_close(found, expected.float(), atol=1e-4, rtol=1e-4)


def test_a_loaded_segmentor_follows_its_own_rule(copied):
    place = copied()
    settings = {"size": {"shortest_edge": 40, "longest_edge": 60}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (place / "preprocessor_config.json").write_text(json.dumps(settings))
    assert load_segmentor(place).rule == InputRule(40, 60, mean=(127.5,) * 3, std=(63.75,) * 3)


@pytest.mark.parametrize("size", [(37, 53), (53, 37), (480, 853), (1, 1), (64, 96), (719, 1279)])
@pytest.mark.parametrize(("short", "long"), [(None, None), (40, None), (40, 50), (40, 100)])
def test_geometry_leads_from_the_frame_to_the_padded_input(size, short, long):
    rule = InputRule(short, long)
    image, geometry = prepare(Frame(0, Fraction(0), np.zeros((*size, 3), np.uint8)), rule)
    assert geometry.source == size
    assert image.shape == (*geometry.resized, 3)
    assert rule.normalise(image[None]).shape[2:] == geometry.padded
    for resized, padded in zip(geometry.resized, geometry.padded, strict=True):
        assert padded % 32 == 0
        assert 0 <= padded - resized < 32
    if short is None:
        assert geometry.resized == size
    else:
        scale = geometry.resized[np.argmax(size)] / max(size)
        assert abs(min(size) * scale - min(geometry.resized)) <= 1
        assert min(geometry.resized) <= short
        assert max(geometry.resized) <= (long or np.inf)
        assert min(geometry.resized) == short or max(geometry.resized) == long


@pytest.mark.parametrize("short", [None, 50, 128])
def test_masks_go_back_to_where_the_picture_had_them(short):
    """An image of two halves: masks made from the padded input decode to the halves at the source's size."""
    size = (75, 101)
    rgb = np.zeros((*size, 3), np.uint8)
    rgb[:, 40:, 0] = 255
    rule = InputRule(short, mean=(127.5,) * 3, std=(12.75,) * 3)
    image, geometry = prepare(Frame(0, Fraction(0), rgb), rule)
    red = F.avg_pool2d(torch.from_numpy(rule.normalise(image[None]))[0, :1], 4)
    masks = torch.cat([-red, red]).numpy()
    labels, _ = decode([WarpedPrediction(np.eye(2, 3, dtype=np.float32) * 20, masks)], geometry)
    assert labels.shape == size
    edge = np.flatnonzero(np.diff(labels[37]))
    assert len(edge) == 1
    assert abs(edge[0] - 39) <= 2
    assert (labels[:, :36] == 0).all()
    assert (labels[:, 44:] == 1).all()


def test_padding_is_zero_after_scaling():
    found = InputRule().normalise(np.full((1, 33, 40, 3), 255, np.uint8))
    assert found.shape == (1, 3, 64, 64)
    assert not found[..., 33:, :].any()
    assert not found[..., 40:].any()
    assert found[..., :33, :40].all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"short_side": 0}, "short_side must be from 1 to 32768 pixels, got 0"),
        ({"long_side": -1}, "long_side must be from 1 to 32768 pixels, got -1"),
        ({"multiple": 0}, "multiple and std must be positive, got 0"),
        ({"std": (1.0, 0.0, 1.0)}, "multiple and std must be positive"),
    ],
)
def test_a_rule_out_of_range_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        InputRule(**values)


# OneFormer's task


def test_oneformer_reads_its_task_with_the_checkpoints_tokenizer(segmentors):
    task = segmentors["oneformer"]._task
    # start; the; t a s k; is; s e m a n t i c; end; then zeros
    letters = {chr(97 + number): number for number in range(26)}
    last = {letter: number + 26 for letter, number in letters.items()}
    words = [55, 53, *(letters[c] for c in "tas"), last["k"], 54, *(letters[c] for c in "semanti"), last["c"], 56]
    assert task.shape == (1, 77)
    assert task[0].tolist() == words + [0] * (77 - len(words))


def test_oneformer_without_its_tokenizer_is_refused(copied):
    place = copied("oneformer")
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (place / name).unlink()
    with pytest.raises(ModelError, match=r"OneFormer needs its tokenizer files \(vocab.json and merges.txt"):
        load_segmentor(place)


@pytest.mark.parametrize("broken", ["vocab.json", "merges.txt", "tokenizer_config.json"])
def test_oneformer_with_a_broken_tokenizer_is_refused(broken, copied):
    place = copied("oneformer")
    (place / broken).write_text("junk")
    with pytest.raises(ModelError, match="OneFormer needs its tokenizer files"):
        load_segmentor(place)


# What is refused


def refused(place, message):
    """One line that names the place and says this."""
    with pytest.raises(ModelError, match=message) as caught:
        load_segmentor(place)
    assert str(place) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_directory_without_a_configuration_is_refused(copied):
    place = copied()
    (place / "config.json").unlink()
    refused(place, r"expected config.json .* got no config.json$")


def test_a_model_saved_without_its_image_processor_takes_a_stated_default(copied, caplog):
    place = copied()
    (place / "preprocessor_config.json").unlink()
    rule = load_segmentor(place).rule
    assert (rule.short_side, rule.long_side, rule.multiple) == (480, None, 32)
    assert rule.mean == pytest.approx((123.675, 116.28, 103.53))
    assert "no preprocessor_config.json; taking a shorter side of 480" in caplog.text


@pytest.mark.parametrize("text", ["this is no JSON", "", "[1, 2]", "{}", '{"model_type": "nonsense"}'])
def test_a_configuration_that_is_none_is_refused(text, copied):
    place = copied()
    (place / "config.json").write_text(text)
    refused(place, "cannot read the model's configuration")


def test_a_configuration_of_wrong_values_is_refused(copied):
    place = copied()
    edit(place / "config.json", fpn_feature_size="many")
    refused(place, "cannot read the model's configuration: .*fpn_feature_size.* expected int")


def test_a_configuration_with_code_of_its_own_runs_none_and_asks_nobody(copied, monkeypatch):
    place = copied()
    ran = place / "ran"
    (place / "own.py").write_text(f"open({str(ran)!r}, 'w')\n")
    edit(place / "config.json", model_type="own", auto_map={"AutoConfig": "own.Config"})
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    refused(place, "custom code")
    assert not ran.exists()


def test_a_model_of_another_family_is_refused(tmp_path):
    config = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=32)
    ViTForImageClassification(config).save_pretrained(tmp_path)
    refused(tmp_path, r"models of type 'vit' cannot segment images here; supported are beit, .*segformer, .*upernet")
    with pytest.raises(ModelError, match="models of type 'vit'"):
        HuggingFaceSegmentor(ViTForImageClassification(config), InputRule())


@pytest.mark.parametrize(
    ("ids", "names"),
    [
        ((0, 1, 255), ("a0", "a1", "LABEL_2")),
        ((1, 2, 3), ("LABEL_0", "a1", "a2")),
        ((0, 2, 5), ("a0", "LABEL_1", "a2")),
        ((2, 0, 1), ("a0", "a1", "a2")),
    ],
)
def test_class_ids_are_places_among_the_logits_as_in_the_library(ids, names, caplog):
    model = tiny_named({id_: f"a{id_}" for id_ in ids})
    segmentor = HuggingFaceSegmentor(model, InputRule())
    assert segmentor.class_names == names
    library = model.config.id2label
    assert all(library.get(place, f"LABEL_{place}") == name for place, name in enumerate(segmentor.class_names))
    assert ("belong to none of them" in caplog.text) == (max(ids) > 2)


def tiny_named(id2label):
    """What the wrapper reads of a model, without its network."""
    config = SimpleNamespace(
        model_type="maskformer", id2label=id2label, decoder_config=SimpleNamespace(d_model=8, num_queries=4)
    )
    model = torch.nn.Linear(1, 1)
    model.config = config
    return model


@pytest.mark.parametrize(
    ("size", "max_size", "expected"),
    [
        (96, None, (96, None)),
        (96, 200, (96, 200)),
        ([96, 128], None, (96, None)),
        ((128, 96), None, (96, None)),
        ({"height": 96, "width": 128}, None, (96, None)),
        ({"shortest_edge": 96, "longest_edge": 200}, None, (96, 200)),
        ({"shortest_edge": 96}, None, (96, None)),
        ({"longest_edge": 128}, None, (None, 128)),
        ({"max_height": 96, "max_width": 128}, None, (None, 96)),
    ],
)
def test_each_form_of_a_size_is_what_the_library_makes_of_it(size, max_size, expected):
    settings = {"size": size} if max_size is None else {"size": size, "max_size": max_size}
    rule = input_rule(settings, "mask2former")
    assert (rule.short_side, rule.long_side) == expected
    if isinstance(size, list | tuple):
        library = image_processing_utils.get_size_dict(tuple(size))
        assert min(library["height"], library["width"]) == rule.short_side


@pytest.mark.parametrize("family", ["MaskFormer", "Mask2Former", "OneFormer"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"image_mean": [0.5, 0.4, 0.3]},
        {"size": {"shortest_edge": 32}},
        {"do_resize": False, "do_rescale": False},
    ],
)
def test_what_is_absent_is_the_default_of_the_librarys_class(family, settings):
    module = importlib.import_module(f"transformers.models.{family.lower()}.image_processing_pil_{family.lower()}")
    processor = getattr(module, f"{family}ImageProcessorPil").from_dict(settings)
    rule = input_rule(settings, family.lower())
    if processor.do_resize:
        assert {"shortest_edge": rule.short_side, "longest_edge": rule.long_side} == {
            key: getattr(processor.size, key) for key in ("shortest_edge", "longest_edge")
        }
    else:
        assert (rule.short_side, rule.long_side) == (None, None)
    images = pictures(1, 32, 32)
    expected = images.double() * (processor.rescale_factor if processor.do_rescale else 1)
    mean, std = (torch.tensor(value).double()[:, None, None] for value in (processor.image_mean, processor.image_std))
    torch.testing.assert_close(normalised(rule, images), ((expected - mean) / std).float(), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("family", ["MaskFormer", "Mask2Former"])
def test_a_bound_alone_is_that_of_the_default_size(family):
    module = importlib.import_module(f"transformers.models.{family.lower()}.image_processing_pil_{family.lower()}")
    size = getattr(module, f"{family}ImageProcessorPil").from_dict({"max_size": 200}).size
    rule = input_rule({"max_size": 200}, family.lower())
    assert (rule.short_side, rule.long_side) == (size.shortest_edge, size.longest_edge) == (800, 200)


def test_one_number_for_mean_and_deviation_stands_for_all_channels():
    one = input_rule({"image_mean": 0.5, "image_std": 0.25}, "mask2former")
    assert one == input_rule({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}, "mask2former")
    with pytest.raises(ValueError, match="must have 3 values"):
        input_rule({"image_mean": [0.5]}, "mask2former")
    with pytest.raises(ValueError, match="one number, or height and width"):
        input_rule({"size": [1, 2, 3]}, "mask2former")


@pytest.mark.parametrize("nested", [True, False])
def test_the_processor_file_of_transformers_5_is_read(nested, tmp_path):
    settings = {"size": {"shortest_edge": 77}}
    whole = {"image_processor": settings} if nested else {"processor_class": "Other"}
    (tmp_path / "processor_config.json").write_text(json.dumps(whole))
    assert has_preprocessor(tmp_path) == nested
    if nested:
        found, _ = image_processing_base.ImageProcessingMixin.get_image_processor_dict(str(tmp_path))
        assert input_rule(found, "mask2former").short_side == 77


def test_missing_weights_are_refused(copied):
    place = copied()
    (place / "model.safetensors").unlink()
    refused(place, "cannot load the weights: .*no file named model.safetensors")


@pytest.mark.parametrize("kept", [0, 5, 1000, -100])
def test_weights_cut_off_are_refused(kept, copied):
    place = copied()
    whole = (place / "model.safetensors").read_bytes()
    (place / "model.safetensors").write_bytes(whole[:kept])
    refused(place, "cannot load the weights")


def test_weights_that_lack_some_tensors_are_refused(copied):
    place = copied()
    weights = load_file(place / "model.safetensors")
    for name in ("class_predictor.bias", "class_predictor.weight"):
        del weights[name]
    save_file(weights, place / "model.safetensors", metadata={"format": "pt"})
    refused(place, "2 weights are missing or of another shape, among them class_predictor.bias")


def test_weights_without_the_constants_of_the_loss_are_enough(copied, segmentors):
    place = copied()
    weights = load_file(place / "model.safetensors")
    del weights["criterion.empty_weight"]
    save_file(weights, place / "model.safetensors", metadata={"format": "pt"})
    images = pictures(1, SIDE, SIDE)
    ours, theirs = load_segmentor(place).predict(images), segmentors["maskformer"].predict(images)
    assert torch.equal(ours.mask_logits, theirs.mask_logits)


def test_weights_of_other_shapes_are_refused(copied):
    place = copied()
    edit(place / "config.json", id2label={"0": "a", "1": "b"}, label2id={"a": 0, "b": 1})
    refused(place, "weights are missing or of another shape, among them class_predictor.bias")


class _Code:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, 2))])
def test_pickled_code_is_not_executed(write, copied):
    place = copied()
    (place / "model.safetensors").unlink()
    write({"weight": _Code(str(place / "ran"))}, place / "pytorch_model.bin")
    refused(place, "cannot load the weights: a pickle that holds more than tensors")
    assert not (place / "ran").exists()


def test_pickled_tensors_load(copied, segmentors):
    place = copied()
    torch.save(load_file(place / "model.safetensors"), place / "pytorch_model.bin")
    (place / "model.safetensors").unlink()
    images = pictures(1, SIDE, SIDE)
    ours, theirs = load_segmentor(place).predict(images), segmentors["maskformer"].predict(images)
    assert torch.equal(ours.mask_logits, theirs.mask_logits)


@pytest.mark.parametrize(
    "text",
    [
        "[1]",
        "no JSON",
        '{"size": "big"}',
        '{"size": -1}',
        '{"size": [64, 64, 64]}',
        '{"image_mean": [0.5]}',
        '{"image_std": [0, 0, 0]}',
        '{"rescale_factor": 0}',
    ],
)
def test_an_input_rule_that_makes_no_sense_is_refused(text, copied):
    place = copied()
    (place / "preprocessor_config.json").write_text(text)
    refused(place, "cannot use preprocessor_config.json: .")


@pytest.mark.parametrize("place", ["/no/such/place", "a/b/c", "compct"])
def test_a_place_that_is_none_is_refused_without_asking_the_network(place, monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("asked the network"))
    refused(place, "expected a model directory or a hub id such as owner/name, there is no such directory")


def test_a_file_is_refused(checkpoints):
    refused(checkpoints / "maskformer" / "config.json", "expected a model directory or a hub id")


def test_a_hub_id_that_is_not_cached_is_refused_offline(tmp_path, monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("asked the network"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    refused("owner/name", "cannot read the model's configuration: .*couldn't find them in the cached files")


def test_the_current_directory_has_a_name(checkpoints, monkeypatch):
    monkeypatch.chdir(checkpoints / "maskformer")
    assert load_segmentor(".").name == "maskformer"


# The embedded model


def test_compact_knows_the_eleven_classes_and_is_small():
    segmentor = load_segmentor("compact")
    assert segmentor.name == "compact"
    assert len(set(segmentor.class_names)) == 11
    assert {"road", "sky", "car", "pedestrian"} < set(segmentor.class_names)
    place = Path(segmentor.model.config._name_or_path)
    assert sum(file.stat().st_size for file in place.iterdir()) < 12e6
    stored = load_file(place / "model.safetensors")
    assert {value.dtype for value in stored.values() if value.is_floating_point()} == {torch.float16}
    assert {value.dtype for value in segmentor.model.parameters()} == {torch.float32}
    name = next(name for name, value in stored.items() if value.is_floating_point())
    assert torch.equal(segmentor.model.state_dict()[name], stored[name].float())


def test_compact_gives_the_same_masks_after_saving_and_loading(tmp_path):
    segmentor = load_segmentor("compact")
    segmentor.model.save_pretrained(tmp_path)
    source = Path(segmentor.model.config._name_or_path)
    shutil.copy(source / "preprocessor_config.json", tmp_path)
    again = load_segmentor(tmp_path)
    assert (again.class_names, again.rule) == (segmentor.class_names, segmentor.rule)
    images = pictures(1, 96, 120)
    ours, theirs = segmentor.predict(images), again.predict(images)
    assert torch.equal(ours.class_logits, theirs.class_logits)
    assert torch.equal(ours.mask_logits, theirs.mask_logits)


@pytest.fixture
def maskformer(tmp_path):
    _model("maskformer").save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(RULE))
    return tmp_path


def _change(path, change):
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values["decoder_config"].update(decoder_layers=10**9), "decoder_layers must be at most 1000"),
        (lambda values: values["backbone_config"].update(depths=[10**9] * 4), "depths must be at most 1000"),
        (
            lambda values: values["decoder_config"].update(num_queries=10**9),
            "a model of .* values, and the weights have",
        ),
        (
            lambda values: values["decoder_config"].update(decoder_ffn_dim=10**7),
            "a model of .* values, and the weights",
        ),
        (lambda values: values["decoder_config"].update(d_model=2**62), "cannot load the weights"),
        (lambda values: values["backbone_config"].update(out_features=["stage9"]), "cannot"),
    ],
)
def test_a_model_that_its_weights_cannot_be_is_refused_before_it_takes_memory(maskformer, change, message):
    _change(maskformer / "config.json", change)
    with pytest.raises(ModelError, match=message):
        load_segmentor(maskformer)


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", "1", "\x00", '{"model_type": {}}', '{"model_type": ["a"]}'])
def test_a_configuration_that_is_none(maskformer, content):
    (maskformer / "config.json").write_text(content)
    with pytest.raises(ModelError, match="cannot read the model's configuration"):
        load_segmentor(maskformer)


@pytest.mark.parametrize(
    "rule",
    [
        {"size": 10**9}, {"size": -1}, {"size": "x"}, {"size": {"shortest_edge": 2**40}}, {"image_std": [0, 0, 0]},
        {"image_std": [float("nan")] * 3}, {"image_mean": [float("inf")] * 3}, {"image_mean": "abc"},
        {"rescale_factor": 0},
    ],
)  # fmt: skip
def test_an_input_rule_out_of_range(maskformer, rule):
    (maskformer / "preprocessor_config.json").write_text(json.dumps(rule))
    with pytest.raises(ModelError, match=r"cannot use preprocessor_config\.json"):
        load_segmentor(maskformer)


def test_a_model_that_does_not_run_is_said(maskformer, monkeypatch):
    segmentor = load_segmentor(maskformer)

    def broken(*_, **__):
        raise RuntimeError("shape '[1, 7]' is invalid for input of size 9")

    monkeypatch.setattr(segmentor.model, "forward", broken)
    with pytest.raises(
        ModelError, match=r"the model fails on an image of 64x64 .width x height. .shape '.1, 7.' is invalid"
    ):
        segmentor(np.zeros((1, SIDE, SIDE, 3), np.uint8))


def test_an_answer_that_is_no_number_is_said(maskformer):
    segmentor = load_segmentor(maskformer)
    with torch.no_grad():
        segmentor.model.class_predictor.weight.fill_(torch.nan)
    with pytest.raises(ModelError, match="the model's answer is not finite; its weights are damaged"):
        segmentor(np.zeros((1, SIDE, SIDE, 3), np.uint8))
