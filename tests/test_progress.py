"""Progress: a line every half minute where there is no terminal, by a clock that the test turns."""

import logging
import re
from contextlib import contextmanager
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

import mpvss.progress as progress_module
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
    with progress("batch", None, unit="videos", quiet=False) as advance:
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
    with progress("cl[ip]", 3, quiet=False) as advance:
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
    def bar(console):
        asked.append(console.is_jupyter)
        yield Mock()

    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr("mpvss.progress.find_spec", lambda name: name)
    monkeypatch.setattr("mpvss.progress._bar", bar)
    assert lines(caplog, 200) == []
    assert asked == [True]


def test_a_bar_within_another_shares_its_terminal(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress("eval", 2, quiet=False) as outer:
        outer()
        with progress("weights", 3, unit="MB", quiet=False) as inner:
            inner(steps=3)
    err = capsys.readouterr().err
    assert "1/2" in err
    assert "3/3" in err
    assert "MB/s" in err
    assert not progress_module._bars


def test_nobody_who_did_not_ask_sees_progress(monkeypatch, capsys, caplog):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress("bench", 2) as advance:
        advance()
    assert capsys.readouterr().err == ""
    assert caplog.records == []


@pytest.mark.parametrize("where", ["terminal", "file", "quiet"])
def test_no_bar_or_dict_of_a_library_leaks(where, tmp_path, monkeypatch, capfd):
    """The libraries print these where they load a model; tqdm's bars have a per cent sign and a vertical bar."""
    from mpvss import cli
    from mpvss.segmentors import load_segmentor
    from mpvss.training.tasks import save_segmentor
    from test_segmentors import _model

    _model("mask2former").save_pretrained(tmp_path / "first")
    capfd.readouterr()
    save_segmentor(load_segmentor(tmp_path / "first"), tmp_path / "model")
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(tmp_path / "a.png")
    if where == "terminal":
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    options = ["--quiet"] if where == "quiet" else []
    arguments = ["segment", str(tmp_path / "a.png"), "-o", str(tmp_path / "out"), "--model", str(tmp_path / "model")]
    assert cli.run([*arguments, *options]) == 0
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capfd.readouterr().err).replace("\r", "\n").splitlines()
    assert not [line for line in lines if "%|" in line or "it/s" in line or line.lstrip().startswith("{")]
    if where == "quiet":
        assert [line for line in lines if "no preprocessor_config.json" not in line] == []  # of the first loading
