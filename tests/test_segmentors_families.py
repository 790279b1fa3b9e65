"""Laws of the families that answer with classes of pixels: their labels are the library's own."""

import json
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForSemanticSegmentation,
    Sam3Config,
    Sam3VideoConfig,
    SegformerConfig,
    SegformerForSemanticSegmentation,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING
from transformers.models.videomt.video_processing_videomt import VideomtVideoProcessor

from family_world import KINDS, NAMES, PIXEL, processor_class, size_of, write_model
from mpvss.errors import ModelError, OptionError
from mpvss.motion.propagators import make_propagator
from mpvss.options import ModelOptions
from mpvss.segmenter import VideoSegmenter
from mpvss.segmentors import load_segmentor, resize_frame
from mpvss.segmentors.huggingface import library_prediction
from mpvss.segmentors.preprocessing import input_rule
from mpvss.segmentors.protocol import PixelPrediction
from mpvss.training.tasks import predict_layers
from mpvss.types import Frame

PROMPTS = ("the road", "a car")
QUERIES_OUT = ("eomt_dinov3",)


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory):
    """The directory of a tiny model, made when first asked for."""
    root = tmp_path_factory.mktemp("families")

    def folder(kind):
        if not (root / kind).exists():
            write_model(kind, root / kind)
        return root / kind

    return folder


@pytest.fixture(scope="session")
def segmentor_of(folder_of):
    loaded = {}

    def segmentor(kind, **options):
        key = (kind, *options.items())
        if key not in loaded:
            prompts = PROMPTS if kind == "sam3" else ()
            loaded[key] = load_segmentor(folder_of(kind), prompts=prompts, **options)
        return loaded[key]

    return segmentor


def frame_of(size, seed=0):
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (-(-size[0] // 8), -(-size[1] // 8), 3))
    rgb = np.kron(coarse, np.ones((8, 8, 1)))[: size[0], : size[1]].astype(np.uint8)
    return Frame(seed, Fraction(seed), rgb)


def batch_of(segmentor, frames):
    """Images as the segmentor is called with them."""
    return np.stack([resize_frame(frame, segmentor.rule.fit(frame.size).resized) for frame in frames])


def pixels_of(segmentor, frames):
    """What its network is called with."""
    return torch.from_numpy(segmentor.rule.normalise(batch_of(segmentor, frames)))


def scores_at(prediction, size, classes=len(NAMES)):
    """The scores of all classes at a frame's size, resized as the library does; no class is worse than any."""
    scores = torch.as_tensor(prediction.scores)
    every = scores.new_full((len(scores), classes + 1, *scores.shape[2:]), -1e30)
    every[:, torch.arange(classes) if prediction.ids is None else torch.as_tensor(prediction.ids)] = scores
    return F.interpolate(every, size=size, mode="bilinear", align_corners=False)


def assert_same_labels(scores, labels):
    """The label maps are the winners of the scores, but where the two best are a tie."""
    best = scores.topk(2, 1)
    differs = best.indices[:, 0] != labels
    tie = best.values[:, 0] - best.values[:, 1] < 1e-5 * best.values[:, 0].abs().clamp(min=1)
    assert not (differs & ~tie).any()


def library_outputs(segmentor, pixels):
    """The library's own forward pass."""
    name = "pixel_values_videos" if segmentor.model.config.model_type == "videomt" else "pixel_values"
    with torch.inference_mode():
        return segmentor.model(**{name: pixels[:, None] if "videos" in name else pixels})


def library_labels(kind, segmentor, pixels, size):
    """What the library's own semantic post-processing makes of its own forward pass, at a frame's size."""
    # That of Sapiens2 and TIPSv2 needs torchvision; it is the same few lines as SegFormer's.
    processor = VideomtVideoProcessor if kind == "videomt" else processor_class(kind) or processor_class("segformer")
    processor = processor()
    outputs = library_outputs(segmentor, pixels)
    return torch.stack(processor.post_process_semantic_segmentation(outputs, target_sizes=[size] * len(pixels)))


@pytest.mark.parametrize("kind", [*PIXEL, "detr", "videomt"])
def test_labels_are_those_of_the_librarys_semantic_post_processing(kind, segmentor_of):
    segmentor, classes = segmentor_of(kind), set()
    for size in ((64, 96), (75, 61), (200, 130)):
        frames = [frame_of(size, seed) for seed in range(2)]
        prediction = segmentor(batch_of(segmentor, frames))
        expected = library_labels(kind, segmentor, pixels_of(segmentor, frames), size)
        assert isinstance(prediction, PixelPrediction)
        assert prediction.kind == ("logits" if kind in PIXEL else "scores")
        assert_same_labels(scores_at(prediction, size), expected)
        classes |= set(expected.unique().tolist())
    assert len(classes) > 1, "a map of one class proves nothing"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if processor_class(kind) is not None])
