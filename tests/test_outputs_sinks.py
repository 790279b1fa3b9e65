"""Laws of the sinks: all are whole before the first gets its name, none is left half, and a format is one line."""

from itertools import chain

import numpy as np
import pytest

from mpvss.options import OutputOptions
from mpvss.outputs import sinks
from mpvss.outputs.sink import Output
from mpvss.outputs.sinks import ENDINGS, SAVEABLE, SINKS, Sinks, output_paths
from mpvss.types import Segmentation
from mpvss.video import read
from test_video_reader import write_video

SIZE = (24, 32)


@pytest.fixture
def clip(tmp_path):
    return write_video(tmp_path / "clip.mp4", [np.full((*SIZE, 3), 9 * i, np.uint8) for i in range(3)])


class MeanSink(Output):
    """A format of somebody else: the mean id of every frame, one line each."""

    ending = ".means.txt"

    def __init__(self, path, info):
        super().__init__(path)

    def _begin(self, temporary):
        self.file = self._files.enter_context(temporary.open("w"))

    def write(self, result):
        self.file.write(f"{result.index} {result.labels.mean()}\n")


def run(clip, out, options, fail_at=None):
    with read(clip) as reader:
        paths = output_paths("clip", out, options)
        first = next(reader)
        with Sinks(reader, paths, options, ("a", "b", "c"), {}, None) as open_sinks:
            for frame in chain([first], reader):
                if frame.index == fail_at:
                    raise RuntimeError("it fails")
                result = Segmentation(frame, np.full(SIZE, frame.index, np.uint8), True)
                open_sinks.write(result, result if options.compare else None)
    return paths


@pytest.fixture
def with_means(monkeypatch):
    monkeypatch.setitem(SINKS, "means", MeanSink)
    monkeypatch.setitem(ENDINGS, "means", MeanSink.ending)
    monkeypatch.setattr(sinks, "SAVEABLE", (*SAVEABLE, "means"))


def test_a_format_is_a_class_in_the_dict(clip, tmp_path, with_means):
    paths = run(clip, tmp_path / "out", OutputOptions(save=("means",)))
    assert paths["means"].read_text() == "0 0.0\n1 1.0\n2 2.0\n"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["clip.json", "clip.means.txt"]


def test_what_can_be_saved_and_how_it_is_called_comes_from_the_dict():
    assert set(SAVEABLE) == set(SINKS) - {"meta", "compare"}
    assert {name: sink.ending for name, sink in SINKS.items()} == ENDINGS


@pytest.mark.parametrize("kind", SINKS)
@pytest.mark.parametrize("step", ["_begin", "write", "_finish", "finish", "close"])
def test_one_output_that_fails_leaves_nothing_half(clip, tmp_path, monkeypatch, kind, step):
    def fail(*_):
        raise RuntimeError("it fails")

    out = tmp_path / "out"
    monkeypatch.setattr(SINKS[kind], step, fail)
    with pytest.raises(RuntimeError, match="it fails"):
        run(clip, out, OutputOptions(save=SAVEABLE, compare=True))
    names = {path.name for path in out.iterdir()}
    assert not any(name.startswith(".") for name in names)
    assert "clip.json" not in names  # which speaks for the others
    if step != "close":
        assert names == set()


def test_an_error_of_the_run_leaves_nothing(clip, tmp_path):
    with pytest.raises(RuntimeError, match="it fails"):
        run(clip, tmp_path / "out", OutputOptions(save=SAVEABLE, compare=True), fail_at=2)
    assert list((tmp_path / "out").iterdir()) == []


def test_no_output_has_its_name_before_all_are_whole(clip, tmp_path, monkeypatch):
    finished = []
    for kind, sink in SINKS.items():
        if kind == "compare":
            continue

        def close(self, kind=kind, close=sink.close):
            assert len(set(finished)) == 4
            close(self)

        def finish(self, kind=kind, finish=sink.finish):
            finish(self)
            assert not self._pending.path.exists()
            finished.append(kind)

        monkeypatch.setattr(sink, "close", close)
        monkeypatch.setattr(sink, "finish", finish)
    paths = run(clip, tmp_path / "out", OutputOptions(save=SAVEABLE))
    assert finished[3] == "meta"
    assert all(path.exists() for path in paths.values())
