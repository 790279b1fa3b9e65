"""Laws of the schedule: where key frames are, and what is a cut and what is not."""

from fractions import Fraction

import cv2
import numpy as np
import pytest

from mpvss.engine.schedule import (
    CutDetector,
    FixedInterval,
    KeyFrameFinder,
    ListedCuts,
    ListedKeyFrames,
    Schedule,
    WindowFrame,
)
from mpvss.types import Frame

SIZE = (120, 160)
ANY = np.zeros((*SIZE, 3), np.uint8)


def scene(seed, size=SIZE):
    """A picture of a scene: a gradient of sky and ground, and some coloured shapes with texture."""
    random = np.random.default_rng(seed)
    height, width = size
    top, bottom = random.integers(40, 216, (2, 1, 1, 3))
    picture = np.where(np.arange(height)[:, None, None] < height * random.uniform(0.3, 0.7), top, bottom)
    picture = np.broadcast_to(picture, (height, width, 3)).astype(np.uint8).copy()
    for _ in range(12):
        centre = (int(random.integers(width)), int(random.integers(height)))
        axes = (int(random.integers(6, width // 5)), int(random.integers(6, height // 3)))
        cv2.ellipse(picture, centre, axes, 0, 0, 360, random.integers(0, 256, 3).tolist(), -1)
    noisy = picture + random.normal(0, 6, picture.shape)
    return cv2.GaussianBlur(np.clip(noisy, 0, 255).astype(np.uint8), (0, 0), 1)


def cuts(pictures):
    detector = CutDetector()
    return [number for number, picture in enumerate(pictures) if detector.is_cut(picture)]


def lit(picture, gain, offset=0.0):
    return np.clip(picture * gain + offset, 0, 255).astype(np.uint8)


def keys(schedule, images, cuts=None):
    """Key frames of the images, and the frames that begin another scene."""
    finder = KeyFrameFinder(schedule, cuts)
    new_scenes = [number for number, rgb in enumerate(images) if finder.add(Frame(number, Fraction(number), rgb))]
    return finder.keys.tolist(), new_scenes


@pytest.mark.parametrize(("interval", "expected"), [(1, [0, 1, 2, 3, 4, 5, 6]), (3, [0, 3, 6]), (10, [0])])
def test_a_key_frame_every_interval(interval, expected):
    assert keys(FixedInterval(interval), [ANY] * 7) == (expected, [])
    assert isinstance(FixedInterval(interval), Schedule)


def test_a_frame_of_a_new_scene_is_a_key_frame_before_its_interval_is_over():
    window = [WindowFrame(number, Fraction(number), number == 3) for number in range(1, 4)]
    assert [FixedInterval(10).decide(window[:count]) for count in (1, 2, 3)] == [None, None, 2]
    assert [ListedKeyFrames({2}).decide(window[:count]) for count in (1, 2, 3)] == [None, 1, 2]


def test_the_first_frame_is_a_key_frame_but_begins_no_other_scene():
    assert keys(FixedInterval(4), [scene(0)], CutDetector()) == ([0], [])


def test_a_cut_is_a_key_frame_of_a_new_scene_and_the_interval_counts_from_it():
    assert keys(FixedInterval(4), [scene(0)] * 6 + [scene(1)] * 6, CutDetector()) == ([0, 4, 6, 10], [6])


def test_a_cut_where_a_key_frame_was_due_still_begins_another_scene():
    assert keys(FixedInterval(3), [scene(0)] * 3 + [scene(1)], CutDetector()) == ([0, 3], [3])


def test_without_a_detector_a_cut_changes_nothing():
    assert keys(FixedInterval(4), [scene(0)] * 3 + [scene(1)] * 3) == ([0, 4], [])


def test_listed_cuts_and_key_frames_are_those_that_were_found():
    images = [scene(0)] * 6 + [scene(1)] * 6
    found, cuts = keys(FixedInterval(4), images, CutDetector())
    listed = ListedCuts([number in cuts for number in range(12)])
    assert keys(ListedKeyFrames(found), images, listed) == (found, cuts)


@pytest.mark.parametrize("interval", [0, -3])
def test_an_interval_below_one_is_refused(interval):
    with pytest.raises(ValueError, match=f"interval must be at least 1 frame, got {interval}"):
        FixedInterval(interval)


@pytest.mark.parametrize("size", [(120, 160), (270, 480), (37, 51), (160, 90)])
def test_every_cut_between_scenes_is_found_and_nothing_else(size):
    pictures = [scene(number, size) for number in range(12) for _ in range(3)]
    assert cuts(pictures) == list(range(3, 36, 3))


def test_every_cut_is_found_without_colour_too():
    grey = [cv2.cvtColor(scene(number), cv2.COLOR_RGB2GRAY) for number in range(12) for _ in range(3)]
    assert cuts([np.repeat(picture[..., None], 3, 2) for picture in grey]) == list(range(3, 36, 3))


@pytest.mark.parametrize("seed", range(6))
def test_cuts_in_neighbouring_frames_are_each_found(seed):
    shots = [scene(seed + number) for number in range(5)]
    assert cuts([shots[0], *shots, shots[-1]]) == [2, 3, 4, 5]


@pytest.mark.parametrize("seed", range(6))
def test_a_cut_to_a_place_that_looks_alike_is_found(seed):
    """Two fifths of what the second scene looks like is the first."""
    alike = (0.4 * scene(seed) + 0.6 * scene(seed + 1)).astype(np.uint8)
    assert cuts([scene(seed)] * 3 + [alike] * 3) == [3]


def test_from_black_to_a_scene_is_a_cut():
    assert cuts([ANY] * 3 + [scene(0)] * 3) == [3]


@pytest.mark.parametrize("step", [0.02, 0.05, 0.08])
def test_a_pan_is_no_cut_even_when_it_begins_at_once(step):
    """The picture moves by this share of its width from one frame to the next."""
    for seed in range(6):
        wide = scene(seed, (120, 400))
        starts = [round(max(0, number - 2) * step * 160) for number in range(20)]
        assert cuts([wide[:, s : s + 160] for s in starts if s <= 240]) == []


def test_a_pan_that_gathers_speed_is_no_cut_even_at_a_sixth_of_the_width():
    starts = np.cumsum([0, *range(0, 30, 2)])
    for seed in range(6):
        wide = scene(seed, (120, int(starts[-1]) + 160))
        assert cuts([wide[:, start : start + 160] for start in starts]) == []


def test_a_cut_within_a_pan_is_found():
    first, second = scene(0, (120, 400)), scene(1, (120, 400))
    assert cuts([first[:, 8 * n :][:, :160] for n in range(8)] + [second[:, 8 * n :][:, :160] for n in range(8)]) == [8]


@pytest.mark.parametrize("seed", range(4))
def test_light_that_changes_slowly_is_no_cut(seed):
    gains = np.linspace(1, 0.4, 20)
    assert cuts([lit(scene(seed), gain) for gain in gains]) == []
    assert cuts([lit(scene(seed), gain) for gain in gains[::-1]]) == []


@pytest.mark.parametrize("seed", range(4))
def test_a_fade_to_black_or_white_and_back_is_no_cut(seed):
    shares = np.concatenate([np.linspace(1, 0, 13), np.linspace(0, 1, 13)])
    for end in (0, 255):
        assert cuts([lit(scene(seed), share, (1 - share) * end) for share in shares]) == []


def test_a_dissolve_over_half_a_second_is_no_hard_cut():
    shares = np.linspace(0, 1, 13)[:, None, None, None]
    assert cuts(list((scene(0) * (1 - shares) + scene(1) * shares).astype(np.uint8))) == []


@pytest.mark.parametrize(("gain", "offset"), [(1.3, 0), (1.3, 30), (0.6, 0), (1.0, 60)])
def test_a_flash_of_light_is_no_cut_neither_coming_nor_going(gain, offset):
    for seed in range(6):
        picture = scene(seed)
        assert cuts([picture, picture, lit(picture, gain, offset), picture, picture]) == []


def test_noise_is_no_cut():
    random = np.random.default_rng(0)
    for level in (0, 90):
        pictures = [lit(np.full((*SIZE, 3), level), 1, random.normal(0, 25, (*SIZE, 3))) for _ in range(8)]
        assert cuts(pictures) == []


def test_one_picture_has_one_answer_whatever_its_layout_in_memory():
    pictures = [scene(0), scene(0), scene(1)]
    predictions = [np.asfortranarray(picture) for picture in pictures]
    assert cuts(pictures) == cuts(predictions) == [2]


@pytest.mark.parametrize("size", [(1, 1), (2, 300), (24, 32)])
def test_tiny_pictures_are_taken(size):
    assert cuts([np.full((*size, 3), 90, np.uint8)] * 3) == []


def test_a_fade_of_a_flat_picture_is_no_cut():
    """Correlations of flat pictures are 1 to rounding, on either side of it."""
    assert cuts([np.full((*SIZE, 3), level, np.uint8) for level in range(20, 240, 10)]) == []
    random = np.random.default_rng(0)
    for _ in range(50):
        grain = random.integers(0, 2, (*SIZE, 1))
        fade = [np.broadcast_to(level + grain, (*SIZE, 3)).astype(np.uint8) for level in range(20, 140, 10)]
        assert cuts(fade) == []