def test_the_network_sees_what_the_librarys_image_processor_makes(kind, folder_of, segmentor_of):
    segmentor, own = segmentor_of(kind), size_of(kind)
    processor = processor_class(kind).from_pretrained(folder_of(kind))
    for size in (own, (45, 83), (120, 70)):
        frame = frame_of(size)
        expected = processor(frame.rgb, return_tensors="pt").pixel_values
        pixels = pixels_of(segmentor, [frame])
        # The library cuts off where we round; the ratio is kept there.
        assert pixels.shape == expected.shape or (kind == "detr" and pixels.shape[2] - expected.shape[2] == 1)
        if size == own:  # nothing is resized: images of other sizes are resized by averages over areas
            torch.testing.assert_close(pixels, expected.float(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", [*PIXEL, "detr", "videomt"])
def test_key_frames_of_a_video_have_the_librarys_labels(kind, segmentor_of):
    segmentor, size = segmentor_of(kind), (75, 61)
    frames = [frame_of(size, seed) for seed in range(3)]
    pixels = pixels_of(segmentor, frames)
    if kind == "videomt":
        with torch.inference_mode():
            clip = segmentor.model(pixel_values_videos=pixels[None])
        expected = torch.stack(VideomtVideoProcessor().post_process_semantic_segmentation(clip, [size] * 3))
    else:
        expected = library_labels(kind, segmentor, pixels, size)
    results = list(VideoSegmenter(segmentor, None).stream(frames))
    labels = np.stack([result.labels for result in results])
    # But for ties, of which random networks at a stride of 16 have hardly any.
    assert (labels == expected.numpy()).mean() > 0.999
    assert all(result.is_key for result in results)


def test_nothing_found_is_no_class(segmentor_of):
    segmentor, size = segmentor_of("rf_detr"), (64, 80)
    frames = [frame_of(size)]
    expected = scores_at(segmentor(batch_of(segmentor, frames)), size).argmax(1)[0].numpy()
    (result,) = VideoSegmenter(segmentor, None).stream(frames)
    assert (result.labels == np.where(expected == len(NAMES), 255, expected)).mean() > 0.999
    assert (result.labels == 255).any()


@pytest.mark.parametrize("kind", KINDS)
def test_frames_between_key_frames_are_propagated(kind, segmentor_of):
    segmenter = VideoSegmenter(segmentor_of(kind), make_propagator("dis"), interval=2, cuts=False)
    still = frame_of((64, 96))
    frames = [Frame(number, Fraction(number), still.rgb) for number in range(4)]
    results = list(segmenter.stream(frames))
    assert [result.is_key for result in results] == [True, False, True, False]
    if kind not in ("videomt", "mobilevit"):  # whose key frames differ; whose classes are nearly equal
        assert np.mean(results[1].labels == results[0].labels) > 0.97


def test_instances_are_the_largest_product_of_score_and_mask(segmentor_of):
    segmentor, size = segmentor_of("rf_detr"), (64, 80)
    frames = [frame_of(size)]
    outputs = library_outputs(segmentor, pixels_of(segmentor, frames))
    probability, masks = outputs.logits[0].sigmoid(), outputs.pred_masks[0].sigmoid()
    queries, classes = probability.shape
    # As the library's post_process_instance_segmentation: as many pairs as queries, the best ones.
    expected = torch.zeros(classes, *masks.shape[1:])
    for pair in probability.flatten().argsort(descending=True)[:queries].tolist():
        query, class_ = divmod(pair, classes)
        expected[class_] = torch.maximum(expected[class_], probability[query, class_] * masks[query])
    expected = F.interpolate(expected[None], size=size, mode="bilinear", align_corners=False)
    prediction = segmentor(batch_of(segmentor, frames))
    # Where no product is larger than .25 there is no class.
    expected = torch.cat([expected, torch.full_like(expected[:, :1], 0.25)], 1)
    assert_same_labels(scores_at(prediction, size), expected.argmax(1))
    best = scores_at(prediction, size).amax(1)
    torch.testing.assert_close(best, expected.amax(1), atol=1e-5, rtol=1e-4)
    assert len(expected.argmax(1).unique()) > 1 and len(NAMES) in expected.argmax(1)


def test_each_prompt_is_a_class_and_the_image_is_encoded_once(segmentor_of, folder_of, monkeypatch):
    from transformers import AutoTokenizer

    segmentor, size = segmentor_of("sam3"), (56, 70)
    assert segmentor.class_names == PROMPTS
    frames = [frame_of(size, seed) for seed in range(2)]
    pixels = pixels_of(segmentor, frames)
    tokenizer = AutoTokenizer.from_pretrained(folder_of("sam3"))
    expected = []
    for prompt in PROMPTS:
        # As the library's Sam3Processor writes the text.
        text = tokenizer([prompt] * 2, padding="max_length", max_length=32, return_tensors="pt")
        with torch.inference_mode():
            outputs = segmentor.model(pixels, input_ids=text.input_ids, attention_mask=text.attention_mask)
        score = outputs.pred_logits.sigmoid() * outputs.presence_logits.sigmoid()
        expected.append((score[..., None, None] * outputs.pred_masks.sigmoid()).amax(1))
    seen = []
    encoder = segmentor.model.vision_encoder
    monkeypatch.setattr(encoder, "forward", lambda *a, _run=encoder.forward, **k: seen.append(1) or _run(*a, **k))
    prediction = segmentor(batch_of(segmentor, frames))
    assert len(seen) == 1
    expected = torch.cat([torch.stack(expected, 1), torch.full_like(expected[0][:, None], 0.15)], 1)
    every = scores_at(prediction, prediction.scores.shape[2:], len(PROMPTS))
    present = torch.as_tensor(prediction.ids)
    torch.testing.assert_close(every[:, present], expected[:, present], atol=1e-5, rtol=1e-4)
    assert_same_labels(every, expected.argmax(1))


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_key_frames_equals_one_by_one(kind, segmentor_of):
    segmentor = segmentor_of(kind)
    images = batch_of(segmentor, [frame_of(size_of(kind), seed) for seed in range(3)])
    together, alone = segmentor(images), [segmentor(image[None]) for image in images]
    if kind in QUERIES_OUT:
        torch.testing.assert_close(
            torch.as_tensor(together.mask_logits),
            torch.cat([torch.as_tensor(each.mask_logits) for each in alone]),
            atol=1e-3,
            rtol=1e-3,
        )
        return
    classes = len(segmentor.class_names)
    labels = torch.cat([scores_at(each, (64, 64), classes).argmax(1) for each in alone])
    assert_same_labels(scores_at(together, (64, 64), classes), labels)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_answers_in_single_and_is_close(kind, dtype, segmentor_of):
    whole, half = segmentor_of(kind), segmentor_of(kind, dtype=dtype)
    images = batch_of(whole, [frame_of(size_of(kind))])
    one, two = whole(images), half(images)
    if kind in QUERIES_OUT:
        one, two = one.mask_logits, two.mask_logits
    else:
        one, two = (scores_at(each, (64, 64), len(whole.class_names)).clamp(min=-1e6).numpy() for each in (one, two))
    assert two.dtype == np.float32
    assert np.abs(one - two).mean() < 0.1 * np.abs(one).mean()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "sam3"])
