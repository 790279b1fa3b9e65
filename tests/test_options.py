"""Laws of the options: declared once, validated where they are given, the same everywhere."""

import dataclasses
import inspect
import json
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
import typer

from helpers import ColourSegmentor, moving_frames
from mpvss import cli
from mpvss.cli._options import expand
from mpvss.cli._page import options_page
from mpvss.datasets import DATASETS
from mpvss.engine.schedule import SCHEDULES
from mpvss.errors import OptionError
from mpvss.motion.dis import Hold
from mpvss.options import (
    BatchOptions,
    BenchOptions,
    ConsoleOptions,
    DistillOptions,
    DrawOptions,
    EvalOptions,
    FillOptions,
    LoadOverrides,
    OutputOptions,
    ProcessOverrides,
    SegmentOptions,
    SegmentOverrides,
    VideoOverrides,
    declaration,
    parse_shard,
    parse_size,
)
from mpvss.outputs.sinks import SAVEABLE
from mpvss.segmenter import VideoSegmenter

CLASSES = [
    SegmentOptions, OutputOptions, DrawOptions, BatchOptions, BenchOptions, FillOptions, DistillOptions, ConsoleOptions,
    EvalOptions,
]  # fmt: skip


def made(kind):
    return kind(data="folder:x") if kind is EvalOptions else kind()


@pytest.mark.parametrize("kind", CLASSES)
def test_every_field_is_declared_with_one_line_of_help(kind):
    for each in dataclasses.fields(kind):
        assert 5 < len(declaration(each).help) < 100, each.name
        assert "\n" not in declaration(each).help


@pytest.mark.parametrize("kind", CLASSES)
def test_options_survive_json(kind):
    options = made(kind)
    assert kind.from_dict(json.loads(json.dumps(options.to_dict()))) == options
    assert kind.from_dict({**options.to_dict(), "of a later version": 1}) == options


def test_exact_times_are_kept_as_text():
    options = SegmentOptions(start=Fraction(1, 3), classes=("road", "car"))
    stored = json.loads(json.dumps(options.to_dict()))
    assert (stored["start"], stored["classes"]) == ("1/3", ["road", "car"])


