"""Laws of the benchmark: its figures follow from its seconds, and what it compares gives the same labels."""

import dataclasses
import json
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import DetrConfig, MaskFormerConfig, MaskFormerForInstanceSegmentation, ResNetConfig

from helpers import ColourSegmentor, moving_frames
from mpvss import cli
from mpvss.cli import evaluate
from mpvss.convert.architectures import Model
from mpvss.convert.cost import cost, count_gmac
from mpvss.engine.decode import class_scores, decode
from mpvss.engine.schedule import CutDetector
from mpvss.engine.state import WarpedPrediction
from mpvss.errors import MpvssError, OptionError, OutputError, SourceError
from mpvss.evaluation import benchmark, contest, floor, library
from mpvss.evaluation.bench_results import SizeResult, ratios
from mpvss.evaluation.benchmark import resolve
from mpvss.evaluation.contest import PlainRun
from mpvss.evaluation.library import FixedActivity, Library, fixed_class_logits, plain_decode, segformer_b0
from mpvss.evaluation.machine import synthetic_video
from mpvss.evaluation.results import EvalResult
from mpvss.evaluation.rounds import back_and_forth
from mpvss.motion import QueryFlow
from mpvss.options import BenchOptions
from mpvss.outputs import LabelReader
from mpvss.segmenter import VideoSegmenter
from mpvss.segmentors import InputRule, load_segmentor
from mpvss.segmentors.huggingface import HuggingFaceSegmentor
from mpvss.types import Frame, Geometry
from mpvss.video import read
from test_motion_network import TINY
from test_video_reader import write_video

SIZE = (64, 96)
RATIOS = {
    "library_per_frame_over_ours",
    "library_key_over_ours_key",
    "non_key_share_of_library_frame",
    "ours_per_frame_over_ours",
    "library_run_over_ours",
    "ours_per_frame_run_over_ours",
    "segformer_b0_run_over_ours",
    "ours_run_over_floor",
}
RUNS = ("library", "ours_per_frame", "ours", "segformer_b0", "floor")


def bench(options):
    """The result as JSON holds it."""
    return benchmark.bench(options).to_dict()


def tiny_model(classes=3, queries=30, seed=0):
    resnet = ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 8, 8, 8],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    detr = DetrConfig(
        num_queries=queries,
        d_model=32,
        encoder_layers=0,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        decoder_ffn_dim=32,
    )
    torch.manual_seed(seed)
    model = MaskFormerForInstanceSegmentation(
        MaskFormerConfig(
            backbone_config=resnet,
            decoder_config=detr,
            fpn_feature_size=32,
            mask_feature_size=16,
            id2label={number: f"class {number}" for number in range(classes)},
        )
    )
    with torch.no_grad():  # the library's start is nearly the same for all queries
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
        model.model.transformer_module.queries_embedder.weight.normal_(std=3)
        model.class_predictor.weight.normal_(std=3)
    return model.eval()


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": {"shortest_edge": SIZE[0]}}))
    return folder


@pytest.fixture(scope="module")
def measured(directory):
    """One measurement with everything in it, and whole runs."""
    options = BenchOptions(model=str(directory), size=SIZE, interval=3, frames=4, repeats=2, runs=1, threads=1)
    return benchmark.bench(options)


@pytest.fixture(scope="module")
def result(measured):
    """The same as JSON holds it."""
    return measured.to_dict()


def test_the_ratios_are_those_of_the_seconds(result):
    seconds, run = result["seconds"], result["seconds"]["run"]
    found = result["ratios"]
    assert set(found) == RATIOS
    assert found["library_per_frame_over_ours"] == seconds["library_frame"] / seconds["ours_interval"]
    assert found["library_key_over_ours_key"] == seconds["library_frame"] / seconds["ours_key"]
    assert found["non_key_share_of_library_frame"] == seconds["ours_non_key"] / seconds["library_frame"]
    assert found["ours_per_frame_over_ours"] == seconds["ours_frame"] / seconds["ours_interval"]
    for name in ("library", "ours_per_frame", "segformer_b0"):
        assert found[f"{name}_run_over_ours"] == run[name] / run["ours"]
    assert found["ours_run_over_floor"] == run["ours"] / run["floor"]