def test_classes_are_named_as_the_configuration_says(kind, segmentor_of):
    assert segmentor_of(kind).class_names == NAMES


def test_queries_are_carried_from_key_frame_to_key_frame_as_in_a_clip(segmentor_of):
    segmentor = segmentor_of("videomt")
    frames = [frame_of((64, 64), seed) for seed in range(4)]
    images = batch_of(segmentor, frames)
    with torch.inference_mode():
        clip = segmentor.model(pixel_values_videos=pixels_of(segmentor, frames)[None])
    expected = torch.stack(VideomtVideoProcessor().post_process_semantic_segmentation(clip, [(64, 64)] * 4))
    following = segmentor.for_video()
    # Two at once, then one by one: it does not matter.
    parts = [following(images[:2]), following(images[2:3]), following(images[3:])]
    scores = torch.cat([scores_at(part, (64, 64)) for part in parts])
    assert_same_labels(scores, expected)
    alone = scores_at(segmentor(images), (64, 64))
    assert not torch.equal(alone.argmax(1)[1:], expected[1:]), "carrying changed nothing"
    again = segmentor.for_video()
    torch.testing.assert_close(scores_at(again(images[:2]), (64, 64)), scores[:2])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "videomt"])
def test_what_carries_nothing_is_its_own_segmentor_for_a_video(kind, segmentor_of):
    assert segmentor_of(kind).for_video() is segmentor_of(kind)


