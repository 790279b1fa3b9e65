"""What a person at the command line sees: results, one clear line for each mistake, and nothing half-written."""

import functools
import http.server
import json
import os
import pkgutil
import shutil
import signal
import subprocess
import sys
import threading
import time
from fractions import Fraction
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from safetensors.torch import load_file, save_file

import mpvss
from helpers import ColourSegmentor, moving_frames
from mpvss import cli
from mpvss._devices import choose_device
from mpvss._threads import threads
from mpvss.cli.segment import _expected_frames
from mpvss.errors import ModelError, MpvssError
from mpvss.motion.dis import Dis, Hold
from mpvss.options import SegmentOptions
from mpvss.outputs import LabelReader, Mp4Writer
from mpvss.segmenter import VideoSegmenter
from mpvss.video import probe, read
from test_video_reader import cut_off, write_video

SIZE = (48, 64)
FRAMES = 12
PROGRAM = (sys.executable, "-m", "mpvss.cli")
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
COMPACT = Path(mpvss.__file__).parent / "assets" / "compact"


def pictures(count=FRAMES, size=SIZE):
    return [frame.rgb for frame in moving_frames(count, size)]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", pictures())


@pytest.fixture
def colour(monkeypatch):
    """The command works with a model that needs no loading; the list holds what it was asked to load."""
    asked = []

    def from_pretrained(model, *, options=None, **overrides):
        asked.append(model)
        options = (options or SegmentOptions()).replace(**overrides)
        choose_device(options.device)
        makers = {"auto": Dis, "dis": Dis, "hold": Hold, "none": lambda: None}
        return VideoSegmenter(ColourSegmentor(), makers[options.propagator](), options)

    monkeypatch.setattr(VideoSegmenter, "from_pretrained", from_pretrained)
    monkeypatch.setattr("mpvss._zoo.known_classes", lambda _: None)
    return asked


@pytest.fixture
def real_models(monkeypatch):
    """Models are loaded in this process, as quietly as in one of its own."""
    from transformers.utils import logging

    from mpvss.segmentors.efficientnet import EfficientNetLiteConfig

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # The library calls this class with arguments that its signature does not show, which the checks refuse.
    monkeypatch.setattr(EfficientNetLiteConfig.__init__, "__no_type_check__", True, raising=False)


@pytest.fixture
def command(capfd):
    """Run a command in this process: exit code, standard output, standard error."""

    def run(*arguments):
        code = cli.run([str(argument) for argument in arguments])
        return (code, *capfd.readouterr())

    return run


@pytest.fixture
def segment(command, colour, tmp_path):
    """Run ``segment`` into OUT/, with JSON: exit code, the object or ``None``, standard error."""

    def run(*arguments):
        code, out, err = command("segment", *arguments, "--out", tmp_path / "OUT", "--json")
        return code, json.loads(out) if out else None, err

    return run


def refused(result, *parts):
    """Exit code 2, nothing on standard output, and one line that says all of this."""
    code, out, err = result
    assert code == 2
    assert not out
    *information, line = err.strip().splitlines()
    assert line.startswith("mpvss: ")
    assert all(text.startswith("loading ") or " knows " in text for text in information)
    for part in parts:
        assert part in line


# --- sources that cannot be segmented


def text_file(folder):
    (folder / "notes.mp4").write_text("These are my notes.\n" * 40)
    return folder / "notes.mp4"


def empty_file(folder):
    (folder / "empty.mp4").touch()
    return folder / "empty.mp4"


def no_frames(folder):
    """A recording that was stopped before its first frame."""
    path = write_video(folder / "none.mkv", pictures(1), codec="ffv1", pixels="bgr0")
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b"\x1f\x43\xb6\x75")])  # up to the first cluster
    return path


def no_index(folder):
    """An mp4 that was cut off before its index, which is at the end, was written."""
    whole = write_video(folder / "start.mp4", pictures(), crf=1).read_bytes()
    path = folder / "lost.mp4"
    path.write_bytes(whole[:24] + whole[whole.index(b"mdat") - 4 : -100])
    return path


def no_images(folder):
    (folder / "notes").mkdir()
    (folder / "notes" / "a.txt").touch()
    return folder / "notes"


def no_such_file(folder):
    return folder / "absent.mp4"


def no_match(folder):
    return folder / "*.png"


def audio_only(folder):
    import av

    path = folder / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=48000)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 48000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (no_such_file, ("got nothing at", "absent.mp4: check the path")),
        (no_match, ("expected images that match", "got none among 0 matches: check the pattern")),
        (
            no_images,
            ("expected images (png, jpg,", "got none among 1 entries: give the folder that holds the images"),
        ),
        (text_file, ("expected a video in", "notes.mp4, got data that is no known video format")),
        (empty_file, ("empty.mp4, got",)),
        (no_frames, ("expected a video with frames", "none.mkv")),
        (no_index, ("lost.mp4, got data that is no known video format", "needs to be repaired or copied again")),
        (audio_only, ("expected a video stream with frames in", "sound.mp4, got audio: give a video")),
    ],
)
def test_a_source_that_cannot_be_read(segment, colour, clip, tmp_path, make, parts):
    source = make(tmp_path)
    refused(segment(source), *parts)
    refused(segment(clip, source), *parts)  # the good one is not begun either
    assert colour == []
    assert not (tmp_path / "OUT").exists()


def test_inspect_refuses_what_segment_refuses(command, tmp_path):
    refused(command("inspect", tmp_path / "absent.mp4"), "got nothing at", "absent.mp4: check the path")


