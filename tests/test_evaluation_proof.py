"""Laws of the proof on one's own video: its figures are those of separate runs, and the sides take turns."""

import json
from collections import Counter
from fractions import Fraction
from itertools import islice

import numpy as np
import pytest
from PIL import Image

from helpers import ColourSegmentor, moving_frames
from mpvss import cli
from mpvss.errors import SourceError
from mpvss.evaluation import charts, proof
from mpvss.metrics import ConfusionMatrix, Flicker
from mpvss.motion.dis import Dis, Hold
from mpvss.motion.propagators import make_propagator
from mpvss.options import BenchOptions
from mpvss.outputs import Mp4Writer
from mpvss.segmenter import VideoSegmenter
from mpvss.video import read
from test_video_reader import write_video


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("proof") / "clip.mp4", [frame.rgb for frame in moving_frames(30)])


@pytest.fixture(scope="module")
def result(video):
    return proof.measure(VideoSegmenter(ColourSegmentor(), Dis()), str(video), BenchOptions(frames=27))


def labels_of(segmenter, video, frames):
    with read(video) as reader:
        return [
            each.labels for each in segmenter.stream(frame for frame, _ in zip(reader, range(frames), strict=False))
        ]


def test_figures_are_those_of_separate_runs(result, video):
    expected = labels_of(VideoSegmenter(ColourSegmentor(), None), video, 27)
    with read(video) as reader:
        frames = list(islice(reader, 27))
    assert [row.interval for row in result.rows] == [1, 5, 10, 20]
    assert [row.key_frames for row in result.rows] == [27, 6, 3, 2]
    for row in result.rows:
        propagator = None if row.interval == 1 else Dis()
        own = labels_of(VideoSegmenter(ColourSegmentor(), propagator, interval=row.interval), video, 27)
        flicker, matrix = Flicker(), ConfusionMatrix(3)
        for frame, labels, per_frame in zip(frames, own, expected, strict=True):
            flicker.update(frame.rgb, labels)
            matrix.update(labels, per_frame)
        assert row.flicker == pytest.approx(flicker.value)
        assert row.miou == pytest.approx(matrix.miou)
        assert row.agreement == pytest.approx(np.mean(np.array(own) == np.array(expected)))
        assert row.seconds > 0
    assert result.rows[0].agreement == 1
    assert 0.5 < result.rows[1].agreement < 1


def test_what_was_measured_is_said(result):
    assert (result.frames, result.whole, result.size) == (27, False, (64, 96))
    assert result.seconds_of_video == pytest.approx(26 / 25)
    assert result.options["direction"] == "both"
    assert "the first 27 frames (1.0 s), 96x64" in result.title
    values = json.loads(json.dumps(result.to_dict()))
    assert [row["interval"] for row in values["rows"]] == [1, 5, 10, 20]
    assert {"processor", "cores", "threads"} <= set(values["machine"])


def test_every_frame_is_taken_by_all_sides_before_the_next(video, monkeypatch):
    order = []
    take = proof._Side.take

    def recorded(side, work):
        order.append(side.interval)
        take(side, work)

    monkeypatch.setattr(proof._Side, "take", recorded)
    proof.measure(VideoSegmenter(ColourSegmentor(), Hold()), str(video), BenchOptions(interval=4))
    assert order == [1, 4] * (len(order) // 2)


def test_the_model_runs_as_often_as_the_key_frames_say(video):
    segmentor = ColourSegmentor()
    found = proof.measure(VideoSegmenter(segmentor, Hold()), str(video), BenchOptions(frames=21))
    assert segmentor.calls == sum(row.key_frames for row in found.rows) + 1  # one to warm up


def test_results_that_wait_are_few(video, monkeypatch):
    most = Counter()
    after = proof._Comparison._compare

    def watched(self):
        most["waiting"] = max(most["waiting"], *(len(side.waiting) for side in self._sides))
        after(self)

    monkeypatch.setattr(proof._Comparison, "_compare", watched)
    proof.measure(VideoSegmenter(ColourSegmentor(), Hold()), str(video), BenchOptions(direction="both"))
    assert 0 < most["waiting"] <= 21


def test_motion_vectors_of_the_video_are_used(tmp_path):
    clip = tmp_path / "clip.mp4"
    with Mp4Writer(clip, (64, 96), Fraction(1, 25)) as writer:  # H.264 without B frames
        for frame in moving_frames(8):
            writer.append(frame.rgb, Fraction(frame.index, 25))
    codec, asked = make_propagator("codec"), []
    flow = type(codec).flow_along
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(codec), "flow_along", lambda *a, **b: asked.append(1) or flow(*a, **b))
        proof.measure(VideoSegmenter(ColourSegmentor(), codec), str(clip), BenchOptions(interval=4))
    assert asked