def test_the_checkpoint_of_a_tracker_holds_the_network_of_images(folder_of, segmentor_of, tmp_path):
    """As SAM 3 is published."""
    place = Path(shutil.copytree(folder_of("sam3"), tmp_path / "tracker"))
    weights = load_file(place / "model.safetensors")
    stored = {f"detector_model.{name}": value for name, value in weights.items()}
    save_file(stored | {"tracker_model.x": torch.zeros(2)}, place / "model.safetensors", metadata={"format": "pt"})
    config = Sam3VideoConfig(detector_config=Sam3Config.from_pretrained(place))
    (place / "config.json").write_text(json.dumps(config.to_dict() | {"architectures": ["Sam3VideoModel"]}))
    images = batch_of(segmentor_of("sam3"), [frame_of(size_of("sam3"))])
    ours, theirs = load_segmentor(place, prompts=PROMPTS)(images), segmentor_of("sam3")(images)
    np.testing.assert_array_equal(ours.scores, theirs.scores)


# What a preprocessor says


SQUARE = {"size": {"height": 512, "width": 512}}


@pytest.mark.parametrize(
    ("settings", "frame", "expected"),
    [
        (SQUARE, (360, 640), (512, 512)),
        ({"size": 512}, (360, 640), (512, 512)),
        ({"size": [480, 640]}, (360, 640), (480, 640)),
        ({"size": 512, "feature_extractor_type": "SegformerFeatureExtractor"}, (360, 640), (512, 512)),
        ({"size": {"shortest_edge": 256}}, (360, 640), (256, 455)),
        ({"size": 256, "image_processor_type": "MobileViTImageProcessor"}, (360, 640), (256, 455)),
        ({**SQUARE, "do_resize": False}, (361, 640), (361, 640)),
        ({**SQUARE, "do_center_crop": True, "crop_size": {"height": 448, "width": 448}}, (360, 640), (512, 512)),
        ({"size": {"shortest_edge": 384}, "crop_pct": 0.875}, (360, 640), (384, 384)),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875}, (360, 640), (256, 455)),
        ({**SQUARE, "keep_aspect_ratio": True, "ensure_multiple_of": 32}, (360, 640), (288, 512)),
        ({**SQUARE, "keep_aspect_ratio": True, "ensure_multiple_of": 14}, (700, 400), (518, 294)),
        ({"size": {"height": 500, "width": 500}, "ensure_multiple_of": 32}, (360, 640), (512, 512)),
        ({}, (360, 640), (512, 512)),
        ({"size": None}, (360, 640), (512, 512)),
    ],
)
def test_each_form_of_a_size_is_resized_to_as_in_the_library(settings, frame, expected):
    geometry = input_rule(settings, "segformer", _config()).fit(frame)
    assert geometry.resized == geometry.padded == expected


def _config():
    from transformers import SegformerConfig

    return SegformerConfig()