def test_images_that_change_size(segment, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for index, size in enumerate([SIZE, SIZE, (24, 32)]):
        Image.fromarray(pictures(1, size)[0]).save(folder / f"{index}.png")
    code, out, err = segment(folder)
    assert (code, out["videos"][0]["frames"]) == (0, 3)
    assert "1 of the images are scaled to 64x48 (width x height), the size of the others (first: 2.png" in err


def test_a_range_without_frames(segment, clip, tmp_path):
    refused(segment(clip, "--start", "0:09"), "expected frames from 9 s to the end, got none")
    assert names(tmp_path / "OUT") == []


# --- sources that can


def check_outputs(out, name, frames, size=SIZE):
    """Everything is there, whole, of the source's size and of the same frames."""
    meta = json.loads((out / f"{name}.json").read_text())
    assert meta["size"] == list(size)
    stored = list(LabelReader(out / f"{name}.labels.mkv"))
    assert len(stored) == len(meta["frames"]) == frames
    assert all(labels.shape == size and labels.dtype == np.uint8 for _, _, labels, _ in stored)
    overlay = list(read(out / f"{name}.overlay.mp4"))
    assert len(overlay) == frames
    assert {frame.size for frame in overlay} == {(size[0] + size[0] % 2, size[1] + size[1] % 2)}


def test_a_video_that_is_cut_off_in_the_middle(segment, tmp_path):
    path = cut_off(write_video(tmp_path / "cut.mp4", pictures(30), crf=1, g=4))
    code, result, err = segment(path)
    assert code == 0
    (video,) = result["videos"]
    assert 5 < video["frames"] < 30
    assert video["damaged"] >= 30 - video["frames"]
    assert f"cut.mp4: {video['damaged']} frames or packets are damaged or lost\n" in err
    assert "the file is cut off" in err
    check_outputs(tmp_path / "OUT", "cut", video["frames"])


@pytest.mark.parametrize(
    ("name", "size", "options"),
    [
        ("odd.mkv", (47, 63), {"codec": "ffv1", "pixels": "bgr0"}),
        ("narrow.mkv", (48, 5), {"codec": "ffv1", "pixels": "bgr0"}),
        ("deep.mp4", SIZE, {"pixels": "yuv420p10le"}),
        ("grey.mkv", SIZE, {"codec": "ffv1", "pixels": "gray"}),
        ("grey16.mkv", SIZE, {"codec": "ffv1", "pixels": "gray16le"}),
        ("full.mp4", SIZE, {"pixels": "yuv444p"}),
    ],
)
def test_unusual_videos(segment, tmp_path, name, size, options):
    path = write_video(tmp_path / name, pictures(4, size), **options)
    code, result, _ = segment(path)
    assert code == 0
    assert result["videos"][0]["frames"] == 4
    check_outputs(tmp_path / "OUT", path.stem, 4, size)


def test_one_frame(segment, tmp_path):
    code, result, _ = segment(write_video(tmp_path / "one.mp4", pictures(1)))
    assert (code, result["videos"][0]["frames"], result["videos"][0]["key_frames"]) == (0, 1, 1)
    check_outputs(tmp_path / "OUT", "one", 1)


def test_a_video_that_changes_size_is_scaled_with_a_warning(segment, tmp_path):
    first = write_video(tmp_path / "a.h264", pictures(3))
    second = write_video(tmp_path / "b.h264", pictures(3, (96, 128)))
    (tmp_path / "c.h264").write_bytes(first.read_bytes() + second.read_bytes())
    code, _, err = segment(tmp_path / "c.h264")
    assert code == 0
    assert (
        "frames change size from 64x48 (width x height) to 128x96 (width x height): scaled to the size of the first"
        in err
    )
    check_outputs(tmp_path / "OUT", "c", 6)


def test_sound_that_is_left_out_is_said_once(segment, clip, monkeypatch):
    write = Mp4Writer.append_planes

    def silent(self, *arguments):
        self.warnings[:] = ["the sound of clip.mp4 is left out"]
        write(self, *arguments)

    monkeypatch.setattr(Mp4Writer, "append_planes", silent)
    code, _, err = segment(clip, "--compare")
    assert code == 0
    assert err.count("the sound of clip.mp4 is left out") == 1


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def served(tmp_path):
    """The address of a folder, on this machine, with a password and a signature in it."""
    folder = tmp_path / "served"
    folder.mkdir()
    write_video(folder / "clip.mkv", pictures(), codec="ffv1", pixels="bgr0")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://me:SECRET@127.0.0.1:{server.server_port}/%s?X-Amz-Signature=SECRET&sig=SECRET"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("name", ["clip.mkv", "absent.mkv"])
def test_the_secrets_of_an_address_stay_out_of_files_and_messages(command, colour, served, tmp_path, name):
    said = command("inspect", served % name)
    said += command("segment", served % name, "-o", tmp_path / "OUT", "--json", "--verbose")
    said += command("segment", served % name, "-o", tmp_path / "OUT2")
    assert [said[0], said[3], said[6]] == ([0, 0, 0] if name == "clip.mkv" else [2, 2, 2])
    assert "127.0.0.1" in str(said)
    assert "SECRET" not in str(said)
    for path in (tmp_path / "OUT").glob("*.json"):
        assert "SECRET" not in path.read_text()


# --- models


def model_directory(folder, config=None, files=()):
    folder.mkdir()
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    for file in files:
        shutil.copy(COMPACT / file, folder / file)
    return folder


@pytest.mark.parametrize(
    ("config", "files", "parts"),
    [
        (None, ("model.safetensors", "preprocessor_config.json"), ("got no config.json",)),
        (None, ("config.json", "preprocessor_config.json"), ("cannot load", "model.safetensors")),
        ({"model_type": "bert"}, ("preprocessor_config.json",), ("models of type 'bert' cannot segment", "mpvss.wrap")),
        ({"model_type": "unheard_of"}, ("preprocessor_config.json",), ("configuration", "unheard_of")),
    ],
)
def test_a_model_directory_that_is_none(command, real_models, clip, tmp_path, config, files, parts):
    folder = model_directory(tmp_path / "model", config, files)
    refused(command("segment", clip, "-o", tmp_path / "OUT", "--model", folder), f"{folder}: ", *parts)
    assert not any((tmp_path / "OUT").iterdir())


def test_weights_that_are_not_all_there(command, real_models, clip, tmp_path):
    folder = model_directory(tmp_path / "model", files=("config.json", "preprocessor_config.json"))
    weights = load_file(COMPACT / "model.safetensors")
    del weights[sorted(weights)[0]]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    result = command("segment", clip, "-o", tmp_path / "OUT", "--model", folder)
    refused(result, f"{folder}: 1 weight", "missing")


@pytest.mark.parametrize("content", [b"", b"not tensors at all", None])
def test_weights_that_are_damaged(command, real_models, clip, tmp_path, content):
    folder = model_directory(tmp_path / "model", files=("config.json", "preprocessor_config.json"))
    cut = (COMPACT / "model.safetensors").read_bytes()[:100_000]
    (folder / "model.safetensors").write_bytes(cut if content is None else content)
    result = command("segment", clip, "-o", tmp_path / "OUT", "--model", folder)
    refused(result, f"{folder}: cannot load")


def test_a_model_directory_that_does_not_exist(command, clip, tmp_path):
    result = command("segment", clip, "-o", tmp_path / "OUT", "--model", tmp_path / "absent")
    refused(result, "expected a model directory or a hub id such as owner/name, there is no such directory")


# --- outputs


def test_outputs_that_exist_are_kept_without_overwrite(segment, colour, clip, tmp_path):
    out = tmp_path / "OUT"
    assert segment(clip, "--save", "labels")[0] == 0
    (out / "clip.json").write_text("mine")
    refused(segment(clip), "clip.json exists already; pass --overwrite to replace it, or choose another output")
    assert colour == ["compact"]  # the second time nothing was loaded
    assert (out / "clip.json").read_text() == "mine"
    assert segment(clip, "--overwrite")[0] == 0
    check_outputs(out, "clip", FRAMES)


@pytest.mark.parametrize("name", ["clip.json", "clip.labels.mkv", "clip.overlay.mp4", "clip.png"])
def test_every_kind_of_output_is_protected(segment, clip, tmp_path, name):
    path = tmp_path / "OUT" / name
    path.mkdir(parents=True) if name == "clip.png" else (path.parent.mkdir(), path.touch())
    refused(segment(clip, "--save", "overlay,labels,png"), f"{name} exists already; pass --overwrite")
    assert names(tmp_path / "OUT") == [name]
    assert segment(clip, "--save", "overlay,labels,png", "--overwrite")[0] == 0
    assert len(names(tmp_path / "OUT" / "clip.png")) == FRAMES


def test_other_files_in_the_output_directory_are_no_matter(segment, clip, tmp_path):
    (tmp_path / "OUT").mkdir()
    (tmp_path / "OUT" / "notes.txt").write_text("mine")
    assert segment(clip)[0] == 0
    assert names(tmp_path / "OUT") == ["clip.json", "clip.labels.mkv", "clip.overlay.mp4", "notes.txt"]


def test_a_folder_is_not_replaced_by_a_file_nor_a_file_by_a_folder(segment, tmp_path):
    """The source itself may have the name of the folder of PNGs."""
    out = tmp_path / "OUT"
    (out / "picture.json").mkdir(parents=True)
    source = out / "picture.png"
    Image.fromarray(pictures(1)[0]).save(source)
    before = source.read_bytes()
    refused(segment(source, "--overwrite"), "picture.json is a folder, which is not replaced")
    (out / "picture.json").rmdir()
    refused(segment(source, "--overwrite", "--save", "png"), "picture.png is a file, which is not replaced")
    assert source.read_bytes() == before


@pytest.mark.parametrize("place", ["file", "file/below", "x" * 300])
def test_an_output_that_cannot_be_written(command, colour, clip, tmp_path, place):
    (tmp_path / "file").write_text("mine")
    refused(command("segment", clip, "-o", tmp_path / place), f"{place}: cannot make the output directory")
    assert colour == []
    assert (tmp_path / "file").read_text() == "mine"


def test_an_output_directory_that_takes_no_files(segment, clip, monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "touch", refuse)
    refused(segment(clip), "expected to be able to write", "clip.json, got: Permission denied")
    assert names(tmp_path / "OUT") == []


def test_sources_of_one_name_are_refused_before_any_work(segment, colour, clip, tmp_path):
    (tmp_path / "other").mkdir()
    other = shutil.copy(clip, tmp_path / "other" / "clip.mp4")
    parts = ("expected sources with different names", f"got {clip} and {other}", "clip.*: give each a command")
    refused(segment(clip, other), *parts)
    refused(segment(clip, other, "--overwrite"), *parts)
    assert colour == []
    assert not (tmp_path / "OUT").exists()


# --- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--save", "nonsense"), "save takes overlay, labels, png, got 'nonsense'"),
        (("--save", "overlay,lables"), "save takes overlay, labels, png, got 'lables'"),
        (("--classes", ","), "classes must name at least one class, got none"),
        (
            ("--start", "soon"),
            "expected a time in seconds such as 12.5 or 1:02.5, with less than 60 after a colon, got 'soon'",
        ),
        (
            ("--end", "-1"),
            "expected a time in seconds such as 12.5 or 1:02.5, with less than 60 after a colon, got '-1'",
        ),
        (("--start", "2", "--end", "0:02"), "end must be after start, got start 2 and end 0:02"),
        (("--device", "tpu"), "device must be auto, cpu, cuda, cuda:N or mps, got 'tpu'"),
        (
            ("--classes", "red,gren"),
            'expected a class of the model (red, green, blue), got "gren"; did you mean "green',
        ),
    ],
)
def test_an_option_with_a_wrong_value(segment, clip, tmp_path, options, message):
    refused(segment(clip, *options), message)
    out = tmp_path / "OUT"
    assert not out.exists() or names(out) == []


