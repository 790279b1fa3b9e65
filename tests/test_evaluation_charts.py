"""Laws of the charts: what is drawn are the values, and gaps stay gaps."""

import math
import xml.etree.ElementTree as ET

import pytest

from mpvss.errors import ConfigError
from mpvss.evaluation import charts


def lines(figure, label):
    return [line for line in figure.axes[0].lines if line.get_label() == label]


def test_bars_are_as_long_as_their_values():
    figure = charts.class_bars({"a": 0.5, "b": 1.0, "c": None}, {"a": 0.25, "b": None, "c": None})
    run, baseline = figure.axes[0].containers
    assert [bar.get_width() for bar in run] == [0.5, 1.0]
    assert [bar.get_width() for bar in baseline] == [0.25, 0.0]
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["0.500 (+0.250)", "1.000"]


def test_lines_are_the_values_and_stop_where_nothing_is_known():
    figure = charts.time_line("v", [1.0, 0.7, None, 0.9, None], [True, False, False, True, True], None, "J")
    (line,) = lines(figure, "this run")
    assert [None if math.isnan(y) else y for y in line.get_ydata()] == [1.0, 0.7, None, 0.9, None]
    (keys,) = lines(figure, "key frame")
    assert list(keys.get_xdata()) == [0, 3]
    alone = [list(line.get_xdata()) for line in figure.axes[0].lines if line.get_marker() == "."]
    assert alone == [[3]]


def test_the_scale_holds_every_value():
    figure = charts.distance_lines([1.0, 0.5, 0.8], [0.31])
    low, high = figure.axes[0].get_ylim()
    assert low <= 0.31 and high == 1.0
    for keys in ([None], [True]):
        assert charts.time_line("one frame", [0.0], keys, [None], "mIoU").axes[0].get_ylim()[0] == 0.0


def test_svg_is_an_element_with_a_title_and_png_has_twice_the_pixels(tmp_path):
    figure = charts.distance_lines([1.0, 0.5], None)
    text = charts.svg(figure)
    root = ET.fromstring(text)
    assert root.tag.endswith("svg") and root.get("aria-label") == "mIoU by distance to the key frame"
    assert charts.svg(charts.distance_lines([1.0, 0.5], None)) == text
    charts.save(figure, tmp_path / "chart.png")
    from PIL import Image

    with Image.open(tmp_path / "chart.png") as image:
        assert image.width == 2280


def test_without_matplotlib_the_command_to_install_it_is_named(monkeypatch):
    monkeypatch.setattr("mpvss._extras.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'mpvss\[eval\]'"):
        charts.class_bars({"a": 0.5}, None)
