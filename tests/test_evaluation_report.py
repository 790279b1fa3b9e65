"""Laws of reports and comparisons: a page that needs nothing else, and intervals that follow from the runs."""

import base64
import io
import json
import math
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from helpers import moving_frames
from mpvss.cli import run as command
from mpvss.errors import ConfigError, DataError, OutputError
from mpvss.evaluation.compare import LEAST_UNITS, _video_units, _window_units
from mpvss.evaluation.compare import compare as compare_runs
from mpvss.evaluation.report import write_report
from mpvss.evaluation.run import evaluate
from mpvss.evaluation.run_directory import RunDirectory
from mpvss.metrics import ConfusionMatrix
from mpvss.options import EvalOptions

SIZE = (48, 64)
CLASSES = ("red & <b>", "green", "never")


def compare(*args, **kwargs):
    """The comparison as JSON holds it."""
    return compare_runs(*args, **kwargs).to_dict()


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def make_data(root, clips):
    for seed, (clip, count) in enumerate(clips.items()):
        stripes = np.random.default_rng(seed).integers(0, 2, 40)
        for frame in moving_frames(count, SIZE, seed=seed):
            save(root / "images" / clip / f"{frame.index}.png", frame.rgb)
            labels = np.broadcast_to(stripes[(np.arange(SIZE[1]) + 2 * frame.index) // 8], SIZE).astype(np.uint8)
            save(root / "labels" / clip / f"{frame.index}.png", labels)
    (root / "classes.txt").write_text("\n".join(CLASSES))
    return f"folder:{root}"


def enlarge(run, out, videos=1, windows=1):
    """A run with every video several times, or with the whole windows of each several times and its tail once."""
    header = json.loads((run / "run.json").read_text())
    lines = [json.loads(text) for text in (run / "videos.jsonl").read_text().splitlines()]
    for line in lines:
        whole, tail = divmod(line["frames"], 10)
        line["parts"] = line["parts"][:whole] * windows + line["parts"][whole:]
        line["frames"] = 10 * whole * windows + tail
    out.mkdir()
    (out / "run.json").write_text(json.dumps({**header, "clips": len(lines) * videos}))
    copies = [{**line, "clip": f"{line['clip']} {copy}"} for copy in range(videos) for line in lines]
    (out / "videos.jsonl").write_text("".join(json.dumps(line) + "\n" for line in copies))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Hold and DIS on four clips, and on one; predictions of a perfect program; an unfinished run."""
    folder = tmp_path_factory.mktemp("runs")
    data = {
        "many": make_data(folder / "data", {"a": 12, "b & c": 21, "d": 19, "e": 13}),
        "one": make_data(folder / "single", {"only": 33}),
    }
    for name, spec in data.items():
        for propagator in ("hold", "dis"):
            options = EvalOptions(data=spec, propagator=propagator, direction="forward", interval=5, oracle=True)
            evaluate(options, folder / f"{name}-{propagator}")
    evaluate(EvalOptions(data=data["many"], predictions=str(folder / "data" / "labels")), folder / "perfect")
    for propagator in ("hold", "dis"):
        enlarge(folder / f"many-{propagator}", folder / f"twelve-{propagator}", videos=3)
        enlarge(folder / f"one-{propagator}", folder / f"long-{propagator}", windows=4)
    lines = (folder / "many-dis" / "videos.jsonl").read_text().splitlines(keepends=True)
    (folder / "part").mkdir()
    (folder / "part" / "videos.jsonl").write_text("".join(lines[:2]))
    (folder / "part" / "run.json").write_text((folder / "many-dis" / "run.json").read_text())
    return folder


# Comparison


@pytest.mark.parametrize("data", ["twelve", "long"])
def test_differences_are_those_of_the_results(runs, data):
    found = compare(runs / f"{data}-hold", runs / f"{data}-dis")
    assert found["a"] == RunDirectory(runs / f"{data}-hold").result().to_dict()
    assert (found["unit"], found["units"]) == ("video" if data == "twelve" else "window", 12)
    assert found["frames_left_out"] == (0 if data == "twelve" else 3)
    for name, difference in found["difference"].items():
        assert difference["value"] == found["b"][name] - found["a"][name]
        if difference["method"] is not None:
            assert difference["low"] <= difference["high"]
    assert found["difference"]["miou"]["method"] == "BCa"
    assert found["difference"]["miou"]["low"] > 0  # DIS is better in every video
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@pytest.mark.parametrize(("data", "why"), [("many", "4 videos, needs 10"), ("one", "3 windows, needs 10")])
def test_few_units_make_no_interval_and_say_why(runs, data, why, capsys):
    assert command(["compare", str(runs / f"{data}-hold"), str(runs / f"{data}-dis"), "--json"]) == 0
    for difference in json.loads(capsys.readouterr().out)["difference"].values():
        assert (difference["low"], difference["high"], difference["method"]) == (None, None, None)
        assert difference["why"].endswith(f"needs {LEAST_UNITS}")
    assert command(["compare", str(runs / f"{data}-hold"), str(runs / f"{data}-dis")]) == 0
    out = capsys.readouterr().out
    assert f"none: {why}" in out
    assert ("the last 3 frames fill no window of 10" in out) == (data == "one")


def test_windows_are_equal_and_a_video_shorter_than_one_has_none(runs, tmp_path):
    for propagator in ("hold", "dis"):
        (line,) = RunDirectory(runs / f"one-{propagator}").lines()
        out = tmp_path / propagator
        enlarge(runs / f"one-{propagator}", out)
        for frames, units in ((21, 2), (7, 0)):  # of 21 frames the last window would be a single key frame
            line = {**line, "frames": frames, "parts": line["parts"][: math.ceil(frames / 10)]}
            (out / "videos.jsonl").write_text(json.dumps(line) + "\n")
            assert len(_window_units(RunDirectory(out)).counts) == units
    found = compare(tmp_path / "hold", tmp_path / "dis")
    assert (found["units"], found["frames_left_out"]) == (0, 7)
    assert found["difference"]["miou"]["why"] == "0 windows, needs 10"


def test_units_without_true_pixels_do_not_count(runs, tmp_path):
    for propagator in ("hold", "dis"):
        enlarge(runs / f"long-{propagator}", tmp_path / propagator)
        (line,) = RunDirectory(tmp_path / propagator).lines()
        for part in line["parts"][:3]:
            part["confusion"] = ConfusionMatrix(len(CLASSES)).state()
        (tmp_path / propagator / "videos.jsonl").write_text(json.dumps(line) + "\n")
    assert compare(tmp_path / "hold", tmp_path / "dis")["difference"]["miou"]["why"] == "9 windows, needs 10"


@pytest.mark.parametrize("data", ["many", "long"])
def test_every_unit_once_is_the_whole(runs, data):
    run = RunDirectory(runs / f"{data}-dis")
    (line, *_) = run.lines()
    if data == "many":
        units, expected = _video_units(run), run.result().to_dict()
    else:
        units, expected = _window_units(run), {"miou": whole_miou(line["parts"][:12])}
    for name, value in expected.items():
        if name in ("miou", "vc8", "vc16", "correct_vc8", "correct_vc16"):
            assert units.values(name, np.ones((1, len(units.counts))))[0] == pytest.approx(value, abs=1e-12)


def whole_miou(parts):
    total = ConfusionMatrix.from_state(parts[0]["confusion"])
    for part in parts[1:]:
        total.merge(ConfusionMatrix.from_state(part["confusion"]))
    return total.miou


def test_the_bootstrap_resembles_drawing_videos_one_by_one(runs):
    a, b = (_video_units(RunDirectory(runs / f"twelve-{name}")) for name in ("hold", "dis"))

    def miou(units, chosen):
        right, true, predicted = sum(units.counts[i, 0] for i in chosen)
        present = true > 0
        return np.mean(right[present] / (true + predicted - right)[present])

    random = np.random.default_rng(1)
    drawn = [random.integers(0, 12, 12) for _ in range(4000)]
    low, high = np.quantile([miou(b, chosen) - miou(a, chosen) for chosen in drawn], (0.025, 0.975))
    difference = compare(runs / "twelve-hold", runs / "twelve-dis")["difference"]["miou"]
    assert difference["method"] == "BCa"
    assert (difference["low"], difference["high"]) == pytest.approx((low, high), abs=0.02)


def test_percentiles_instead_of_bca_are_said(runs, capsys):
    assert command(["compare", str(runs / "twelve-dis"), str(runs / "twelve-dis")]) == 0
    assert "plain percentiles for mIoU, VC8" in capsys.readouterr().out


def test_without_scipy_there_are_figures_and_no_intervals(runs, monkeypatch, capsys):
    monkeypatch.setattr("mpvss._extras.find_spec", lambda name: None if name == "scipy" else name)
    assert command(["compare", str(runs / "twelve-hold"), str(runs / "twelve-dis")]) == 0
    assert "none: intervals need scipy: pip install 'mpvss[eval]'" in capsys.readouterr().out


def test_without_matplotlib_no_report_is_begun(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("mpvss._extras.find_spec", lambda _: None)
    data = ["--data", f"folder:{runs / 'single'}", "--predictions", str(runs / "single" / "labels")]
    assert command(["eval", *data, "--report", str(tmp_path / "report")]) == 2
    assert "pip install 'mpvss[eval]'" in capsys.readouterr().err
    assert not (tmp_path / "report").exists()
    with pytest.raises(ConfigError, match=r"charts need matplotlib.*pip install 'mpvss\[eval\]'"):
        write_report(runs / "many-dis", tmp_path / "report")


def test_a_comparison_repeats_itself_and_depends_on_the_seed(runs):
    pair = (runs / "twelve-hold", runs / "twelve-dis")
    assert compare(*pair, seed=3) == compare(*pair, seed=3)
    assert compare(*pair, seed=3)["difference"] != compare(*pair, seed=4)["difference"]


def test_a_run_does_not_differ_from_itself(runs):
    differences = compare(runs / "twelve-dis", runs / "twelve-dis")["difference"]
    assert (differences["miou"]) == {
        "value": 0,
        "low": 0,
        "high": 0,
        "method": "percentile",
        "why": "BCa is undefined here",
    }
    assert all(difference["value"] == 0 for difference in differences.values())


def test_runs_that_do_not_fit_are_errors(runs, tmp_path):
    with pytest.raises(DataError, match="different videos"):
        compare(runs / "many-hold", runs / "one-dis")
    with pytest.raises(DataError, match="2 of 4 videos are scored"):
        compare(runs / "part", runs / "many-dis")
    with pytest.raises(DataError, match="expected a run directory"):
        compare(runs / "nowhere", runs / "many-dis")
    evaluate(EvalOptions(data=make_davis(tmp_path / "davis")), tmp_path / "run")
    with pytest.raises(DataError, match="different data sets"):
        compare(tmp_path / "run", runs / "many-dis")
    with pytest.raises(ValueError, match="samples"):
        compare(runs / "many-hold", runs / "many-dis", samples=0)


def make_davis(root):
    for clip in ("cow", "dog"):
        for frame in moving_frames(6, SIZE, seed=len(clip) + (clip == "dog")):
            save(root / clip / "images" / f"{frame.index}.png", frame.rgb)
            mask = np.zeros(SIZE, np.uint8)
            mask[10:30, 40 - 2 * frame.index : 60 - 2 * frame.index] = 255
            save(root / clip / "masks" / f"{frame.index}.png", mask)
    return f"davis:{root}"


# Report


def page_of(path):
    """The page, after what every page has to be."""
    text = path.read_text()
    assert not re.search(r"<(link|script|iframe|object)|@import|url\((?!#)|https?://(?!www\.w3\.org/\d)", text)
    for source in re.findall(r'src="([^"]*)"', text):
        assert source.startswith("data:image/png;base64,")
        Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).load()
    for drawing in re.findall(r"<svg.*?</svg>", text, re.S):
        ET.fromstring(drawing)
    return text


@pytest.mark.parametrize("baseline", [None, "many-hold"])
def test_the_page_needs_nothing_else(runs, tmp_path, baseline):
    page = write_report(runs / "many-dis", tmp_path / "report", baseline=None if baseline is None else runs / baseline)
    text = page_of(page)
    assert "red &amp; &lt;b&gt;" in text
    assert "<b>" not in text
    assert "b &amp; c" in text
    assert f"{RunDirectory(runs / 'many-dis').result().miou:.4f}" in text
    assert ("paired bootstrap over 4 videos" in text) == (baseline is not None)
    assert "Without true pixels here: never." in text
    names = {path.name for path in page.parent.iterdir()}
    assert {"index.html", "classes.png", "distance.png", "time-01.png", "time-04.png", "worst-1.png"} <= names
    for path in page.parent.glob("*.png"):
        Image.open(path).load()


def test_the_worst_frames_show_image_truth_prediction_and_error(runs, tmp_path):
    write_report(runs / "one-hold", tmp_path / "report")
    lines = list(RunDirectory(runs / "one-hold").lines())
    scores = lines[0]["timeline"]["score"]
    worst = min(range(len(scores)), key=scores.__getitem__)
    assert lines[0]["worst"][0] == {"index": worst, "score": scores[worst]}
    picture = np.asarray(Image.open(tmp_path / "report" / "worst-1.png")).astype(int)
    image, truth, found, error = (picture[:, 304 * i : 304 * i + 300] for i in range(4))
    rgb = moving_frames(33, SIZE, seed=0)[worst].rgb
    assert abs(image.mean() - rgb.mean()) < 2
    wrong = (error == (230, 60, 40)).all(2)
    different = (truth != found).any(2)
    assert wrong.mean() == pytest.approx(different.mean(), abs=0.05)
    assert different.mean() > 0.1


def test_a_perfect_run_has_no_worst_frames(runs, tmp_path):
    text = page_of(write_report(runs / "perfect", tmp_path / "report"))
    assert "Worst frames" not in text
    assert "label files in labels" in text


def test_davis_is_shown_by_j(tmp_path):
    result = evaluate(EvalOptions(data=make_davis(tmp_path / "davis"), interval=3), tmp_path / "run")
    text = page_of(write_report(tmp_path / "run", tmp_path / "report"))
    assert f"<dt>J</dt><dd>{result.j:.4f}" in text


def test_report_errors(runs, tmp_path):
    with pytest.raises(DataError, match="2 of 4 videos"):
        write_report(runs / "part", tmp_path / "report")
    with pytest.raises(DataError, match="different videos"):
        write_report(runs / "many-dis", tmp_path / "report", baseline=runs / "one-dis")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="expected to be able to write"):
        write_report(runs / "many-dis", tmp_path / "file")


# Command line


def test_command_line(runs, tmp_path, capsys):
    assert command(["compare", str(runs / "many-hold"), str(runs / "many-dis"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == compare(runs / "many-hold", runs / "many-dis")
    assert command(["compare", str(runs / "twelve-hold"), str(runs / "twelve-dis")]) == 0
    assert "2000 draws of 12 videos" in capsys.readouterr().out
    assert command(["compare", str(runs / "many-hold"), str(runs / "one-dis")]) == 2
    assert capsys.readouterr().err.startswith("mpvss: ")
    options = ["--oracle", "--propagator", "dis", "--direction", "forward", "--interval", "5", "-q"]
    reports = ["--report", str(tmp_path / "report"), "--baseline", str(runs / "many-hold")]
    assert command(["eval", "--data", f"folder:{runs / 'data'}", *options, *reports]) == 0
    page_of(tmp_path / "report" / "index.html")