def test_a_device_that_is_not_there(segment, clip, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    refused(segment(clip, "--device", "cuda"), "device cuda was asked for", "use cpu")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--interval", "0"), "--interval"),
        (("--interval", "often"), "--interval"),
        (("--stride", "0"), "--stride"),
        (("--alpha", "2"), "--alpha"),
        (("--short-side", "1"), "--short-side"),
        (("--propagator", "magic"), "--propagator"),
        (("--motion", "sideways"), "--motion"),
        (("--dtype", "int8"), "--dtype"),
        (("--direction", "backward"), "--direction"),
        (("--no-such-option",), "--no-such-option"),
    ],
)
def test_an_option_out_of_range(segment, colour, clip, tmp_path, arguments, message):
    code, out, err = segment(clip, *arguments)
    assert (code, out) == (2, None)
    assert message in err.strip().splitlines()[-1]
    assert "Traceback" not in err
    assert colour == []
    assert not (tmp_path / "OUT").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("segment",), "SOURCE"), (("no-such-command",), "no-such-command")],
)
def test_an_incomplete_command(command, arguments, message):
    code, out, err = command(*arguments)
    assert (code, out) == (2, "")
    assert message in err.strip().splitlines()[-1]


def test_a_bug_keeps_its_traceback(segment, clip, monkeypatch, tmp_path):
    def broken(*_, **__):
        raise ValueError("a bug, not an option")

    monkeypatch.setattr("mpvss.engine.session.Session.push", broken)
    with pytest.raises(ValueError, match="a bug, not an option"):
        segment(clip)
    assert names(tmp_path / "OUT") == []


