"""A function becomes a segmentor: what it says of key frames is what they get, and what is wrong with it is said."""

import inspect
import sys
import traceback

import av
import cv2
import numpy as np
import pytest

import mpvss
from helpers import moving_frames
from mpvss.labels import read_class_names
from mpvss.segmentors.protocol import FunctionError
from mpvss.segmentors.wrap import FunctionSegmentor, is_address, load_function

NAMES = ("dark", "middle", "bright")


def brightness(image):
    """Class ids by brightness."""
    return np.digitize(image.mean(-1), [90, 160])


def scores_of(image, kind="scores", shape=None):
    labels = brightness(image)
    planes = (labels == np.arange(3)[:, None, None]).astype(np.float64)
    if shape is not None:
        planes = np.stack([cv2.resize(plane, shape[::-1], interpolation=cv2.INTER_AREA) for plane in planes])
    return planes if kind == "scores" else 9 * planes - 4


def masks_of(image):
    labels = brightness(image)
    return [(labels == number, number, 0.5 + 0.1 * number) for number in range(3)]


FORMS = {
    "labels": brightness,
    "scores": scores_of,
    "logits": lambda image: scores_of(image, "logits"),
    "masks": masks_of,
}


@pytest.mark.parametrize("output", FORMS)
@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_key_frames_are_what_the_function_says_in_each_form(output, dtype):
    video = moving_frames(5)
    fn = FORMS[output] if output != "labels" else lambda image: brightness(image).astype(dtype)
    segmenter = mpvss.wrap(fn, NAMES, output=output, interval=4)
    results = list(segmenter.stream(video))
    assert [result.is_key for result in results] == [True, False, False, False, True]
    for result in results:
        expected = brightness(result.frame.rgb)
        if result.is_key:
            np.testing.assert_array_equal(result.labels, expected)
        else:  # propagated, not computed: most of it is right, and it is not the key frame's
            assert (result.labels == expected).mean() > 0.9
        assert result.class_names == NAMES


def test_the_function_runs_on_key_frames_only():
    calls = []

    def counted(image):
        calls.append(image.shape)
        return brightness(image)

    list(mpvss.wrap(counted, NAMES, interval=5).stream(moving_frames(11)))
    assert calls == [(64, 96, 3)] * 3


@pytest.mark.parametrize("output", ["scores", "logits"])
def test_scores_may_lie_on_any_grid_that_covers_the_image(output):
    video = moving_frames(1)
    coarse = mpvss.wrap(lambda image: scores_of(image, output, (16, 24)), NAMES, output=output)
    labels = next(coarse.stream(video)).labels
    planes = scores_of(video[0].rgb, output, (16, 24))
    whole = np.stack([cv2.resize(plane, (96, 64), interpolation=cv2.INTER_LINEAR) for plane in planes])
    second, best = np.sort(whole, 0)[-2:]
    clear = best - second > 1e-5
    assert clear.mean() > 0.98
    np.testing.assert_array_equal(labels[clear], whole.argmax(0)[clear])


@pytest.mark.parametrize("direction", ["both", "forward"])
@pytest.mark.parametrize("batch", [2, 3])
def test_a_batch_of_key_frames_equals_one_by_one(batch, direction):
    video = moving_frames(14)
    sizes = []

    def several(images):
        assert isinstance(images, list)
        sizes.append(len(images))
        return [brightness(image) for image in images]

    plain = list(mpvss.wrap(brightness, NAMES, interval=3, direction=direction).stream(video))
    batched = list(mpvss.wrap(several, NAMES, batch=batch, interval=3, direction=direction).stream(video))
    assert [result.index for result in batched] == list(range(14))
    for one, other in zip(plain, batched, strict=True):
        assert one.is_key == other.is_key
        np.testing.assert_array_equal(one.labels, other.labels)
    assert sizes == {2: [2, 2, 1], 3: [3, 2]}[batch]