def test_the_result_has_the_documented_keys_and_is_json(result):
    assert set(result) == {
        "seconds", "gmac", "classical_flow", "sgemm", "peak_mib", "overlay", "sizes", "accuracy", "ratios",
        "all_active", "note", "options", "machine", "figures"
    }  # fmt: skip
    assert set(result["seconds"]["stages"]) == {"key", "propagate", "decode", "read", "write"}
    assert set(result["seconds"]["run"]) == set(RUNS)
    assert set(result["gmac"]) == {"key", "non_key", "per_frame"}
    assert set(result["classical_flow"]) == {"flows_per_frame", "seconds"}
    assert min(result["classical_flow"].values()) > 0
    assert set(result["sgemm"]["share"]) == {"library_frame", "ours_key", "ours_non_key", "ours_interval"}
    assert {"processor", "cores", "threads", "torch", "commit"} <= set(result["machine"])
    assert result["machine"]["threads"] == 1
    assert result["options"]["propagator"] == "dis"
    assert result["options"]["network"] == list(SIZE)
    assert result["all_active"] is None
    assert 50 < result["peak_mib"] < 10_000
    assert json.loads(json.dumps(result)) == result


def test_seconds_are_positive_and_the_interval_is_its_frames(directory, monkeypatch):
    monkeypatch.setattr(benchmark, "medians", lambda rounds: rounds[0])
    seconds = bench(BenchOptions(model=str(directory), size=SIZE, interval=4, repeats=1, runs=0))["seconds"]
    assert seconds["ours_key"] + 3 * seconds["ours_non_key"] == pytest.approx(4 * seconds["ours_interval"])
    stages = [seconds["stages"][name] for name in ("key", "propagate", "decode")]
    assert min(stages) > 0
    assert sum(stages) <= seconds["ours_interval"]
    assert seconds["library_forward"] + seconds["library_decode"] == pytest.approx(seconds["library_frame"])


def test_what_was_not_run_is_null(directory):
    found = bench(BenchOptions(model=str(directory), size=SIZE, propagator="none", repeats=1, runs=0))
    assert found["options"]["interval"] == 1
    assert found["seconds"]["run"] == dict.fromkeys(RUNS)
    assert found["seconds"]["stages"]["write"] is None
    nothing = {name for name, value in found["ratios"].items() if value is None}
    assert nothing == {name for name in RATIOS if "run" in name} | {"non_key_share_of_library_frame"}
    assert found["peak_mib"] is None
    assert found["gmac"]["non_key"] is None
    assert found["classical_flow"] is None
    assert found["sgemm"]["share"]["ours_non_key"] is None


def test_ratios_of_nothing():
    assert ratios({}) == dict.fromkeys(RATIOS)


def test_random_weights_are_measured_with_fixed_activity_and_all_active(monkeypatch):
    config = replace(TINY, num_queries=30, query_width=32)
    built = Model(tiny_model(16, 30), QueryFlow(config).eval())
    monkeypatch.setattr(library, "build", lambda *_: built)
    found = bench(BenchOptions(arch="tiny", classes=16, size=SIZE, repeats=1, runs=0))
    assert (found["options"]["propagator"], found["options"]["motion"]) == ("query", "direct")
    assert (found["options"]["direction"], found["options"]["interval"]) == ("forward", 5)
    assert "20 queries" in found["note"]
    assert "12 classes" in found["note"]
    compared, times = found["all_active"]["ratios"], found["all_active"]["seconds"]
    assert compared["library_per_frame_over_ours"] == found["seconds"]["library_frame"] / times["ours_interval"]
    assert compared["ours_per_frame_over_ours"] is None


# --- what is compared ---------------------------------------------------------------------------------------------


def differs_but_for_ties(plain, ours, views, geometry):
    """Share of pixels that differ although one score is clearly the largest."""
    second, best = np.sort(class_scores(views, geometry), axis=0)[-2:]
    clear = (best - second) > 1e-4 * best
    return float(((plain != ours) & clear).mean()), float(clear.mean())