def test_options_reach_the_run(segment, clip, tmp_path):
    code, result, _ = segment(
        clip, "--propagator", "hold", "--motion", "direct", "--direction", "forward", "--interval", "3", "--no-cuts",
        "--save", "labels,png", "--classes", " red , BLUE", "--short-side", "40", "--start", "0.04", "--end", "0.40",
        "--stride", "2",
    )  # fmt: skip
    assert code == 0
    assert list(result["videos"][0]["outputs"]) == ["meta", "labels", "png"]
    assert names(tmp_path / "OUT") == ["clip.json", "clip.labels.mkv", "clip.png"]
    meta = json.loads((tmp_path / "OUT" / "clip.json").read_text())
    assert meta["version"] == mpvss.__version__
    assert meta["libraries"]["av"] == metadata.version("av")
    assert meta["options"] == {
        "propagator": "hold",
        "motion": "direct",
        "direction": "forward",
        "interval": 3,
        "cuts": False,
        "short_side": 40,
        "classes": ["red", "BLUE"],
        "stride": 2,
        "start": "0.04",
        "end": "0.40",
        "long_side": None,
        "multiple": 32,
        "tolerance": 1e-3,
        "flow": {},
        "backend": None,
        "device": None,
        "dtype": None,
        "fast": None,
        "threads": threads(),
        "deinterlace": "auto",
        "min_score": 0.0,
        "fps": None,
        "video_stream": None,
        "classes_file": None,
        "output_kind": None,
        "prompt": [],
        "exact": None,
        "schedule": "interval",
        "confidence": False,
    }
    assert [frame["index"] for frame in meta["frames"]] == [1, 3, 5, 7, 9]
    assert [frame["key"] for frame in meta["frames"]] == [True, False, False, True, False]
    assert names(tmp_path / "OUT" / "clip.png") == [f"{index:06d}.png" for index in (1, 3, 5, 7, 9)]


# --- results


def test_json_is_one_object_of_the_documented_shape(segment, clip, tmp_path):
    other = shutil.copy(clip, tmp_path / "other.mp4")
    code, result, _ = segment(clip, other, "--save", "overlay,labels,png", "--compare", "--legend")
    out = tmp_path / "OUT"
    assert code == 0
    assert list(result) == ["videos"]
    for video, source in zip(result["videos"], (clip, other), strict=True):
        name = Path(source).stem
        assert set(video) == {
            "source",
            "frames",
            "key_frames",
            "propagator",
            "damaged",
            "outputs",
            "seconds",
            "compare",
        }
        assert video["source"] == str(source)
        for count, expected in (("frames", FRAMES), ("key_frames", 2), ("damaged", 0)):
            assert type(video[count]) is int
            assert video[count] == expected
        assert video["outputs"] == {
            "meta": str(out / f"{name}.json"),
            "overlay": str(out / f"{name}.overlay.mp4"),
            "compare": str(out / f"{name}.compare.mp4"),
            "labels": str(out / f"{name}.labels.mkv"),
            "png": str(out / f"{name}.png"),
        }
        assert set(video["seconds"]) == {"read", "key", "propagate", "decode", "write", "total"}
        check_outputs(out, name, FRAMES)
    assert [path.name for path in sorted(out.glob("*.json"))] == ["clip.json", "other.json"]
    assert not [name for name in names(out) if name.startswith(".")]