def test_the_whole_of_a_short_video(video):
    found = proof.measure(VideoSegmenter(ColourSegmentor(), Hold()), str(video))
    assert (found.frames, found.whole) == (30, True)
    assert "all 30 frames" in found.title


def test_an_image_too_small_for_flow_has_no_flicker(tmp_path):
    small = write_video(tmp_path / "small.mp4", [frame.rgb for frame in moving_frames(6, (12, 16))])
    found = proof.measure(VideoSegmenter(ColourSegmentor(), Hold()), str(small), BenchOptions(interval=2))
    assert [row.flicker for row in found.rows] == [None, None]
    assert proof.table(found)[1][5] == "-"


def test_refusals(video):
    with pytest.raises(SourceError, match=r"expected more than 20 frames.*got 20; choose a longer video"):
        proof.measure(VideoSegmenter(ColourSegmentor(), Hold()), str(video), BenchOptions(frames=20))
    with pytest.raises(ValueError, match="expected a segmenter with a propagator"):
        proof.measure(VideoSegmenter(ColourSegmentor(), None), str(video))


def test_files_and_picture(result, tmp_path):
    paths = proof.save(result, tmp_path / "out")
    assert [path.name for path in paths] == ["clip.bench.json", "clip.bench.png"]
    assert json.loads(paths[0].read_text()) == result.to_dict()
    with Image.open(paths[1]) as image:
        assert image.width > 1000
    figure = charts.bar_panels("title", ["per frame", "k = 5"], {"frames a second": [1.0, 3.0], "flicker": [2.0, 0.0]})
    assert [axes.get_xlabel() for axes in figure.axes] == ["frames a second", "flicker"]
    assert [len(axes.patches) for axes in figure.axes] == [2, 2]


@pytest.fixture
def loaded(monkeypatch):
    """The command's model is the colour segmentor."""
    given = []

    def load(model, **values):
        given.append((model, values))
        return VideoSegmenter(ColourSegmentor(), Dis())

    monkeypatch.setattr(VideoSegmenter, "from_pretrained", load)
    return given


def test_the_command_makes_table_and_picture(video, loaded, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    arguments = ["bench", str(video), "--model", "mine", "--motion", "direct", "--frames", "25", "-q"]
    assert cli.run(arguments) == 0
    assert loaded[0][0] == "mine"
    assert loaded[0][1]["motion"] == "direct"
    lines = capfd.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[2:6]] == ["per frame", "k = 5", "k = 10", "k = 20"]
    assert lines[6] == "the video goes on: --frames takes more of it"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"clip.bench.json", "clip.bench.png"}
    assert cli.run([*arguments, "--json", "--out", "other"]) == 0
    assert json.loads(capfd.readouterr().out)["frames"] == 25


def test_the_command_without_matplotlib_leaves_the_picture_out(video, loaded, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("mpvss._extras.find_spec", lambda _: None)
    assert cli.run(["bench", str(video), "--interval", "3", "-o", str(tmp_path)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["clip.bench.json"]
    assert "pip install 'mpvss[eval]'" in capfd.readouterr().err


@pytest.mark.parametrize("flags", [("--arch", "r50"), ("--size", "64x64"), ("--source", "clip.mp4")])
def test_options_that_do_not_go_with_a_video(video, flags, capfd):
    assert cli.run(["bench", str(video), *flags]) == 2
    assert f"{flags[0]} goes without a VIDEO" in capfd.readouterr().err
