import numpy as np
import pytest

from mpvss.errors import ConfigError, MpvssError
from mpvss.labels import IGNORE, ignore_id, label_dtype, map_classes, palette_for, resolve_classes


@pytest.mark.parametrize("count", [1, 11, 150, 3000])
def test_colours_of_unknown_names_are_distinct_and_the_same_on_every_run(count):
    names = [f"thing {i}" for i in range(count + 7)]
    palette = palette_for(names[:count])
    assert palette.shape == (count, 3)
    assert palette.dtype == np.uint8
    assert len({tuple(colour) for colour in palette.tolist()}) == count
    np.testing.assert_array_equal(palette, palette_for(names)[:count])


def test_known_names_get_their_known_colours_whatever_the_case():
    palette = palette_for(["Road", "SKY", "thing", "car, auto, automobile"])
    assert palette[[0, 1, 3]].tolist() == [[128, 64, 128], [70, 130, 180], [0, 0, 142]]


def test_names_that_share_a_colour_stay_distinct():
    names = ["person", "pedestrian", "tree", "vegetation", "a", "b"]
    assert len({tuple(colour) for colour in palette_for(names).tolist()}) == len(names)


def test_label_type_leaves_room_for_the_ignore_id():
    assert label_dtype(1) is np.uint8
    assert label_dtype(255) is np.uint8
    assert label_dtype(256) is np.uint16
    assert ignore_id(255) == IGNORE == 255
    assert ignore_id(256) == 65535


@pytest.mark.parametrize("count", [0, -1, 65536])
def test_number_of_classes_out_of_range(count):
    with pytest.raises(ValueError, match="expected 1 to 65535 classes"):
        label_dtype(count)
    with pytest.raises(ValueError, match="expected 1 to 65535 classes"):
        palette_for(["a"] * max(count, 0))


def test_resolve_keeps_the_order_and_drops_repeats():
    assert resolve_classes(["Sky", "road ", "sky"], ["road", "tree", "sky"]) == [2, 0]


def test_resolve_knows_synonyms():
    assert resolve_classes(["auto"], ["tree", "car, auto, automobile"]) == [1]


ADE = ("wall", "toilet, can, pot, potty, stool, throne", "stool", "pot", "screen door, screen", "screen", "tv, screen")


def test_a_whole_name_goes_before_any_synonym():
    assert resolve_classes(["pot", "stool", "screen"], ADE) == [3, 2, 5]
    assert resolve_classes(["throne", "tv", "screen door"], ADE) == [1, 6, 4]
    assert resolve_classes(["lamp"], ("light, lamp", "lamp, torch")) == [1]  # the first of several before the others


def test_case_blanks_underscores_and_the_form_of_letters_do_not_matter():
    names = ("Traffic_Light", "cafe\u0301", "STRASSE", "a_b", "a b")
    assert resolve_classes(["traffic  light", "caf\u00e9", "straße"], names) == [0, 1, 2]
    assert resolve_classes(["a b"], names) == [4]
    assert resolve_classes(["a_b"], names) == [3]


def test_a_name_that_classes_repeat_is_all_of_them_and_a_shared_synonym_is_refused():
    assert resolve_classes(["Thing"], ["thing", "sky", "thing"]) == [0, 2]
    with pytest.raises(ConfigError, match=r'"cup" is a synonym of 2 classes: "mug, cup", "trophy, cup"; use another'):
        resolve_classes(["cup"], ["mug, cup", "trophy, cup"])


@pytest.mark.parametrize(
    ("names", "targets", "table", "left"),
    [
        (ADE, ADE, [0, 1, 2, 3, 4, 5, 6], []),
        (("toilet, pot",), ("toilet", "pot"), [0], [1]),  # no two classes land on one
        (("toilet, pot",), ("pot", "toilet"), [1], [0]),
        (("Other", "POT", "other"), ("pot", "other", "other"), [2, 0, 1], []),
        (("other", "sky", "other"), ("sky", "other"), [1, 0, 1], []),
        (("other",), ("other", "OTHER"), [0], [1]),
        (("road", "sky"), ("Sky", "roadway"), [None, 0], [1]),
        (("car",), ("car, auto",), [0], []),
        (("x, cup", "y, cup"), ("cup",), [None, None], [0]),
    ],
)
def test_classes_are_paired_by_name_and_what_is_left_is_said(names, targets, table, left):
    assert map_classes(names, targets) == (table, left)


def test_unknown_class_suggests_the_nearest():
    with pytest.raises(ConfigError, match=r'road, sky.*got "raod"; did you mean "road"\?') as caught:
        resolve_classes(["raod"], ["road", "sky"])
    assert isinstance(caught.value, MpvssError)


def test_unknown_class_of_a_long_list_is_one_line():
    with pytest.raises(ConfigError, match="and 110 more"):
        resolve_classes(["x"], [f"class{i}" for i in range(120)])