def test_without_json_a_person_reads_what_was_written(command, colour, clip, tmp_path):
    code, out, err = command("segment", clip, "-o", tmp_path / "OUT", "--compare")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == f"{clip}: 12 frames, 2 of them key frames, the others by dis"
    for name in ("clip.json", "clip.overlay.mp4", "clip.compare.mp4", "clip.labels.mkv"):
        assert any(line.endswith(str(tmp_path / "OUT" / name)) for line in lines)
    assert "colour knows 3 classes: red, green, blue" in err
    code, _, err = command("segment", clip, "-o", tmp_path / "OUT", "--overwrite", "--quiet")
    assert (code, err) == (0, "")


def test_the_embedded_model_from_end_to_end(clip, tmp_path):
    """In a process of its own, because what libraries print must not get between."""
    arguments = ["segment", clip, "-o", tmp_path, "--interval", "6", "--short-side", "64", "--json"]
    done = subprocess.run([*PROGRAM, *map(str, arguments)], capture_output=True, text=True, check=True, env=ONE_THREAD)
    (video,) = json.loads(done.stdout)["videos"]
    assert (video["frames"], video["key_frames"]) == (FRAMES, 2)
    check_outputs(tmp_path, "clip", FRAMES)
    assert json.loads((tmp_path / "clip.json").read_text())["model"] == "compact"
    loading, knows = done.stderr.splitlines()
    assert loading == "loading compact"
    assert knows.startswith("compact knows 11 classes: sky, building, pole, road, ")


@pytest.mark.parametrize("options", [{}, {"start": "0.1"}, {"end": "0.3"}, {"start": 0.07, "end": 0.41, "stride": 3}])
def test_the_progress_bar_ends_where_the_frames_do(clip, options):
    assert _expected_frames(probe(clip), SegmentOptions(**options)) == len(list(read(clip, **options)))


# --- the other commands


def test_models_names_the_embedded_one_first_as_it_is(command):
    code, out, _ = command("models", "--json")
    models = json.loads(out)["models"]
    assert code == 0
    config = json.loads((COMPACT / "config.json").read_text())
    compact = models[0]
    assert compact["id"] == "compact"
    assert compact["classes"] == len(config["id2label"])
    assert compact["megabytes"] == pytest.approx((COMPACT / "model.safetensors").stat().st_size / 1e6, rel=0.02)
    assert len({model["id"] for model in models}) == len(models) > 3
    assert all(model.keys() == {"id", "classes", "data", "megabytes", "licence"} for model in models)
    code, table, _ = command("models")
    assert code == 0
    assert len(table.splitlines()) == len(models) + 1
    for model, line in zip(models, table.splitlines()[1:], strict=True):
        assert line.split()[:2] == [model["id"], str(model["classes"])]


def test_inspect_describes_a_video(command, clip):
    code, out, _ = command("inspect", clip, "--json")
    assert code == 0
    found = json.loads(out)
    assert found == probe(clip).to_dict()
    assert (found["size"], found["frames"], found["frame_rate"]) == ([48, 64], FRAMES, [25, 1])
    code, out, _ = command("inspect", clip)
    lines = [line.split(maxsplit=1) for line in out.splitlines()]
    assert code == 0
    assert [name for name, _ in lines] == list(found)
    described = dict(lines)
    assert described["size"] == "64x48 (width x height)"
    assert described["duration"] == "0.48 s"
    assert described["frame_rate"] == "25 a second"
    assert described["has_audio"] == "no"


def test_inspect_verifies_labels(command, segment, clip, tmp_path):
    assert segment(clip, "--save", "labels")[0] == 0
    for name in ("clip.json", "clip.labels.mkv"):
        code, printed, _ = command("inspect", "--verify", tmp_path / "OUT" / name)
        assert (code, ": verified, " in printed) == (0, True)
    damaged = bytearray((tmp_path / "OUT" / "clip.labels.mkv").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / "OUT" / "clip.labels.mkv").write_bytes(damaged)
    code, printed, err = command("inspect", "--verify", tmp_path / "OUT" / "clip.json", "--json")
    assert (code, printed) == (2, "")
    assert "frame" in err
    code, _, err = command("inspect", "--verify", clip)
    assert (code, "expected NAME.json or NAME.labels.mkv to verify" in err) == (2, True)


def test_an_error_of_the_system_is_one_line(command, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "/x/y")

    monkeypatch.setattr("mpvss._zoo.list_models", full)
    code, printed, err = command("models")
    assert (code, printed) == (2, "")
    assert err == "mpvss: No space left on device: '/x/y'\n"


def test_doctor_finds_this_installation_healthy(command):
    code, out, _ = command("doctor", "--json")
    found = json.loads(out)
    assert (code, found["problems"]) == (0, [])
    assert found["versions"]["torch"] == metadata.version("torch")
    assert found["codecs"]["write libx264"] == found["codecs"]["write ffv1"] == found["models"]["compact"] == "yes"
    assert "cores" in found["devices"]["cpu"]
    code, out, _ = command("doctor")
    assert code == 0
    assert "none found" in out.splitlines()[-1]


def test_doctor_finds_a_torchvision_made_for_another_torch(command, monkeypatch):
    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "0.1" if name == "torchvision" else version(name))
    monkeypatch.setitem(sys.modules, "torchvision", None)  # its import fails
    code, out, _ = command("doctor", "--json")
    assert code == 1
    (problem,) = json.loads(out)["problems"]
    assert problem.startswith("torchvision 0.1 does not work with this torch (")
    assert problem.endswith("pip uninstall torchvision")
    code, out, _ = command("doctor")
    assert code == 1
    assert problem in out


