"""Images of luma and chroma: conversion, and classes and legends over them, against the same drawn in RGB."""

import av
import numpy as np
import pytest

from mpvss.labels import palette_for
from mpvss.outputs.draw import legend, overlay
from mpvss.outputs.mp4 import _video_frame
from mpvss.outputs.planes import Painter, Patch, to_planes

SIZE = (91, 121)
PALETTE = palette_for("abcd")
NAMES = [("road", (128, 64, 128)), ("a long name of a class", (0, 0, 230))]


def smooth(size=SIZE):
    """An image in which two by two pixels are nearly alike, as chroma of half the size needs."""
    ys, xs = np.mgrid[: size[0], : size[1]]
    return np.stack([2 * ys % 256, (xs + ys) % 256, 255 - xs % 256], -1).clip(20, 235).astype(np.uint8)


def labels(dtype=np.uint8):
    ids = np.zeros(SIZE, dtype)
    ids[:, 40:] = 1
    ids[46:] = 2
    ids[:10, :10] = np.iinfo(dtype).max
    return ids


def to_rgb(planes):
    return _video_frame(planes).reformat(format="rgb24").to_ndarray()


def exact(rgb):
    """Luma and chroma of every pixel by the formula of BT.709."""
    red, green, blue = np.moveaxis(rgb.astype(float) / 255, -1, 0)
    luma = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return 16 + 219 * luma, 128 + 224 * (blue - luma) / 1.8556, 128 + 224 * (red - luma) / 1.5748


@pytest.mark.parametrize("size", [(2, 2), (1, 1), (3, 5), (64, 48), (7, 100)])
def test_planes_are_those_of_bt709(size):
    rgb = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    planes = to_planes(rgb)
    whole = np.pad(rgb, ((0, size[0] % 2), (0, size[1] % 2), (0, 0)), "edge")
    y, u, v = exact(whole)
    assert np.abs(planes.y - y[: size[0], : size[1]]).max() <= 1
    for plane, full in ((planes.u, u), (planes.v, v)):
        mean = full.reshape(len(full) // 2, 2, -1, 2).mean((1, 3))
        assert plane.shape == mean.shape
        assert np.abs(plane - mean).max() <= 1.5


@pytest.mark.parametrize("size", [(2, 2), (3, 5), (17, 64), (48, 50)])
def test_a_frame_of_planes_repeats_the_last_row_and_column(size):
    planes = to_planes(smooth(size))
    y, *chroma = (
        np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[:, : plane.width]
        for plane in _video_frame(planes).planes
    )
    np.testing.assert_array_equal(y, np.pad(planes.y, ((0, size[0] % 2), (0, size[1] % 2)), "edge"))
    np.testing.assert_array_equal(chroma, [planes.u, planes.v])


@pytest.mark.parametrize("classes", [None, [1, 2], []])
@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("ignored", [True, False])
def test_classes_are_drawn_as_in_rgb(classes, alpha, dtype, ignored):
    palette = PALETTE if dtype == np.uint8 else palette_for([str(i) for i in range(300)])
    rgb, ids = smooth(), labels(dtype)
    if not ignored:
        ids[ids > 3] = 3
    planes = to_planes(rgb)
    Painter(palette, alpha, classes).paint(planes, ids)
    expected = to_planes(overlay(rgb, ids, palette, alpha, classes))
    assert np.abs(planes.y.astype(int) - expected.y).max() <= 2
    inside = np.ones(expected.u.shape, bool)
    for line in (20, 5):  # chroma of two by two pixels of different classes
        inside[:, line - 3 : line + 3] = False
    inside[20:26] = inside[2:8] = False
    for plane, other in ((planes.u, expected.u), (planes.v, expected.v)):
        assert np.abs(plane.astype(int) - other)[inside].max() <= 3


def test_pixels_without_a_class_stay_as_they_are():
    planes = to_planes(smooth())
    before = planes.copy()
    Painter(PALETTE, 0.5, None).paint(planes, np.full(SIZE, 255, np.uint8))
    for one, other in ((planes.y, before.y), (planes.u, before.u), (planes.v, before.v)):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("size", [(360, 640), (91, 121), (720, 405), (1, 1)])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_legend_is_drawn_as_in_rgb(size, count):
    black, white = (legend(np.full((*size, 3), level, np.uint8), NAMES[:count]) for level in (0, 255))
    planes = to_planes(smooth(size))
    Patch(black, white).draw(planes)
    expected = to_planes(legend(smooth(size), NAMES[:count]))
    for plane, other, most in ((planes.y, expected.y, 3), (planes.u, expected.u, 8), (planes.v, expected.v, 8)):
        assert np.abs(plane.astype(int) - other).max() <= most


def test_a_legend_changes_its_part_of_the_image_only():
    size = (360, 640)
    black, white = (legend(np.full((*size, 3), level, np.uint8), NAMES) for level in (0, 255))
    planes = to_planes(smooth(size))
    before = planes.copy()
    Patch(black, white).draw(planes)
    same = (black == 0).all(-1) & (white == 255).all(-1)
    rows, columns = np.flatnonzero(~same.all(1)), np.flatnonzero(~same.all(0))
    changed = planes.y != before.y
    assert changed.any()
    assert not changed[: rows[0] - 1].any() and not changed[:, columns[-1] + 2 :].any()


def test_frames_say_that_they_are_bt709():
    frame = _video_frame(to_planes(smooth()))
    assert isinstance(frame, av.VideoFrame)
    assert (int(frame.colorspace), int(frame.color_range)) == (1, 1)