@pytest.mark.parametrize(
    ("settings", "value"),
    [
        ({}, (128 / 255 - 0.485) / 0.229),
        ({"do_normalize": False}, 128 / 255),
        ({"do_normalize": None, "image_processor_type": "MobileViTImageProcessor"}, 128 / 255),
        ({"do_rescale": False}, (128 - 0.485) / 0.229),
        ({"rescale_factor": 1 / 127.5, "image_mean": 1.0, "image_std": 1.0}, 128 / 127.5 - 1),
        ({"image_processor_type": "BeitImageProcessor"}, (128 / 255 - 0.5) / 0.5),
        ({"do_reduce_labels": True, "image_mean": [0, 0, 0], "image_std": [1, 1, 1]}, 128 / 255),
    ],
)
def test_numbers_are_scaled_as_the_library_does(settings, value):
    rule = input_rule({**SQUARE, **settings}, "segformer", _config())
    grey = (128 - rule.mean[0]) / rule.std[0]
    assert grey == pytest.approx(value, rel=1e-5)


def test_blue_comes_first_where_the_library_flips_the_channels():
    assert input_rule({"do_flip_channel_order": True, **SQUARE}, "segformer", _config()).bgr
    assert input_rule({"image_processor_type": "MobileViTImageProcessor", **SQUARE}, "segformer", _config()).bgr
    assert not input_rule(SQUARE, "segformer", _config()).bgr


def test_a_shorter_side_of_the_users_keeps_the_ratio_where_the_network_takes_any_size(segmentor_of):
    rule = segmentor_of("segformer").rule
    assert rule.fit((90, 160)).resized == (64, 64)
    assert rule.with_short_side(90).fit((90, 160)).resized == (90, 160)
    for kind in ("beit", "dpt", "rf_detr", "sam3", "videomt"):
        with pytest.raises(ModelError, match=r"takes images of \d+x\d+ \(width x height\) pixels only"):
            segmentor_of(kind).rule.with_short_side(90)
        own = min(size_of(kind))
        assert segmentor_of(kind).rule.with_short_side(own) == segmentor_of(kind).rule


def test_a_processor_of_videos_is_read(folder_of, tmp_path):
    from shutil import copytree

    place = copytree(folder_of("videomt"), tmp_path / "model")
    (place / "preprocessor_config.json").unlink()
    settings = {"size": {"height": 64, "width": 64}, "image_mean": [0.1, 0.2, 0.3]}
    for name, values in (
        ("processor_config.json", {"video_processor": settings}),
        ("video_preprocessor_config.json", settings),
    ):
        (place / name).write_text(json.dumps(values))
        rule = load_segmentor(place).rule
        assert rule.exact == (64, 64)
        assert rule.mean[0] == pytest.approx(0.1 * 255)
        (place / name).unlink()


# Bad input


def test_a_model_of_texts_wants_some_and_another_model_none(folder_of):
    with pytest.raises(ModelError, match='its classes are texts: say which, such as --prompt "road"'):
        load_segmentor(folder_of("sam3"))
    for model in (folder_of("segformer"), "compact"):
        with pytest.raises(ModelError, match="has classes of its own and takes no --prompt"):
            load_segmentor(model, prompts=("road",))


@pytest.fixture
def copied(folder_of, tmp_path):
    """A checkpoint in a directory of its own, of which one file is changed."""

    def copy(kind, file="config.json", drop=(), **changes):
        place = Path(shutil.copytree(folder_of(kind), tmp_path / kind))
        values = {key: value for key, value in json.loads((place / file).read_text()).items() if key not in drop}
        (place / file).write_text(json.dumps(values | changes))
        return place

    return copy


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("sapiens2", {"drop": ("head_config",)}, "config.json lacks a setting of sapiens2, or contradicts itself"),
        ("segformer", {"drop": ("hidden_sizes", "depths")}, "weights are missing or of another shape, among them"),
        ("upernet", {"drop": ("id2label", "label2id")}, "the checkpoint does not belong to its configuration"),
        ("detr", {"drop": ("num_queries",)}, "weights are missing or of another shape, among them"),
        ("rf_detr", {"d_model": "wide"}, "cannot read the model's configuration: .*'d_model' expected int"),
        ("eomt_dinov3", {"image_size": [64, 48]}, r"image_size must be one side of a square, got \[64, 48\]"),
        (
            "segformer",
            {"architectures": ["SegformerForImageClassification"], "decoder_hidden_size": 8},
            "the checkpoint is a SegformerForImageClassification, not a SegformerForSemanticSegmentation",
        ),
        ("beit", {"out_indices": [1, 2]}, "cannot read the model's configuration: out_features and out_indices"),
    ],
)
def test_a_configuration_that_lacks_what_its_family_needs_is_refused_in_one_line(kind, change, message, copied):
    with pytest.raises(ModelError, match=message) as caught:
        load_segmentor(copied(kind, **change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": {"height": "a", "width": 4}}, "size must be whole numbers of pixels, got"),
        ({"size": [1, 2, 3]}, "size must be one number, or height and width"),
        ({"size": {"height": 0, "width": 64}}, "height must be from 1 to 32768 pixels"),
        ({"size": {"height": -64, "width": 64}}, "height must be from 1 to 32768 pixels"),
        ({"rescale_factor": 0}, "cannot use preprocessor_config.json"),
        ({"image_std": [0, 0, 0]}, "multiple and std must be positive"),
    ],
)
def test_a_preprocessor_that_makes_no_sense_is_refused(change, message, copied):
    with pytest.raises(ModelError, match=message):
        load_segmentor(copied("segformer", "preprocessor_config.json", **change))