def test_doctor_finds_a_missing_package_and_a_missing_codec(command, monkeypatch):
    import av

    version, codec = metadata.version, av.Codec

    def without_numpy(name):
        if name == "numpy":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    def without_x264(name, mode):
        if name == "libx264":
            raise av.FFmpegError(1, "no such codec")
        return codec(name, mode)

    monkeypatch.setattr(metadata, "version", without_numpy)
    monkeypatch.setattr(av, "Codec", without_x264)
    code, out, _ = command("doctor", "--json")
    assert code == 1
    assert json.loads(out)["problems"] == [
        "numpy is not installed: pip install mpvss again",
        "this build of PyAV cannot write libx264: install av from its own wheel",
    ]


def test_doctor_and_help_need_nothing_that_may_be_broken():
    code = (
        "import sys, mpvss.cli\n"
        "heavy = {'torch', 'transformers', 'cv2', 'av', 'numpy'} & sys.modules.keys()\n"
        "import mpvss.cli.doctor\n"
        "print(sorted(heavy), sorted({'torch', 'transformers'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[] []\n"


def test_help_and_version(command):
    code, out, err = command("--help")
    assert (code, err) == (0, "")
    assert all(name in out for name in ("segment", "models", "inspect", "doctor"))
    code, out, _ = command("segment", "--help")
    assert code == 0
    options = (
        "--out --model --propagator --motion --direction --interval --no-cuts --save --classes --alpha --legend "
        "--short-side --compare --start --end --stride --device --dtype --no-fast --overwrite --json --verbose --quiet"
    )
    for option in options.split(" "):
        assert option in out
    assert command("--version") == (0, f"{mpvss.__version__}\n", "")


# --- interruption


def test_ctrl_c_in_the_middle(segment, clip, monkeypatch, tmp_path):
    class Interrupted(Hold):
        def estimate_flow(self, *arguments):
            raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules[__name__], "Dis", Interrupted)
    code, result, err = segment(clip, "--interval", "4")
    assert (code, result) == (130, None)
    assert err.splitlines()[-1] == "mpvss: interrupted; nothing half-written was kept"
    assert "Traceback" not in err
    assert names(tmp_path / "OUT") == []