def test_a_batch_is_given_back_at_a_change_of_size_and_at_the_end():
    small, large = moving_frames(4), moving_frames(8, (80, 96))[4:]
    fn = lambda images: [brightness(image) for image in images]
    results = list(mpvss.wrap(fn, NAMES, batch=8, interval=2).stream([*small, *large]))
    assert [result.index for result in results] == list(range(8))
    assert results[4].is_key
    np.testing.assert_array_equal(results[4].labels, brightness(large[0].rgb))


def test_an_answer_in_one_buffer_again_and_again_is_copied():
    buffer = np.zeros((64, 96), np.uint8)

    def reused(image):
        buffer[:] = brightness(image)
        return buffer

    video = moving_frames(9)
    plain = [result.labels for result in mpvss.wrap(brightness, NAMES, interval=4).stream(video)]
    found = []
    for result in mpvss.wrap(reused, NAMES, interval=4).stream(video):
        buffer[:] = 2
        found.append(result.labels)
    np.testing.assert_array_equal(found, plain)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_tensors_of_torch_are_taken_as_they_are(dtype):
    import torch

    def tensors(image):
        planes = torch.from_numpy(scores_of(image)).to(getattr(torch, dtype))
        return planes.requires_grad_(True)

    video = moving_frames(1)
    labels = next(mpvss.wrap(tensors, NAMES, output="scores").stream(video)).labels
    np.testing.assert_array_equal(labels, brightness(video[0].rgb))


@pytest.mark.parametrize("void", [-1, 255])
def test_pixels_without_a_class_stay_without_one(void):
    def half(image):
        labels = brightness(image).astype(np.int16)
        labels[:, :40] = void
        return labels

    for result in mpvss.wrap(half, NAMES, interval=3).stream(moving_frames(3, speed=0)):
        assert (result.labels[:, :39] == 255).all()
        assert (result.labels[:, 41:] < 3).all()


def test_the_highest_score_times_mask_wins_and_where_there_is_none_there_is_no_class():
    def two(image):
        left, wide = np.zeros((2, *image.shape[:2]), bool)
        left[:, :30], wide[:, :60] = True, True
        return [(left, 2, 0.4), (wide, 0, 0.9), (left, 1, 0.95)]

    labels = next(mpvss.wrap(two, NAMES, output="masks").stream(moving_frames(1))).labels
    assert (labels[:, :30] == 1).all() and (labels[:, 30:60] == 0).all() and (labels[:, 60:] == 255).all()
    nothing = next(mpvss.wrap(lambda image: [], NAMES, output="masks").stream(moving_frames(1))).labels
    assert (nothing == 255).all()
    strict = next(mpvss.wrap(two, NAMES, output="masks", min_score=0.92).stream(moving_frames(1))).labels
    assert (strict[:, :30] == 1).all() and (strict[:, 30:] == 255).all()