def random_logits(queries, classes, grid, seed):
    random = np.random.default_rng(seed)
    masks = random.standard_normal((queries, *grid)).astype(np.float32) * 5
    return random.standard_normal((queries, classes + 1)).astype(np.float32) * 3, masks


def plainly(classes, masks, geometry):
    return plain_decode(torch.from_numpy(classes), torch.from_numpy(masks), geometry)


@pytest.mark.parametrize("size", [SIZE, (62, 90)])
def test_plain_labels_are_ours(size):
    padded = tuple(side + -side % 32 for side in size)
    classes, masks = random_logits(7, 5, (padded[0] // 4, padded[1] // 4), seed=1)
    geometry = Geometry(size, size, padded)
    views = [WarpedPrediction(classes, masks)]
    different, clear = differs_but_for_ties(
        plainly(classes, masks, geometry), decode(views, geometry)[0], views, geometry
    )
    assert different == 0
    assert clear > 0.9


def test_plain_labels_have_the_size_of_the_source():
    geometry = Geometry((90, 150), (30, 50), (32, 64))
    classes, masks = random_logits(4, 3, (8, 16), seed=2)
    plain, ours = plainly(classes, masks, geometry), decode([WarpedPrediction(classes, masks)], geometry)[0]
    assert plain.shape == (90, 150)
    assert plain.dtype == np.uint8
    assert (plain != ours).mean() < 1e-3


def test_the_library_and_ours_give_the_same_labels(directory):
    ours = VideoSegmenter.from_pretrained(str(directory), device="cpu")
    theirs = Library(load_segmentor(directory), ours.rule)
    assert all(p.is_contiguous() for p in theirs.segmentor.model.parameters())
    frame = moving_frames(1, SIZE)[0]
    labels = ours.per_frame().session().push(frame)[0].labels
    found, geometry = theirs.forward(frame)
    views = [WarpedPrediction(found.class_logits[0].numpy(), found.mask_logits[0].numpy())]
    different, clear = differs_but_for_ties(theirs(frame), labels, views, geometry)
    assert different == 0
    assert clear > 0.9
    assert len(np.unique(labels)) > 1


def test_fixed_activity_has_exactly_twenty_queries_and_twelve_classes():
    chance = fixed_class_logits(100, 124).double().softmax(1)
    winner = chance.argmax(1)
    active = winner != 124
    assert int(active.sum()) == 20
    assert len(winner[active].unique()) == 12
    assert torch.allclose(chance[active].amax(1), torch.tensor(0.95, dtype=torch.float64))
    assert (1 - chance[~active][:, -1]).max() < 2e-6
    assert (chance[~active][:, :-1].sum(1)).min() > 1e-7


def test_fixed_activity_of_small_models_uses_all_they_have():
    winner = fixed_class_logits(5, 3).argmax(1)
    assert (winner < 3).all()
    assert len(winner.unique()) == 3


def test_fixed_activity_runs_the_network_and_keeps_its_masks():
    model = tiny_model(16)
    plain = HuggingFaceSegmentor(model, InputRule())
    image = moving_frames(1, SIZE)[0].rgb[None].copy()
    fixed, own = FixedActivity(plain)(image), plain(image)
    assert np.array_equal(fixed.mask_logits, own.mask_logits)
    assert np.array_equal(fixed.queries, own.queries)
    assert np.array_equal(fixed.class_logits[0], fixed_class_logits(30, 16).numpy())


def test_the_peer_labels_every_pixel_of_the_source():
    label = segformer_b0(7, InputRule(short_side=48))
    labels = label(moving_frames(1, SIZE)[0])
    assert labels.shape == SIZE
    assert labels.dtype == np.uint8
    assert labels.max() < 7


def test_peers_write_the_files_that_ours_writes(tmp_path):
    source = write_video(tmp_path / "clip.mp4", [frame.rgb for frame in moving_frames(4, SIZE)])
    run = PlainRun(ColourSegmentor(), lambda frame: np.full(frame.size, frame.index % 3, np.uint8))
    found = benchmark._process(run, BenchOptions(model="any", frames=3), str(source), tmp_path / "out")
    assert found.frames == found.key_frames == 3
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "clip.json", "clip.labels.mkv", "clip.overlay.mp4"
    }  # fmt: skip
    written = LabelReader(tmp_path / "out" / "clip.labels.mkv")
    assert [int(labels[0, 0]) for _, _, labels, _ in written] == [0, 1, 2]


# --- counting and pictures ----------------------------------------------------------------------------------------


def test_multiply_adds_of_plain_decoding_are_those_of_the_cost_command():
    geometry = Geometry((50, 70), (50, 70), (64, 96))
    counted = [
        count_gmac(lambda k=classes: plain_decode(torch.zeros(10, k + 1), torch.zeros(10, 16, 24), geometry))
        for classes in (3, 7)
    ]
    assert counted[1] - counted[0] == pytest.approx(10 * 4 * 50 * 70 / 1e9)
    assert counted[0] == pytest.approx((10 * 3 * 50 * 70 + 4 * 10 * 64 * 96) / 1e9)


@pytest.mark.soak
def test_multiply_adds_of_an_arch_are_those_of_the_cost_command():
    size = (64, 96)
    counted = bench(BenchOptions(arch="r50", size=size, repeats=1, runs=0))["gmac"]
    published = cost("r50", size).to_dict()["gmac"]
    assert counted == pytest.approx(published, rel=0.01)


def test_the_video_is_the_same_every_time_and_moves_without_cuts(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        synthetic_video(tmp_path / name, SIZE, 12)
    with read(tmp_path / "a.mp4") as reader, read(tmp_path / "b.mp4") as other:
        frames, again = list(reader), list(other)
    # x264 does not always make the same bytes of the same pictures.
    assert len(again) == len(frames)
    assert max(np.abs(a.rgb.astype(int) - b.rgb).mean() for a, b in zip(frames, again, strict=True)) < 0.5
    assert [frame.size for frame in frames] == [SIZE] * 12
    steps = [np.abs(now.rgb.astype(int) - then.rgb).mean() for then, now in pairwise(frames)]
    assert min(steps) > 0.5
    cuts = CutDetector()
    assert not any(cuts.is_cut(frame.rgb) for frame in frames)


def test_frames_are_played_back_and_forth():
    frames = [Frame(index, Fraction(index), np.zeros((1, 1, 3), np.uint8)) for index in range(3)]
    order = back_and_forth(frames)
    assert [next(order).index for _ in range(9)] == [0, 1, 2, 1, 0, 1, 2, 1, 0]


# --- the floor, other sizes, accuracy, without torch ---------------------------------------------------------------


def psnr(images, expected):
    error = floor.SquaredError()
    for pair in zip(images, expected, strict=True):
        error.add(*pair)
    return error.psnr


def test_the_floor_keeps_every_frame_and_its_image(tmp_path):
    frames = moving_frames(9, SIZE)
    source = write_video(tmp_path / "clip.mp4", [frame.rgb for frame in frames])
    assert floor.run_floor(str(source), tmp_path / "floor.mp4", 7) > 0
    with read(source) as reader, read(tmp_path / "floor.mp4") as copied:
        before, after = list(reader), list(copied)
    assert len(after) == 7
    assert psnr([frame.rgb for frame in after], [frame.rgb for frame in before[:7]]) > 25


def test_the_overlay_is_measured_against_what_was_drawn(result):
    overlay = result["overlay"]
    assert overlay["psnr"] > 25
    assert min(overlay["bytes"], overlay["floor_bytes"]) > 500
    assert overlay["psnr_luma"] > overlay["psnr"]
    black = np.zeros((8, 8, 3), np.uint8)
    assert psnr([black], [black]) == np.inf
    assert psnr([black], [black + 255]) == pytest.approx(0)
    assert psnr([black, black], [black, black + np.uint8(1)]) == pytest.approx(48.13 + 3.01, abs=0.01)


def test_figures_have_the_names_of_what_was_measured(measured):
    size = SizeResult((1080, 1920), {"ours_frame": 6.0, "ours_interval": 2.0, "run": 5.0, "floor": 4.0}, None, None)
    figures = replace(measured, sizes=[size]).figures()
    assert figures["own per frame / propagated, dis k=3 both, 1920x1080"] == 3
    assert figures["whole run: ours / decoding and encoding alone, 1920x1080"] == 1.25
    model = measured.options["model"]
    ratio = measured.ratios["library_per_frame_over_ours"]
    assert figures[f"library's {model} per frame / ours, dis k=3 both, 96x64"] == ratio
    assert len(figures) == 8


def test_the_plain_benchmark_measures_larger_sizes_as_well(directory, monkeypatch):
    monkeypatch.setattr(benchmark, "_COMPACT_SIZE", SIZE)
    monkeypatch.setattr(benchmark, "_LARGER_SIZES", ((96, 128),))
    found = bench(BenchOptions(model=str(directory), interval=2, repeats=1, runs=1, frames=3))
    (size,) = found["sizes"]
    assert size["size"] == [96, 128]
    assert min(size["seconds"].values()) > 0
    assert size["overlay"]["psnr"] > 15
    assert found["options"]["size"] == list(SIZE)
    assert not benchmark._other_sizes(resolve(BenchOptions(size=(48, 64))))
    assert not benchmark._other_sizes(resolve(BenchOptions(source="clip.mp4")))


def test_accuracy_stands_beside(directory):
    options = resolve(BenchOptions(model=str(directory), data="folder:clips", interval=5))
    figures = {"miou": 0.5, "vc8": None, "flicker": 0.1}
    asked = []

    def scored(each, folder):
        asked.append(each)
        nothing = dict.fromkeys(field.name for field in dataclasses.fields(EvalResult))
        return EvalResult(**nothing | {"iou": {}, "videos": 1, "frames": 11, "seconds": {}, "options": {}} | figures)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mpvss.evaluation.run.evaluate", scored)
        found = benchmark._accuracy(options, with_library=True)
    assert found == dict.fromkeys(("ours_per_frame", "ours", "library"), figures)
    assert [each.propagator for each in asked] == ["none", "auto", "none"]
    assert [each.fast for each in asked] == [True, True, False]
    assert {each.model for each in asked} == {str(directory)}


def test_without_torch_ours_alone_is_measured(directory, monkeypatch):
    for module in (contest, benchmark):
        monkeypatch.setattr(module, "has_torch", lambda: False)
    found = benchmark.bench(BenchOptions(model=str(directory), size=SIZE, interval=2, repeats=1, runs=1, frames=3))
    assert found.seconds.library_frame is None
    assert found.seconds.run["library"] is None
    assert found.seconds.run["ours"] > 0
    assert found.ratios["ours_per_frame_over_ours"] > 0
    assert "pip install 'mpvss[torch]'" in found.note
    assert json.loads(json.dumps(found.to_dict()))["sgemm"]["gmac_per_second"] is None
    evaluate._print_bench(found)


def test_what_is_not_the_librarys_is_measured_alone(tmp_path):
    (tmp_path / "colours.py").write_text("import numpy as np\ndef ids(image): return np.argmax(image, 2)\n")
    (tmp_path / "names.txt").write_text("red\ngreen\nblue\n")
    options = {"model": f"{tmp_path}/colours.py:ids", "classes_file": str(tmp_path / "names.txt")}
    found = bench(BenchOptions(**options, size=SIZE, interval=2, repeats=1, runs=0))
    assert found["note"].endswith("is no checkpoint of a mask classifier of the library")
    assert found["ratios"]["ours_per_frame_over_ours"] > 0
    assert found["gmac"]["key"] is None


def test_modules_of_scores_import_neither_torch_nor_scipy():
    program = (
        "import sys\n"
        "class Blocked:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name in ('torch', 'scipy', 'transformers'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, Blocked())\n"
        "for name in 'run predict scores report results charts compare proof benchmark contest floor gmac'.split():\n"
        "    __import__('mpvss.evaluation.' + name)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "compact", "arch": "r50"}, "goes without a model, got 'r50' and 'compact'"),
        ({"model": "compact", "classes": 3}, "a checkpoint has its own"),
        ({"arch": "r50", "classes": 0}, "classes must be from 1 to 65535, got 0"),
        ({"arch": "r50", "interval": 0}, "interval must be at least 1, got 0"),
        ({"arch": "r50", "repeats": 0}, "repeats must be at least 1, got 0"),
        ({"arch": "r50", "runs": -1}, "runs must be at least 0, got -1"),
        ({"arch": "r50", "size": (31, 64)}, "size must be at least 32x32, got 31x64"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        BenchOptions(**options)


@pytest.mark.parametrize("values", [{"device": "cuda"}, {"dtype": "bfloat16"}, {"short_side": 240}])
def test_options_of_a_video_of_ones_own(values):
    with pytest.raises(OptionError, match=f"{next(iter(values))} is for a VIDEO of yours"):
        resolve(BenchOptions(**values))


def test_a_video_shorter_than_an_interval(directory, tmp_path):
    source = write_video(tmp_path / "short.mp4", [frame.rgb for frame in moving_frames(4, SIZE)])
    with pytest.raises(SourceError, match=r"expected at least 5 frames.*got 4"):
        bench(BenchOptions(model=str(directory), source=str(source), interval=4))


def test_a_cut_within_the_first_interval(directory, monkeypatch):
    answers = iter([False, False, True] + [False] * 100)
    monkeypatch.setattr(CutDetector, "is_cut", lambda *_: next(answers))
    options = BenchOptions(model=str(directory), size=SIZE, interval=5, direction="forward", runs=0)
    with pytest.raises(SourceError, match="a key frame every 5 frames, got another one: the video cuts"):
        bench(options)


def test_a_memory_run_that_fails_says_why(tmp_path, monkeypatch):
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho some warning >&2\necho out of memory >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(MpvssError, match="the run that measures memory failed: out of memory"):
        benchmark._peak_of_whole_run(resolve(BenchOptions()), "clip.mp4")


# --- plot and command ---------------------------------------------------------------------------------------------


def test_the_plot_is_an_image_and_the_result_is_saved(measured, result, tmp_path):
    benchmark.save(measured, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "BENCH.json").read_text()) == result
    with Image.open(tmp_path / "out" / "BENCH.png") as picture:
        assert min(picture.size) > 300
    with pytest.raises(OutputError, match="expected to be able to write"):
        benchmark.plot(measured, tmp_path / "nowhere" / "plot.png")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="expected to be able to write"):
        benchmark.save(measured, tmp_path / "file" / "out")


def test_no_plot_without_matplotlib(measured, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("mpvss._extras.find_spec", lambda _: None)
    with pytest.raises(MpvssError, match=r"pip install 'mpvss\[eval\]'"):
        benchmark.plot(measured, tmp_path / "plot.png")
    assert cli.run(["bench", "--plot", str(tmp_path / "plot.png")]) == 2  # before anything is measured
    assert "need matplotlib" in capsys.readouterr().err


def test_the_command_prints_what_was_measured(measured, result, monkeypatch, capfd, tmp_path):
    asked = []
    monkeypatch.setattr(benchmark, "bench", lambda options: asked.append(options) or measured)
    assert cli.run(["bench", "--arch", "swin-t", "--size", "48x64", "--motion", "chain", "--runs", "0", "-q"]) == 0
    assert asked[0] == BenchOptions(arch="swin-t", size=(48, 64), motion="chain", runs=0)
    table = capfd.readouterr().out
    for words in (
        "library, every frame",
        "SegFormer-B0",
        "a frame between",
        "own per frame / propagated",
        "GMAC/s",
        "PSNR",
    ):
        assert words in table
    assert cli.run(["bench", "--json", "--out", str(tmp_path)]) == 0
    assert asked[1] == BenchOptions()
    assert json.loads(capfd.readouterr().out) == result
    assert (tmp_path / "BENCH.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "compact", "--arch", "r50"], "goes without a model"),
        (["--size", "big"], "HEIGHTxWIDTH"),
    ],
)
def test_the_command_refuses_options_in_one_line(arguments, message, capfd):
    assert cli.run(["bench", *arguments]) == 2
    error = capfd.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_help_does_not_load_what_it_measures(capfd):
    before = "mpvss.evaluation.benchmark" in sys.modules
    assert cli.run(["bench", "--help"]) == 0
    assert ("mpvss.evaluation.benchmark" in sys.modules) == before