def test_a_signal_leaves_nothing_half_written(tmp_path):
    source = write_video(tmp_path / "long.mp4", pictures(2) * 1500, preset="ultrafast")
    # A shell starts background jobs with SIGINT ignored, but whoever sends it means it. What nohup ignores stays so:
    # these tests may run under it.
    start = "import os, sys; from signal import *; signal(SIGINT, SIG_IGN); signal(SIGHUP, SIG_DFL); "
    ignoring = (sys.executable, "-c", start + "os.execv(sys.argv[1], sys.argv[1:])")
    running = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # at the same time, because most of it is imports
            out = tmp_path / number.name
            options = ("-o", str(out), "--quiet", "--propagator", "none", "--save", "overlay,labels,png")
            running[number, out] = subprocess.Popen(
                [*ignoring, *PROGRAM, "segment", str(source), *options],
                env=ONE_THREAD,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        for (number, out), process in running.items():
            deadline = time.monotonic() + 120
            while not list(out.glob(".long.png.*.part/*.png")):
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < deadline
                time.sleep(0.02)
            process.send_signal(number)
            printed, err = process.communicate(timeout=60)
            assert process.returncode == 130
            assert err == "mpvss: interrupted; nothing half-written was kept\n"
            assert printed == ""
            assert names(out) == []
    finally:
        for process in running.values():
            process.kill()
            process.wait()


def test_an_interrupt_that_a_destructor_lost_ends_the_run_at_the_next_frame(segment, clip, tmp_path, monkeypatch):
    monkeypatch.setattr("mpvss.cli._console.interrupted", threading.Event())
    handle, seen = sys.modules["mpvss.cli.app"]._interrupt, []

    class Last:
        def __del__(self):  # Python ignores what is raised here
            handle(signal.SIGINT)

    class Losing(Hold):
        def estimate_flow(self, *arguments):
            if not seen:
                Last()
            seen.append(1)
            return super().estimate_flow(*arguments)

    monkeypatch.setattr(sys.modules[__name__], "Dis", Losing)
    monkeypatch.setattr("sys.unraisablehook", lambda _: None)
    code, result, _ = segment(clip, "--interval", "4")
    assert (code, result) == (130, None)
    assert names(tmp_path / "OUT") == []


# --- the first hour


def test_a_folder_of_videos_is_answered_with_the_command_that_takes_it(segment, colour, clip, tmp_path):
    folder = tmp_path / "two videos"
    folder.mkdir()
    for name in ("a.mp4", "b.mp4"):
        shutil.copy(clip, folder / name)
    refused(segment(folder), "got a folder of 2", f"mpvss batch '{folder}' -o {tmp_path / 'OUT'}")
    assert colour == []


def test_wrong_class_names_are_refused_before_anything_is_loaded(command, monkeypatch, clip, tmp_path):
    monkeypatch.delattr(VideoSegmenter, "from_pretrained")
    for name in ("segment", "batch"):
        result = command(name, clip, "-o", tmp_path / "OUT", "--classes", "roda")
        refused(result, 'got "roda"; did you mean "road"?')
    assert not (tmp_path / "OUT").exists()


def test_devices_are_refused_by_every_command_before_anything_is_loaded(command, colour, clip, tmp_path):
    for arguments in (("segment", clip), ("batch", clip), ("propagate", clip, "--masks", tmp_path)):
        refused(command(*arguments, "-o", tmp_path / "OUT", "--device", "gpu"), "device must be auto, cpu", "'gpu'")
    assert colour == []


def test_a_mistyped_model_is_answered_with_the_nearest(command, clip, tmp_path):
    refused(command("segment", clip, "-o", tmp_path / "OUT", "--model", "compct"), "compct: ", "did you mean compact?")


def test_the_results_have_a_default_place(command, colour, clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command("segment", clip)[0] == 0
    check_outputs(tmp_path / "out", "clip", FRAMES)
    refused(command("segment", clip), "clip.json exists already")


def test_sizes_are_shown_width_first_and_said_to_be(command, clip):
    assert "size  64x48 (width x height)" in command("inspect", clip)[1]
    assert json.loads(command("inspect", clip, "--json")[1])["size"] == list(SIZE)


def test_convert_takes_its_directory_by_option_or_place(command, monkeypatch, tmp_path):
    made = []
    monkeypatch.setattr("mpvss.convert.checkpoint.convert_reference", lambda checkpoint, out, names: made.append(out))
    assert command("convert", "a.pth", "--out", tmp_path / "b")[0] == 0
    assert command("convert", "a.pth", tmp_path / "b")[0] == 0
    assert made == [tmp_path / "b"] * 2
    refused(command("convert", "a.pth"), "expected one directory to make, as --out")
    refused(command("convert", "a.pth", "b", "-o", "c"), "expected one directory to make, as --out")


def test_stages_that_overlap_are_not_shown_as_a_sum(command, colour, clip, tmp_path):
    assert "(side by side, so not a sum); total" in command("segment", clip, "-o", tmp_path / "OUT")[1]


def test_the_shell_completes_commands(command):
    assert "--install-completion" in command("--help")[1]


def test_doctor_names_what_each_extra_lacks(command, monkeypatch):
    from mpvss.cli import doctor

    monkeypatch.setattr(doctor, "_is_installed", lambda package: package != "s3fs")
    code, out, _ = command("doctor")
    assert "extras  s3: missing s3fs: pip install 'mpvss[s3]'" in out
    assert "extras  http: installed" in out
    assert code == 0


# --- nothing that is typed is a traceback

_ODD = ("", "-1", "1e400", "nan", "9" * 5000, "²", "x" * 5000, "\udcff", "http://[")
_PROGRAM = typer.main.get_command(cli.app)
_COMMANDS = {name: _PROGRAM.get_command(None, name) for name in _PROGRAM.list_commands(None)}
_GIVEN = {
    "segment": ["pictures"], "batch": ["pictures"], "inspect": ["absent"], "cost": ["--arch=r50"],
    "export": ["--size=64x64", "--out=made"], "bench": [], "convert": ["absent", "--out=made"],
    "eval": ["--data=folder:data"], "compare": ["absent", "absent"], "propagate": ["pictures", "--masks=absent"],
    "train": ["config.yaml"], "distill": ["absent", "--out=made"],
}  # fmt: skip


@pytest.fixture
def stopped(monkeypatch, tmp_path):
    """Nothing is loaded, started or run: whatever comes so far ends in one line."""

    def stop(*_, **__):
        raise MpvssError("stopped here")

    names = (
        "segmenter.VideoSegmenter.from_pretrained", "evaluation.run._Scorer", "evaluation.benchmark.bench",
        "convert.cost.cost",
        "training.loop.train", "training.distill.distill", "batch.driver.LocalEngine",
    )  # fmt: skip
    for name in names:  # all of them, before one of them takes another for its own
        pkgutil.resolve_name(f"mpvss.{name}")
    for name in names:
        monkeypatch.setattr(f"mpvss.{name}", stop)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", stop)
    monkeypatch.setattr(sys.modules["mpvss.cli.app"], "app", _PROGRAM)  # built once
    monkeypatch.chdir(tmp_path)
    for folder in ("pictures", "data/images/a", "data/labels/a"):
        Path(folder).mkdir(parents=True)
        Image.new("L" if "labels" in folder else "RGB", (32, 32)).save(f"{folder}/0.png")
    Path("data/classes.txt").write_text("a\nb")
    Path("config.yaml").write_text("{stage: motion, data: {sources: [{data: 'camvid:absent'}]}}")


def test_the_help_says_of_each_command_what_it_says_itself():
    said = {name: command.help.splitlines()[0] for name, command in _COMMANDS.items()}
    table = sys.modules["mpvss.cli.app"].COMMANDS
    assert said == {name: line for name, (_, line) in table.items()}


def test_the_help_imports_no_command():
    code = (
        "import sys\nfrom mpvss import cli\ncli.run(['--help'])\n"
        "print(sorted({'mpvss.options', 'mpvss.cli.segment', 'rich', 'numpy'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_mistyped_command_is_told_the_nearest(command):
    code, _, err = command("segmen")
    assert code == 2
    assert "Did you mean 'segment'?" in err


def test_every_command_with_options_is_tried():
    def takes_values(command):
        return any(not getattr(parameter, "is_flag", False) for parameter in command.params)

    assert set(_GIVEN) == {name for name, command in _COMMANDS.items() if takes_values(command)}


@pytest.mark.parametrize("name", _GIVEN)
def test_odd_values_of_every_option_are_one_line(command, stopped, name):
    for parameter in _COMMANDS[name].params:
        if getattr(parameter, "is_flag", False):
            continue
        for value in _ODD:
            arguments = [name, *_GIVEN[name], f"{parameter.opts[0]}={value}"]
            if parameter.param_type_name == "argument":
                arguments = [name, *[value for _ in _GIVEN[name][:1]], *_GIVEN[name][1:]]
            code, _, err = command(*arguments)
            assert code == 2, (parameter.name, value[:20], err[-300:])
            *_, line = err.strip().splitlines()
            assert line.startswith(("mpvss: ", "Error: ")), (parameter.name, value[:20], line[:200])
            assert max(map(len, err.splitlines())) < 700, (parameter.name, value[:20])


@pytest.mark.parametrize(("value", "message"), [("\0", "NUL byte"), ("a/" * 2000, "at most 500 folders, got 2000")])
def test_what_no_file_is_called_is_refused_at_once(command, value, message):
    for name in ("segment", "inspect", "export", "bench"):
        refused(command(name, "--out", value), message)


@pytest.mark.parametrize("model", ["x" * 5000, "a\0b", "a/" * 3000 + "b", "ä" * 200])
def test_a_model_name_that_no_system_takes(model):
    with pytest.raises(ModelError, match="expected a model"):
        VideoSegmenter.from_pretrained(model)


@pytest.mark.parametrize("start", [2, 72_000])
def test_ranges_count_from_the_first_frame_whatever_its_clock(command, segment, tmp_path, start):
    source = write_video(
        tmp_path / "late.mkv", pictures(), times=range(25 * start, 25 * start + FRAMES), time_base=Fraction(1, 25)
    )
    assert f"{start} s on the source's own clock" in command("inspect", source)[1]
    for more in ((), ("--resume",)):
        shutil.rmtree(tmp_path / "OUT", ignore_errors=True)
        code, _, err = segment(source, "--start", "0.12", "--end", "0.32", *more)
        assert code == 0, err
        found = json.loads((tmp_path / "OUT" / "late.json").read_text())
        assert found["start"] == [start, 1]
        assert [frame["index"] for frame in found["frames"]] == [3, 4, 5, 6, 7]
        assert [float(frame.pts) for frame in read(tmp_path / "OUT" / "late.overlay.mp4")] == [
            0,
            0.04,
            0.08,
            0.12,
            0.16,
        ]


def test_rates_and_streams_are_chosen_at_the_command_line(segment, tmp_path):
    import av

    raw = write_video(tmp_path / "raw.mjpeg", pictures(), codec="mjpeg", pixels="yuvj420p")
    assert segment(raw, "--fps", "10", "--end", "0.5")[0] == 0
    assert [float(frame.pts) for frame in read(tmp_path / "OUT" / "raw.overlay.mp4")] == [0, 0.1, 0.2, 0.3, 0.4]
    two = tmp_path / "two.mkv"
    with av.open(str(two), "w") as container:
        for height in (48, 96):
            stream = container.add_stream("ffv1", rate=25)
            stream.height, stream.width, stream.pix_fmt = height, 64, "yuv420p"
        for stream in container.streams.video:
            for number in range(3):
                picture = av.VideoFrame.from_ndarray(np.zeros((stream.height, 64, 3), np.uint8), "rgb24")
                picture.pts, picture.time_base = number, Fraction(1, 25)
                container.mux(stream.encode(picture))
            container.mux(stream.encode(None))
    for number, height in enumerate((48, 96)):
        assert segment(two, "--video-stream", number, "--overwrite")[0] == 0
        assert probe(tmp_path / "OUT" / "two.overlay.mp4").size == (height, 64)


def test_the_overlay_of_a_broadcast_of_two_halves(segment, tmp_path):
    """The clock starts anew in the middle and the sound becomes mono: one clock, all pictures, all sound."""
    code, _, err = segment(Path(__file__).parent / "data" / "joined.ts")
    overlay = tmp_path / "OUT" / "joined.overlay.mp4"
    assert (code, "the sound" in err) == (0, False)
    assert len(list(read(overlay))) == 24
    import av

    with av.open(str(overlay)) as container:
        pictures_end, sound_end = (float(stream.duration * stream.time_base) for stream in container.streams)
    assert pictures_end == pytest.approx(0.96, abs=0.05)
    assert sound_end == pytest.approx(0.96, abs=0.06)


def test_sound_of_a_pipe_is_said_to_be_left_out(segment, tmp_path):
    path = Path(__file__).parent / "data" / "joined.ts"
    os.mkfifo(tmp_path / "fifo.ts")
    writer = threading.Thread(target=lambda: (tmp_path / "fifo.ts").write_bytes(path.read_bytes()), daemon=True)
    writer.start()
    code, _, err = segment(tmp_path / "fifo.ts")
    writer.join(10)
    assert (code, err.count("its sound is left out of the video, as it is copied from files only")) == (0, 1)


def test_a_live_source_that_is_lost_keeps_what_came(segment, clip, tmp_path, monkeypatch):
    from dataclasses import replace

    from mpvss.errors import SourceError
    from mpvss.video import Reader

    def live(source, **options):
        reader = read(source, **options)
        reader.info = replace(reader.info, live=True)
        return reader

    take = Reader.__next__

    def lost(reader):
        frame = take(reader)
        if frame.index == 5:
            raise SourceError("expected more frames of the live source, got none")
        return frame

    monkeypatch.setattr("mpvss.segmenter.read", live)
    monkeypatch.setattr(Reader, "__next__", lost)
    code, _, err = segment(clip)
    monkeypatch.undo()
    assert (code, "expected more frames of the live source" in err) == (2, True)
    assert (
        len(list(read(tmp_path / "OUT" / "clip.overlay.mp4"))) == len(LabelReader(tmp_path / "OUT" / "clip.json")) == 5
    )


def test_a_second_interrupt_while_finishing_tears_no_file(segment, clip, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Mp4Writer, "_finish", interrupted)
    monkeypatch.setattr(Mp4Writer, "_release", interrupted)
    assert segment(clip)[0] == 130
    assert not [path for path in (tmp_path / "OUT").iterdir() if path.is_file() and not path.name.startswith(".")]
