import numpy as np
import pytest

from mpvss.labels import palette_for
from mpvss.outputs.draw import LegendOrder, half_size, legend, overlay, side_by_side, side_by_side_size
from mpvss.outputs.planes import to_planes
from mpvss.outputs.text import missing_letters

SIZE = (90, 120)
PALETTE = palette_for("abcd")


def image(size=SIZE):
    return np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)


def labels(dtype=np.uint8):
    ids = np.zeros(SIZE, dtype)
    ids[:, 40:] = 1
    ids[45:] = 2
    ids[:10, :10] = np.iinfo(dtype).max
    return ids


def test_overlay_equals_the_definition():
    rgb, ids = image(), labels()
    drawn = overlay(rgb, ids, PALETTE, 0.4, outlines=False)
    known = ids < 4
    expected = 0.6 * rgb[known] + 0.4 * PALETTE[ids[known]]
    assert np.abs(drawn[known] - expected).max() <= 0.5 + 1e-6
    np.testing.assert_array_equal(drawn[~known], rgb[~known])


def test_overlay_of_alpha_zero_is_the_frame_and_of_one_the_palette():
    rgb, ids = image(), labels()
    np.testing.assert_array_equal(overlay(rgb, ids, PALETTE, 0.0, outlines=False), rgb)
    known = ids < 4
    np.testing.assert_array_equal(overlay(rgb, ids, PALETTE, 1.0)[known], PALETTE[ids[known]])


def test_overlay_of_some_classes_leaves_the_others():
    rgb, ids = image(), labels()
    drawn = overlay(rgb, ids, PALETTE, classes=[1])
    np.testing.assert_array_equal(drawn[ids != 1], rgb[ids != 1])
    assert (drawn[ids == 1] != rgb[ids == 1]).any()
    np.testing.assert_array_equal(overlay(rgb, ids, PALETTE, classes=[]), rgb)


def test_outlines_are_at_borders_only_and_in_full_colour():
    rgb, ids = image(), labels()
    plain, outlined = overlay(rgb, ids, PALETTE, 0.0, outlines=False), overlay(rgb, ids, PALETTE, 0.0)
    changed = (plain != outlined).any(axis=-1)
    np.testing.assert_array_equal(outlined[changed], PALETTE[ids[changed]])
    assert changed[20, 38:42].sum() >= 2
    assert not changed[20, 20:36].any()


def test_sixteen_bit_labels_are_drawn_the_same():
    rgb = image()
    palette = palette_for([str(i) for i in range(300)])
    many = overlay(rgb, labels(np.uint16), palette)
    few = overlay(rgb, labels(), palette[:4])
    np.testing.assert_array_equal(many, few)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((image((10, 10)), labels(), PALETTE), "expected labels of the frame's size"),
        ((image(), labels(), PALETTE, 1.5), "expected an alpha of 0 to 1, got 1.5"),
        ((image(), labels(), PALETTE, 0.5, [4]), "expected class ids below 4"),
    ],
)
def test_overlay_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        overlay(*arguments)


@pytest.mark.parametrize("size", [(90, 120), (360, 640), (720, 1280), (1080, 1920), (1920, 1080)])
@pytest.mark.parametrize("count", [0, 1, 11, 150])
def test_legend_draws_within_the_image_and_changes_no_input(size, count):
    rgb = image(size)
    before = rgb.copy()
    drawn = legend(rgb, [(f"class {i}", (255, 0, 0)) for i in range(count)])
    np.testing.assert_array_equal(rgb, before)
    assert drawn.shape == rgb.shape
    assert (drawn != rgb).any() == (count > 0)
    np.testing.assert_array_equal(drawn[:, -3:], rgb[:, -3:])


@pytest.mark.parametrize("size", [(48, 64), (47, 63), (360, 640), (720, 1280), (1080, 1920), (1920, 1080), (1, 1)])
def test_side_by_side(size):
    half = half_size(size)
    left, right = to_planes(image(half)), to_planes(255 - image(half))
    drawn = side_by_side(left, right, ("per frame  123 ms", "propagated  12 ms"), (True, False))
    height, width = drawn.y.shape
    assert (height, width) == side_by_side_size(size)
    assert drawn.u.shape == drawn.v.shape == (height // 2, width // 2)
    assert height % 2 == width % 2 == 0
    assert width <= 1920
    assert half == size or 2 * half[1] + 4 == 1920
    top = height - half[0] - half[0] % 2
    begin = width - half[1] - half[1] % 2
    np.testing.assert_array_equal(drawn.y[top : top + half[0], : half[1]], left.y)
    np.testing.assert_array_equal(drawn.y[top : top + half[0], begin : begin + half[1]], right.y)
    np.testing.assert_array_equal(drawn.v[top // 2 :, begin // 2 :], right.v)


def test_side_by_side_refuses_two_sizes():
    with pytest.raises(ValueError, match="expected two images of one size"):
        side_by_side(to_planes(image()), to_planes(image((10, 10))), ("", ""))


def test_the_legend_lists_what_is_there_by_area_and_does_not_jump():
    order = LegendOrder()
    ids = np.zeros((100, 100), np.uint8)
    ids[:, :30], ids[:, 30:50], ids[0, 99], ids[1, :] = 140, 7, 90, 255
    assert order.update(ids, 150) == [0, 140, 7]
    for width in (49, 51) * 10:  # two classes of nearly one size
        ids[:] = 3
        ids[:, :width] = 4
        last = order.update(ids, 150)
        assert last.index(3) < last.index(4)
    assert last == [3, 4]
    for _ in range(40):
        ids[:, :90] = 4
        last = order.update(ids, 150)
    assert last == [4, 3]


def test_letters_that_no_font_has_are_named():
    assert missing_letters(["road", "Tree 1"]) == ""
    assert missing_letters(["road \U0010fffd"]) == "\U0010fffd"