def test_keyword_arguments_are_typed_as_the_options():
    """Law: what completion and type checkers see is what is declared."""
    declared = get_type_hints(SegmentOptions)
    of_model = {"model", "device", "dtype", "backend", "fast", "threads", "prompt", "classes_file", "output_kind"}
    for overrides, names in (
        (VideoOverrides, declared.keys() - of_model - {"propagator"}),
        (SegmentOverrides, declared.keys() - of_model),
        (LoadOverrides, declared.keys() - {"model"}),
        (ProcessOverrides, (declared | get_type_hints(OutputOptions)).keys() - of_model),
    ):
        hints = get_type_hints(overrides)
        assert hints.keys() == names
        assert all(hints[name] == (declared | get_type_hints(OutputOptions))[name] for name in names)


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (SegmentOptions, {"interval": 0}, "interval must be at least 1, got 0"),
        (SegmentOptions, {"interval": 2.5}, "interval must be a whole number, got 2.5"),
        (SegmentOptions, {"interval": True}, "interval must be a whole number, got True"),
        (SegmentOptions, {"motion": "chian"}, "motion must be one of chain, direct, got 'chian'"),
        (SegmentOptions, {"direction": "back"}, "direction must be one of both, forward, got 'back'"),
        (SegmentOptions, {"schedule": "often"}, "schedule must be one of interval, got 'often'"),
        (
            SegmentOptions,
            {"propagator": "magic"},
            "propagator must be one of auto, query, flow, dis, codec, hold, none, got",
        ),
        (SegmentOptions, {"tolerance": float("nan")}, "tolerance must be from 0 to 1, got nan"),
        (SegmentOptions, {"min_score": float("inf")}, "min_score must be at least 0 and finite, got inf"),
        (SegmentOptions, {"short_side": 8}, "short_side must be from 32 to 8192, got 8"),
        (SegmentOptions, {"stride": 10**9}, "stride must be at least 1"),
        (SegmentOptions, {"cuts": 1}, "cuts must be true or false, got 1"),
        (SegmentOptions, {"model": 5}, "model must be text, got 5"),
        (SegmentOptions, {"classes": 5}, r"classes must be a list of names such as \('road',\), got 5"),
        (SegmentOptions, {"classes": (1.5,)}, "classes must be a whole number, got 1.5"),
        (SegmentOptions, {"classes": (None,)}, "classes must be text, got None"),
        (OutputOptions, {"save": None}, "save must be a list of names"),
        (BatchOptions, {"shard": "1/4"}, "shard must be 2 whole numbers, got '1/4'"),
        (BatchOptions, {"shard": (1,)}, r"shard must be 2 whole numbers, got \(1,\)"),
        (BatchOptions, {"state": 5}, "state must be text, got 5"),
        (BenchOptions, {"size": (480, 640.5)}, "size must be a whole number, got 640.5"),
        (SegmentOptions, {"device": "tpu"}, "device must be auto, cpu, cuda, cuda:N or mps, got 'tpu'"),
        (SegmentOptions, {"device": "cpu:x"}, "device must be auto, cpu, cuda, cuda:N or mps"),
        (SegmentOptions, {"dtype": "int8"}, "dtype must be one of float32, bfloat16, float16, got 'int8'"),
        (SegmentOptions, {"backend": "onnx", "dtype": "float16"}, "backend onnx runs in float32, got float16"),
        (SegmentOptions, {"threads": 0}, "threads must be from 1 to 1024, got 0"),
        (SegmentOptions, {"classes": ()}, "classes must name at least one class, got none; leave it out for all"),
        (SegmentOptions, {"classes": "road"}, r"classes must be a list of names such as \('road',\), got 'road'"),
        (SegmentOptions, {"start": "1:99"}, "start: expected a time"),
        (SegmentOptions, {"start": 2, "end": 2.0}, "end must be after start, got start 2 and end 2.0"),
        (SegmentOptions, {"fps": 0}, "fps: expected a frame rate"),
        (OutputOptions, {"save": ("overlay", "gif")}, "save takes overlay, labels, png, got 'gif'"),
        (OutputOptions, {"save": "overlay"}, r"save must be a list of names such as \('overlay',\), got 'overlay'"),
        (OutputOptions, {"alpha": 2}, "alpha must be from 0 to 1, got 2"),
        (OutputOptions, {"name": "a/b"}, "name must be a file's name without folders, of at most 200 bytes, got 'a/b'"),
        (BatchOptions, {"shard": (3, 2)}, "shard must be i/n with i from 1 to n, got 3/2"),
        (BatchOptions, {"resume": True, "overwrite": True}, "resume keeps what is finished and overwrite replaces it"),
        (BatchOptions, {"ray_address": "auto"}, "ray_address goes with engine ray only"),
        (BatchOptions, {"engine": "ray", "ray_address": "auto"}, "say how many workers it is to run"),
        (BenchOptions, {"arch": "r50", "model": "compact"}, "arch goes without a model"),
        (BenchOptions, {"classes": 5}, "classes is for an arch with random weights"),
        (BenchOptions, {"size": (16, 64)}, "size must be at least 32x32, got 16x64"),
        (FillOptions, {"propagator": "none"}, "propagator none brings no mask to another frame: choose another"),
        (FillOptions, {"device": "tpu"}, "device must be auto"),
        (DistillOptions, {"propagator": "dis"}, "propagator must be one of flow, query, got 'dis'"),
        (DistillOptions, {"confidence": 1.5}, "confidence must be from 0 to 1, got 1.5"),
        (EvalOptions, {"data": "folder:x", "predictions": "p", "oracle": True}, "predictions are only scored"),
        (EvalOptions, {"data": 5}, "data must be text, got 5"),
    ],
)
def test_a_wrong_value_is_refused_where_it_is_given(kind, values, message):
    with pytest.raises(OptionError, match=message) as caught:
        kind(**values)
    assert isinstance(caught.value, ValueError)
    assert caught.value.name in values
    assert len(str(caught.value)) < 600


def test_what_means_the_same_is_the_same():
    """Law: lists, text for paths and numbers of numpy are taken as what the option holds."""
    assert SegmentOptions(classes=["road"]) == SegmentOptions(classes=("road",))
    assert hash(SegmentOptions(classes=["road"])) == hash(SegmentOptions(classes=("road",)))
    assert BatchOptions(state="dir").state == Path("dir")
    assert SegmentOptions(interval=np.int64(3), tolerance=np.float32(0.5)) == SegmentOptions(interval=3, tolerance=0.5)


def test_what_is_no_option_is_refused_by_its_name():
    with pytest.raises(OptionError, match=r"intervall is no option here; expected one of .*interval"):
        SegmentOptions().replace(intervall=5)
    assert SegmentOptions().replace(interval=5).replace() == SegmentOptions(interval=5)