def test_an_image_of_a_size_that_a_network_does_not_take_is_said(copied):
    segmentor = load_segmentor(copied("dpt", "preprocessor_config.json", size={"height": 96, "width": 80}))
    with pytest.raises(ModelError, match=r"fails on an image of 80x96 .*it is made for images of 64 pixels"):
        segmentor(np.zeros((1, 96, 80, 3), np.uint8))


def test_a_model_without_preprocessor_takes_the_size_that_its_configuration_states(copied, caplog):
    for kind in ("beit", "sapiens2", "rf_detr", "sam3"):
        place = copied(kind)
        (place / "preprocessor_config.json").unlink()
        segmentor = load_segmentor(place, prompts=PROMPTS if kind == "sam3" else ())
        assert segmentor.rule.exact == size_of(kind)
        assert "no preprocessor_config.json; taking the defaults of the library" in caplog.text
        caplog.clear()


class _OwnConfig(SegformerConfig):
    model_type = "own_pixels"


class _OwnModel(SegformerForSemanticSegmentation):
    config_class = _OwnConfig


def test_a_family_that_an_auto_class_knows_needs_no_line_here(folder_of, tmp_path):
    values = SegformerConfig.from_pretrained(folder_of("segformer")).to_dict()
    _OwnModel(_OwnConfig(**{key: value for key, value in values.items() if key != "model_type"})).save_pretrained(
        tmp_path
    )
    with pytest.raises(ModelError, match="cannot read the model's configuration"):
        load_segmentor(tmp_path)
    try:
        AutoConfig.register("own_pixels", _OwnConfig)
        AutoModelForSemanticSegmentation.register(_OwnConfig, _OwnModel)
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(SQUARE))
        segmentor = load_segmentor(tmp_path)
        assert isinstance(segmentor.model, _OwnModel)
        assert segmentor(np.zeros((1, 64, 64, 3), np.uint8)).scores.shape == (1, len(NAMES), 16, 16)
    finally:
        CONFIG_MAPPING._extra_content.pop("own_pixels", None)
        MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING._extra_content.pop(_OwnConfig, None)


def test_families_that_answer_with_pixels_are_not_trained_and_give_no_queries(segmentor_of):
    segmentor = segmentor_of("segformer")
    with pytest.raises(ModelError, match="training knows the families mask2former and maskformer, got 'segformer'"):
        predict_layers(segmentor.model, torch.zeros(1, 3, 64, 64))
    with pytest.raises(ModelError, match=r"expected a mask classifier \(mask2former, .*got model type 'segformer'"):
        library_prediction(segmentor, torch.zeros(1, 3, 64, 64), (64, 64))


@pytest.mark.parametrize("prompt", [("road", "road"), ("road", " ")])
def test_prompts_are_texts_each_given_once(prompt):
    with pytest.raises(OptionError, match="prompt must be texts, each given once"):
        ModelOptions(prompt=prompt)


def test_a_function_takes_no_prompt():
    with pytest.raises(OptionError, match="prompt is for models of transformers that take text"):
        VideoSegmenter.from_pretrained("numpy:abs", prompt=("road",))
