"""Progress: a line every half minute where there is no terminal, by a clock that the test turns."""

import logging
from contextlib import contextmanager
from unittest.mock import Mock

import pytest

from mpvss.progress import progress


def lines(caplog, total, done=0, steps=100, seconds=1.0):
    now = [0.0]
    with (
        caplog.at_level(logging.INFO, "mpvss.progress"),
        progress("clip", total, done=done, clock=lambda: now[0]) as advance,
    ):
        for _ in range(steps):
            now[0] += seconds
            advance("a result")
    return [record.getMessage() for record in caplog.records]


def test_a_line_every_half_minute_says_name_share_and_rate(caplog):
    assert lines(caplog, 200) == [
        "clip: 30 of 200 frames (15 %), 1.0 frames/s, 170 s left",
        "clip: 60 of 200 frames (30 %), 1.0 frames/s, 140 s left",
        "clip: 90 of 200 frames (45 %), 1.0 frames/s, 110 s left",
    ]


@pytest.mark.parametrize(("total", "text"), [(None, "clip: 45 frames, 0.5 frames/s"), (10, "45 of 10 frames (100 %)")])
def test_a_number_that_nobody_knows_or_that_was_wrong(caplog, total, text):
    assert text in lines(caplog, total, steps=50, seconds=2.0)[-1]


def test_a_number_that_is_known_later(caplog):
    now = [0.0]
    with (
        caplog.at_level(logging.INFO, "mpvss.progress"),
        progress("batch", None, unit="videos", clock=lambda: now[0]) as advance,
    ):
        now[0] += 30
        advance(total=4)
    assert [record.getMessage() for record in caplog.records] == [
        "batch: 1 of 4 videos (25 %), 0.0 videos/s, 90 s left"
    ]


def test_a_bar_learns_the_number_later(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress("batch", None, unit="videos") as advance:
        advance(total=4)
    assert "1/4" in capsys.readouterr().err


def test_what_an_earlier_run_did_counts_as_done_but_not_for_the_rate(caplog):
    assert lines(caplog, 200, done=100, steps=30) == ["clip: 130 of 200 frames (65 %), 1.0 frames/s, 70 s left"]


def test_quiet_and_quick_work_say_nothing(caplog):
    assert lines(caplog, 200, steps=29) == []
    with progress("clip", 1, quiet=True) as advance:
        advance()


def test_a_bar_in_a_terminal(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # what rich takes for a terminal
    with progress("cl[ip]", 3) as advance:
        advance()
    err = capsys.readouterr().err
    assert "cl[ip]" in err
    assert "1/3" in err
    assert "frames/s" in err


def test_a_notebook_without_widgets_gets_lines_and_no_advice(monkeypatch, caplog, recwarn):
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr("mpvss.progress.find_spec", lambda name: None)
    assert len(lines(caplog, 200)) == 3
    assert not [warning for warning in recwarn if "ipywidgets" in str(warning.message)]


def test_a_notebook_with_widgets_gets_a_bar(monkeypatch, caplog):
    asked = []

    @contextmanager
    def bar(console, unit):
        asked.append((console.is_jupyter, unit))
        yield Mock()

    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr("mpvss.progress.find_spec", lambda name: name)
    monkeypatch.setattr("mpvss.progress._bar", bar)
    assert lines(caplog, 200) == []
    assert asked == [(True, "frames")]