WRONG = {
    "NaN scores": ("scores", lambda image: np.full((3, 8, 8), np.nan), "expected finite class scores, got NaN"),
    "negative scores": ("scores", lambda image: np.full((3, 8, 8), -2.0), "for logits give output='logits'"),
    "floats for labels": ("labels", lambda image: brightness(image) / 1.0, "whole numbers, got float64"),
    "ids out of range": ("labels", lambda image: brightness(image) + 5, r"ids from 0 to 2, got 7"),
    "another size": ("labels", lambda image: brightness(image)[:9], r"size 96x64 .*got an array of shape \(9, 96\)"),
    "an empty list": ("labels", lambda image: [], "expected class ids .* got an empty one"),
    "nothing": ("labels", lambda image: None, "expected class ids .* as an array of numbers, got NoneType"),
    "text": ("labels", lambda image: "road", "as an array of numbers, got"),
    "two dimensions": ("scores", brightness, "for class ids .* give output='labels'"),
    "too few maps": ("logits", lambda image: np.zeros((2, 8, 8)), r"shape \(3, h, w\), .* got \(2, 8, 8\)"),
    "a bare mask": ("masks", lambda image: np.zeros((64, 96)), "expected a list of"),
    "no score": ("masks", lambda image: [(np.zeros((64, 96)), 1)], "each mask as"),
    "a mask of another size": ("masks", lambda image: [(np.zeros((6, 9)), 1, 0.5)], "masks of the image's size 96x64"),
    "a mask of no class": ("masks", lambda image: [(np.zeros((64, 96)), 7, 0.5)], "ids from 0 to 2, got 7"),
    "a score that is none": ("masks", lambda image: [(np.zeros((64, 96)), 1, "high")], "a class id and a score"),
    "a mask above one": ("masks", lambda image: [(np.full((64, 96), 255), 1, 0.5)], "masks from 0 to 1"),
    "ragged lists": ("scores", lambda image: [[1, 2], [3]], "as an array"),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_answer_that_cannot_be_used_is_one_line_that_names_the_frame(case):
    output, fn, message = WRONG[case]
    with pytest.raises(FunctionError, match=message) as caught:
        list(mpvss.wrap(fn, NAMES, output=output).stream(moving_frames(2)))
    assert "frame 0" in str(caught.value) and "\n" not in str(caught.value)


def test_an_exception_names_the_frame_and_keeps_its_traceback():
    def fails_later(image):
        if len(seen) == 2:
            raise KeyError("weights")
        seen.append(image)
        return brightness(image)

    seen = []
    with pytest.raises(FunctionError, match=r"frame 4, from .* raised KeyError: 'weights' \(test_segmentors_wrap") as e:
        list(mpvss.wrap(fails_later, NAMES, interval=2).stream(moving_frames(9)))
    assert isinstance(e.value.__cause__, KeyError)
    assert "fails_later" in "".join(traceback.format_exception(e.value))


@pytest.mark.parametrize(
    ("answer", "message"), [([1], "list of 2 results, one an image, got 1"), (None, "got NoneType")]
)
def test_a_batch_has_one_result_an_image(answer, message):
    with pytest.raises(FunctionError, match=message):
        list(mpvss.wrap(lambda images: answer, NAMES, batch=2, interval=1).stream(moving_frames(2)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": "road"}, "classes must be the names"),
        ({"classes": []}, "classes must be the names"),
        ({"output": "boxes"}, "output must be one of labels, scores, logits, masks, got 'boxes'"),
        ({"batch": 0}, "batch must be at least 1"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    unchecked = inspect.unwrap(FunctionSegmentor.__init__)  # below the checks of types that only tests have
    with pytest.raises(mpvss.OptionError, match=message):
        unchecked(object.__new__(FunctionSegmentor), brightness, **({"classes": NAMES} | options))


def test_an_unknown_option_is_named():
    with pytest.raises(mpvss.OptionError, match="intervall"):
        mpvss.wrap(brightness, NAMES, intervall=3)


def test_what_is_no_function_is_refused():
    unchecked = inspect.unwrap(FunctionSegmentor.__init__)
    with pytest.raises(TypeError, match="expects a function"):
        unchecked(object.__new__(FunctionSegmentor), 3, NAMES)


MODULE = """
import numpy as np
import mpvss

def brightness(image):
    return np.digitize(image.mean(-1), [90, 160])

class Holder:
    inner = staticmethod(brightness)

segmenter = mpvss.wrap(brightness, classes=["dark", "middle", "bright"])
number = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "my_model.py").write_text(MODULE)
    (tmp_path / "names.txt").write_text("dark\nmiddle\n\nbright\n")
    (tmp_path / "broken_model.py").write_text("import nothing_of_that_name\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("my_model", None)
    if str(tmp_path) in sys.path:
        sys.path.remove(str(tmp_path))


@pytest.mark.parametrize("address", ["my_model:segmenter", "my_model.py:segmenter"])
def test_a_model_is_imported_by_its_address(module, address):
    assert is_address(address)
    loaded = mpvss.VideoSegmenter.from_pretrained(address, interval=4)
    plain = mpvss.wrap(brightness, NAMES, interval=4)
    for one, other in zip(loaded.stream(moving_frames(6)), plain.stream(moving_frames(6)), strict=True):
        np.testing.assert_array_equal(one.labels, other.labels)


def test_a_bare_function_takes_its_names_from_a_file(module):
    loaded = mpvss.VideoSegmenter.from_pretrained("my_model:Holder.inner", classes_file="names.txt")
    assert loaded.class_names == NAMES
    with pytest.raises(mpvss.ModelError, match="--classes-file, or in the module write"):
        load_function("my_model:brightness")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("my_model:nothing", "has no nothing"),
        ("my_model:number", "expected a function, or what mpvss.wrap returned, got int"),
        ("no_such_module_here:f", "cannot import no_such_module_here"),
        ("broken_model:f", "cannot import broken_model .*nothing_of_that_name"),
        ("missing.py:f", "cannot import missing.py"),
    ],
)
def test_an_address_that_leads_nowhere_is_one_line(module, address, message):
    with pytest.raises(mpvss.ModelError, match=message):
        mpvss.VideoSegmenter.from_pretrained(address, classes_file="names.txt")


@pytest.mark.parametrize("model", ["compact", "owner/name", "C:\\models\\mine", "./folder", "rtsp://host:554/x"])
def test_other_models_are_no_address(model):
    assert not is_address(model)


def test_the_command_line_writes_the_same_labels(module):
    from mpvss.cli.app import run

    with av.open("clip.mkv", "w") as container:
        stream = container.add_stream("ffv1", rate=15, options={"level": "3"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "bgr0"
        for frame in moving_frames(7):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame.rgb, "rgb24")))
        container.mux(stream.encode())
    arguments = ["segment", "clip.mkv", "--model", "my_model:brightness", "--classes-file", "names.txt"]
    assert run([*arguments, "--out", "out", "--save", "labels", "--interval", "3"]) == 0
    labels = [array for _, _, array, _ in mpvss.LabelReader("out/clip.labels.mkv")]
    expected = [result.labels for result in mpvss.wrap(brightness, NAMES, interval=3).stream("clip.mkv")]
    np.testing.assert_array_equal(labels, expected)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "dark\nmiddle\nbright"),
        ("a.json", '["dark", "middle", "bright"]'),
        ("a.json", '{"id2label": {"0": "dark", "1": "middle", "2": "bright"}}'),
        ("data.yaml", "path: x\nnames:\n  0: dark\n  1: middle\n  2: bright\n"),
        ("data.yml", "names: [dark, middle, bright]"),
    ],
)
def test_names_are_read_in_each_form(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert read_class_names(tmp_path / name) == NAMES


@pytest.mark.parametrize(
    ("name", "text"), [("a.txt", ""), ("a.json", "{"), ("a.json", '{"0": "a", "2": "b"}'), ("a.yaml", "3")]
)
def test_a_file_without_names_is_refused(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(mpvss.ConfigError, match=r"expected .*names"):
        read_class_names(tmp_path / name)
    with pytest.raises(mpvss.ConfigError, match="cannot be read"):
        read_class_names(tmp_path / "missing.txt")


def test_a_segmentor_of_another_size_sees_that_size():
    seen = []

    def sized(image):
        seen.append(image.shape)
        return brightness(image)

    labels = next(mpvss.wrap(sized, NAMES, short_side=32).stream(moving_frames(1))).labels
    assert seen == [(32, 48, 3)] and labels.shape == (64, 96)


def test_one_grid_for_all_images_of_a_batch():
    sizes = iter([8, 9])
    segmentor = FunctionSegmentor(
        lambda images: [np.zeros((3, next(sizes), 8)) for _ in images], NAMES, output="scores", batch=2
    )
    with pytest.raises(FunctionError, match="one grid for all images"):
        segmentor(np.zeros((2, 64, 96, 3), np.uint8))