@pytest.mark.parametrize("text", ["480", "480x", "x480", "0x480", "480x853x3", "5x5", "99999x480", "-1x5", "4.5x5"])
def test_a_size_that_is_none(text):
    with pytest.raises(
        ValueError, match="expected a size as HEIGHTxWIDTH such as 480x853, from 32 to 8192 a side, got"
    ):
        parse_size(text)
    assert parse_size("480x853") == (480, 853)


@pytest.mark.parametrize("text", ["1", "1/", "/4", "a/b", "-1/4", "1/4/5"])
def test_a_shard_that_is_none(text):
    with pytest.raises(ValueError, match="expected a shard as I/N such as 1/4, got"):
        parse_shard(text)
    assert parse_shard("1/4") == (1, 4)


# The command line


def run(function, *arguments):
    app = typer.Typer()
    app.command()(expand(function))
    return app(args=list(arguments), standalone_mode=False)


def test_a_field_is_a_flag():
    seen = []

    def command(options: SegmentOptions, output: OutputOptions) -> None:
        seen.append((options, output))

    run(command)
    assert seen.pop() == (SegmentOptions(), OutputOptions())
    arguments = "--interval 3 --no-cuts --motion direct --classes road,car --save png --alpha .25 --short-side 64"
    run(command, *arguments.split())
    options, output = seen.pop()
    assert options == SegmentOptions(interval=3, cuts=False, motion="direct", classes=("road", "car"), short_side=64)
    assert output == OutputOptions(save=("png",), alpha=0.25)


def test_a_repeated_option_is_a_tuple():
    seen = []

    def command(options: DistillOptions) -> None:
        seen.append(options.overrides)

    run(command, "--set", "a=1", "--set", "b=2")
    assert seen == [("a=1", "b=2")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--interval", "0"), "--interval must be at least 1, got 0"),
        (("--min-score", "-1"), "--min-score must be at least 0 and finite, got -1.0"),
        (("--start", "soon"), "--start: expected a time"),
        (("--classes", ","), "--classes must name at least one class"),
        (("--save", "gif"), "--save takes overlay, labels, png, got 'gif'"),
    ],
)
def test_on_the_command_line_the_flag_is_named(arguments, message, capfd):
    assert cli.run(["segment", "none.mp4", *arguments]) == 2
    out, err = capfd.readouterr()
    assert (out, err.startswith(f"mpvss: {message}"), err.count("\n")) == ("", True, 1)


def test_no_command_has_more_than_six_parameters():
    source = Path(cli.__file__).parent
    names = [path.stem for path in source.glob("*.py") if path.stem not in ("__main__", "__init__")]
    for name in names:
        module = sys.modules.get(f"mpvss.cli.{name}") or __import__(f"mpvss.cli.{name}", fromlist=["x"])
        text = inspect.getsource(module)
        for found in re.finditer(r"^def (\w+)\(", text, re.M):
            function = getattr(module, found[1])
            own = inspect.unwrap(function)
            code = getattr(own, "__wrapped__", own).__code__
            assert code.co_argcount + code.co_kwonlyargcount <= 6, (name, found[1])


def test_the_page_of_options_is_what_the_declarations_say():
    """Run ``python -m mpvss.cli._page > docs/options.md`` after a change."""
    page = Path(__file__).parents[1] / "docs" / "options.md"
    assert page.read_text(encoding="utf-8") == options_page()


def test_the_help_names_everything_that_can_be_chosen():
    helps = {each.name: declaration(each).help for kind in CLASSES for each in dataclasses.fields(kind)}
    assert re.fullmatch(rf"Any of {', '.join(SAVEABLE)}, .*", helps["save"])
    assert all(f"{name}:DIR" in helps["data"] for name in DATASETS)
    assert helps["schedule"].endswith(f": {', '.join(SCHEDULES)}.")


def test_a_schedule_of_somebody_else_is_one_entry(monkeypatch):
    class EveryOther:
        """Ignores the interval: every other frame."""

        def __init__(self, interval):
            pass

        def decide(self, window):
            return 1 if len(window) == 2 else None

    with pytest.raises(OptionError, match="schedule must be one of interval, got 'other'"):
        SegmentOptions(schedule="other")
    monkeypatch.setitem(SCHEDULES, "other", EveryOther)
    segmenter = VideoSegmenter(ColourSegmentor(), Hold(), schedule="other", cuts=False)
    assert [result.is_key for result in segmenter.stream(moving_frames(6))] == [True, False] * 3


def test_options_import_nothing_heavy():
    code = "import sys, mpvss.options; print(sorted({'torch', 'numpy', 'av', 'cv2', 'typer'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
