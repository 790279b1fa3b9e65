"""Mutated files for every reader of files that others made.

Each input is a small world (a video, a model, a data set) of which one to three files were damaged, by chance or on
purpose. Its reader must give a result or raise an ``MpvssError``; it must not fail otherwise, hang, take much
memory, start a program, use the network, or write outside its output folder. Readers run in a child process that this
one watches.

    python tests/fuzz.py --inputs 10000 --seed 1 --keep findings

An input follows from the seed and its number alone: ``--only 4711`` runs that one again and prints the traceback.
"""

import argparse
import contextlib
import json
import math
import multiprocessing
import os
import random
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import av
import matplotlib.font_manager  # noqa: F401 - it makes its own folders at home when it is first imported
import numpy as np
import torch
import yaml
from PIL import Image

from helpers import ColourSegmentor, moving_frames
from mpvss.batch.chunks import Plan
from mpvss.batch.listed import FrameList, Listing
from mpvss.batch.manifest import Manifest
from mpvss.batch.sources import expand
from mpvss.convert.checkpoint import convert_reference
from mpvss.datasets import open_dataset
from mpvss.errors import MpvssError, OutputError
from mpvss.evaluation.compare import compare
from mpvss.evaluation.report import write_report
from mpvss.evaluation.run import evaluate
from mpvss.evaluation.run_directory import RunDirectory
from mpvss.motion.dis import Dis, Hold
from mpvss.motion.network.config import QueryFlowConfig
from mpvss.motion.network.query_flow import QueryFlow
from mpvss.options import EvalOptions
from mpvss.outputs import LabelReader, LabelWriter, MetaWriter, Mp4Writer
from mpvss.outputs.audio import Audio
from mpvss.segmenter import VideoSegmenter
from mpvss.segmentors.onnx import ExportInfo
from mpvss.segmentors.protocol import InputRule
from mpvss.training.checkpoints import begin, cut_metrics, load_checkpoint
from mpvss.training.config import load_config, make_config
from mpvss.video import probe, read
from train_world import MOTION, SIZE, make_folder, make_segmentor, make_values

HANG_SECONDS = 10.0
MEMORY_BYTES = 3 << 30
LONGEST_MESSAGE = 20_000
_MOST_FRAMES = 40

Beat = Callable[[], None]
"""Called by a reader whenever something came of its work: only silence is a hang."""


# What is mutated


def make_worlds(root: Path) -> dict[str, Path]:
    """Whole files of every kind that is read, written by the project itself; by reader."""
    worlds: dict[str, Path] = {}

    def place(name: str) -> Path:
        worlds[name] = root / name
        worlds[name].mkdir(parents=True)
        return worlds[name]

    frames = moving_frames(12, (48, 64))
    videos = place("video")
    _write_mp4(videos / "sound.mp4", 12)
    for name, codec, pixels in (
        ("lossless.mkv", "ffv1", "bgr0"),
        ("web.webm", "libvpx-vp9", "yuv420p"),
        ("old.avi", "mjpeg", "yuvj420p"),
        ("picture.gif", "gif", "rgb8"),
        ("stream.ts", "libx264", "yuv420p"),
        ("raw.h264", "libx264", "yuv420p"),
        ("part4.mov", "mpeg4", "yuv420p"),
    ):
        with av.open(str(videos / name), "w") as container:
            stream = container.add_stream(codec, rate=25, options={"deadline": "realtime"} if "vp9" in codec else {})
            stream.height, stream.width, stream.pix_fmt = 48, 64, pixels
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame.rgb, "rgb24")))
            container.mux(stream.encode(None))
    shutil.copytree(videos, place("segment"), dirs_exist_ok=True)

    images = place("images")
    for frame in frames[:6]:
        Image.fromarray(frame.rgb).save(images / f"{frame.index}.png")
    for suffix in ("jpg", "bmp", "tiff", "webp"):
        Image.fromarray(frames[0].rgb).save(images / f"9.{suffix}", exif=_exif())

    labels = place("labels")
    tick = Fraction(1, 25)
    header = {"classes": list("abc"), "size": [48, 64], "palette": [[0, 0, 0]] * 3, "ignore": 255}
    for name, classes in (("few", 3), ("many", 300)):
        dtype = np.uint8 if classes == 3 else np.uint16
        named = header | {"classes": [str(i) for i in range(classes)]}
        with (
            MetaWriter(labels / f"{name}.json", named, tick) as meta,
            LabelWriter(labels / f"{name}.labels.mkv", (48, 64), classes, tick) as video,
        ):
            for frame in frames:
                meta.add(frame.index, frame.index * tick, frame.index % 5 == 0)
                video.append((frame.rgb[..., 0] // 90).astype(dtype), frame.index * tick)

    plain = make_folder(place("folder"))
    (plain / "val.txt").write_text("clip0\nclip1\n")
    vspw = place("vspw")
    for video in ("a", "b"):
        shutil.copytree(plain / "images" / "clip0", vspw / "data" / video / "origin")
        shutil.copytree(plain / "labels" / "clip1", vspw / "data" / video / "mask")
    (vspw / "val.txt").write_text("a\nb\n")
    (vspw / "label_num_dic_final.json").write_text(json.dumps({f"thing{i}": i for i in range(1, 125)}))
    davis = place("davis")
    for clip in ("cow", "dog"):
        shutil.copytree(plain / "images" / "clip0", davis / "JPEGImages" / "480p" / clip)
        (davis / "Annotations" / "480p" / clip).mkdir(parents=True)
        for path in (plain / "labels" / "clip0").iterdir():
            mask = np.asarray(Image.open(path)) % 2 * 255
            Image.fromarray(mask.astype(np.uint8)).save(davis / "Annotations" / "480p" / clip / path.name)
    (davis / "ImageSets" / "2016").mkdir(parents=True)
    (davis / "ImageSets" / "2016" / "val.txt").write_text("cow\ndog\n")
    camvid = place("camvid")
    for kind in ("images", "labels"):
        (camvid / kind).mkdir()
        for number, path in enumerate(sorted((plain / kind / "clip0").iterdir())):
            shutil.copy(path, camvid / kind / f"0016E5_{30 * number:05}.png")

    make_segmentor(place("segmentor"))
    motion = place("motion")
    shutil.copytree(worlds["segmentor"], motion / "segmentor")
    module = QueryFlow(QueryFlowConfig.from_dict({**MOTION, "num_queries": 6, "query_width": 32}))
    module.segmentor = "segmentor"
    module.save_pretrained(motion)

    config = place("config")
    (config / "train.yaml").write_text(yaml.safe_dump(make_values(Path("world"), Path("run")), sort_keys=False))
    run = place("resume")
    made = make_config(make_values(Path("world"), Path("run")))
    begin(run, made, resume=False)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = {"step": 4, "model": model.state_dict(), "average": {}, "best": None, "optimizer": optimizer.state_dict()}
    (run / "checkpoints").mkdir()
    torch.save(state | {"scaler": None}, run / "checkpoints" / "step-00000004.pt")
    (run / "metrics.jsonl").write_text("".join(json.dumps({"step": i, "loss": 1 / (i + 1)}) + "\n" for i in range(6)))
    torch.save({"model": module.state_dict()}, place("convert") / "published.pth")

    batch = place("batch")
    identity: dict[str, Any] = {"source": "a.mp4", "options": {"interval": 5}}
    (batch / "plan.json").write_text(
        json.dumps(vars(Plan(identity, "both", (48, 64), 12, [0, 5, 12], 0, ["a warning"])), indent=1)
    )
    steps = np.arange(12, dtype=np.int64)
    times = FrameList(steps, steps, steps.astype(np.uint32), tick)
    Listing(times, steps % 5 == 0, steps == 7).write(batch / "frames.npz")
    with contextlib.closing(Manifest(batch / "manifest.jsonl")) as manifest:
        manifest.add(
            "run", schema=1, settings={"save": ["labels"]}, overwrite=False, engine="local", workers=2, items=2
        )
        for item in ("a", "b/c"):
            manifest.add("start", item=item, source=f"{item}.mp4")
            manifest.add("done", item=item, attempts=1, outputs={"meta": {"bytes": 3, "sha256": "0" * 64}})
    (batch / "list.jsonl").write_text('{"source": "a.mp4"}\n{"source": "b.mp4", "name": "b/c"}\n')
    for name in ("a", "b"):
        (batch / f"{name}.mp4").touch()
    rule = vars(InputRule(short_side=64))
    export = ExportInfo("a", ("x", "y"), InputRule(**rule), (64, 96), None, 4, {"class_logits": 0.0})
    (batch / "export.json").write_text(export.to_json())

    runs = place("run")
    for name in ("a", "b"):
        evaluate(_hold(f"folder:{plain}", interval=2 + (name == "b")), runs / name)
    return worlds


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def _write_mp4(path: Path, count: int) -> None:
    """H.264 with a second of sound."""
    sound = path.with_suffix(".wav")
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        stream.layout = "mono"
        tone = (8000 * np.sin(np.arange(8000) / 9)).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(tone, "s16", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with Mp4Writer(path, (48, 64), Fraction(1, 25), audio=Audio(sound)) as writer:
        for frame in moving_frames(count, (48, 64)):
            writer.append(frame.rgb, Fraction(frame.index, 25))


def _hold(data: str, **options: Any) -> EvalOptions:
    settings = {"propagator": "hold", "direction": "forward", "oracle": True, "interval": 2}
    return EvalOptions(data=data, **(settings | options))


# How it is mutated

_EXTREMES = (0, 1, 2, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def _mutate_bytes(data: bytes, rng: random.Random, other: bytes) -> bytes:
    """One change that knows nothing of the format."""
    out = bytearray(data)
    if not out:
        return other[: rng.randrange(1, 500)]
    at = rng.randrange(len(out))
    if rng.random() < 0.4:  # headers are where the lengths are
        at = min(at, rng.randrange(1, 600))
    kind = rng.choice(("flip", "run", "cut", "double", "splice", "length", "length", "remove", "number"))
    if kind == "flip":
        for _ in range(rng.choice((1, 1, 3, 20))):
            out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    elif kind == "run":
        length = rng.choice((1, 4, 16, 100, 1000))
        value = rng.choice((b"\0", b"\xff", bytes([rng.randrange(256)])))
        out[at : at + length] = value * len(out[at : at + length])
    elif kind == "cut":
        del out[at:]
    elif kind == "double":
        end = min(len(out), at + rng.choice((4, 64, 1000, 10**6)))
        out[at:at] = out[at:end]
    elif kind == "splice":
        begin = rng.randrange(len(other) or 1)
        out[at : at + rng.choice((0, 8, 200))] = other[begin : begin + rng.choice((8, 200, 5000))]
    elif kind == "remove":
        del out[at : at + rng.choice((1, 4, 100, 2000))]
    elif kind == "number":
        out[at] = rng.randrange(256)
    else:
        form = rng.choice((">I", ">I", "<I", ">H", "<H", ">Q", "<Q"))
        value = rng.choice((*_EXTREMES, len(data), 2**63, 2**64 - 1, rng.getrandbits(32)))
        packed = struct.pack(form, value % (1 << 8 * struct.calcsize(form)))
        out[at : at + len(packed)] = packed
    return bytes(out)


def _mutate_png(data: bytes, rng: random.Random, other: bytes) -> bytes:
    """A change inside a chunk, with the checksum made right again."""
    chunks, at = [], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        chunks.append([data[at + 4 : at + 8], data[at + 8 : at + 8 + length]])
        at += 12 + length
    if not chunks:
        return data
    chosen = rng.choice(chunks[:1] * 2 + chunks)
    chosen[1] = _mutate_bytes(chosen[1], rng, other)
    if chosen[0] == b"IHDR" and rng.random() < 0.5:
        chosen[1] = struct.pack(">II", *rng.choices((0, 1, 64, 20_000, 2**16, 2**31 - 1), k=2)) + chosen[1][8:]
    if rng.random() < 0.2:
        chunks.insert(
            1, [rng.choice((b"zTXt", b"iCCP", b"tRNS", b"acTL")), b"a\0\0" + zlib.compress(bytes(50_000_000))]
        )
    return data[:8] + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


class _Raw(str):
    """Text that stands in a JSON file as it is."""


def _hostile(rng: random.Random) -> Any:
    return rng.choice(
        (
            None, True, False, 0, 1, -1, 2, 3, 7, 100, 1000, 2**15, 2**20, 2**31 - 1, 2**31, 2**40, 2**63, 2**64,
            10**30, 0.5, -0.0, 1e-300, 1e308, math.nan, math.inf, -math.inf, _Raw("1" * 5000), _Raw("[" * 100_000), "",
            "x" * 10_000, "\0", "\ud800", "é\n\x1b[31m", "../../outside", "/", ".", "..", "a/b", "!!int x",
            [], {}, [[]], [0], [1, 2], [-1, 2**40], ["a"] * 3, {"a": 1}, [[[[[]]]]], [[1, 2], [3]], [10**400], [None],
            "0",
            list(range(300)), {"index": [2**40], "count": [1]}, {"index": [-1], "count": [1e308]},
        )
    )  # fmt: skip


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    items: Any = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield node, key
        yield from _places(value)


def _mutate_tree(tree: Any, rng: random.Random) -> Any:
    """One change of a value that was parsed: another value, a key less, more or twice."""
    places = list(_places(tree))
    if not places or rng.random() < 0.05:
        return _hostile(rng)
    # Half of the time near the top, where what matters is.
    parent, key = rng.choice(places[:40] if rng.random() < 0.5 else places)
    kind = rng.choice(("value", "value", "value", "number", "number", "delete", "rename", "swap", "deep"))
    value = parent[key]
    if kind == "number" and isinstance(value, int | float):
        parent[key] = rng.choice(
            (-value, value + 1, value - 1, value * 2, value * 1000, value / 3, str(value), [value])
        )
    elif kind == "delete":
        del parent[key]
    elif kind == "rename" and isinstance(parent, dict):
        parent[rng.choice((f"{key}_", str(key).upper(), "", "schema", "model_type"))] = parent.pop(key)
    elif kind == "swap":
        other, there = rng.choice(places)
        parent[key] = json.loads(json.dumps(other[there]))
    elif kind == "deep":
        for _ in range(rng.choice((2, 50))):
            value = rng.choice(([value], {"a": value}))
        parent[key] = value
    else:
        parent[key] = _hostile(rng)
    return tree


def _json_text(tree: Any) -> str:
    class Encoder(json.JSONEncoder):
        def iterencode(self, o: Any, _one_shot: bool = False) -> Iterator[str]:
            return super().iterencode(o, False)

    raw: dict[str, str] = {}

    def plain(node: Any) -> Any:
        if isinstance(node, _Raw):
            raw[f"\x01{len(raw)}"] = node
            return f"\x01{len(raw) - 1}"
        if isinstance(node, dict):
            return {str(key): plain(value) for key, value in node.items()}
        return [plain(value) for value in node] if isinstance(node, list) else node

    sys.set_int_max_str_digits(0)
    text = json.dumps(plain(tree))
    sys.set_int_max_str_digits(4300)
    for name, value in raw.items():
        text = text.replace(json.dumps(name), value)
    return text


def _mutate_json(data: bytes, rng: random.Random, other: bytes) -> bytes:
    tree = json.loads(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        tree = _mutate_tree(tree, rng)
    text = _json_text(tree)
    if isinstance(tree, dict) and tree and rng.random() < 0.1:
        text = "{" + json.dumps(str(rng.choice(list(tree)))) + ": " + _json_text(_hostile(rng)) + ", " + text[1:]
    return text.encode("utf-8", "surrogatepass")


def _mutate_lines(data: bytes, rng: random.Random, other: bytes) -> bytes:
    """A line of JSON, or of text that names something."""
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    kind = rng.choice(("json", "json", "name", "delete", "double", "cut"))
    if kind == "json":
        lines[at] = _mutate_json(lines[at] or lines[0], rng, other)
    elif kind == "name":
        lines[at] = rng.choice(
            (
                b"..",
                b"../../outside",
                b"/",
                b"a\0b",
                b"\xff\xfe",
                b"x" * 300,
                b".",
                b"../../world/data/a",
                b"{}",
                b"1",
                b"null",
                b" ",
            )
        )
    elif kind == "delete":
        del lines[at]
    elif kind == "double":
        lines.insert(at, lines[at])
    else:
        lines[at] = lines[at][: len(lines[at]) // 2]
    return b"\n".join(lines)


_BOMB = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x, x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))]
)
_YAML_VALUES = (
    "!!python/object/apply:os.system ['touch PWNED']", "!!python/name:os.system", "!!int x", "!!float ''",
    "!!timestamp x", "2001-99-99", "!!binary '%'", "!!set {a}", "!!omap [a]", "&x [*x]", "*nowhere", "? {a: b}",
    "0o9", "0b", "1:99",
    "[" * 3000, "{a: " * 2000, "!!bool x", "1e999999", "-.inf", ".nan", "|\n  text", "\t", "%YAML 9.9",
    "'", "\x07", "1_0",
    "!!null x", "!!str [a]", "!!map [a]", "!!seq {a: b}", "0x", "=", "1" * 5000, "190:20:30.15",
)  # fmt: skip


def _mutate_yaml(data: bytes, rng: random.Random, other: bytes) -> bytes:
    if rng.random() < 0.5:
        if b"&" in data:
            raise ValueError("what aliases stand for has no bounds")
        return yaml.safe_dump(_mutate_tree(yaml.safe_load(data), rng), sort_keys=False).encode("utf-8", "surrogatepass")
    lines = data.decode("utf-8", "replace").split("\n")
    at = rng.randrange(len(lines))
    key = lines[at].partition(":")[0]
    lines[at] = f"{key}: {rng.choice(_YAML_VALUES)}"
    if rng.random() < 0.1:
        lines.insert(0, _BOMB)
        lines.append(f"model: {{motion: *a{rng.randrange(12)}}}")
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def _mutate_safetensors(data: bytes, rng: random.Random, other: bytes) -> bytes:
    """A change of the header, with its length made right again."""
    length = int.from_bytes(data[:8], "little")
    header = _mutate_json(data[8 : 8 + length], rng, other)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def _mutate_zip(data: bytes, rng: random.Random, other: bytes) -> bytes:
    """A change of one member of a torch file, with the checksums made right again."""
    with zipfile.ZipFile(BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    pickled = [name for name in members if name.endswith("data.pkl")]
    name = rng.choice([*pickled * 4, *members])
    members[name] = _mutate_bytes(members[name], rng, other)
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    return packed.getvalue()


_FORMATS: dict[str, Callable[[bytes, random.Random, bytes], bytes]] = {
    ".json": _mutate_json,
    ".jsonl": _mutate_lines,
    ".txt": _mutate_lines,
    ".yaml": _mutate_yaml,
    ".png": _mutate_png,
    ".safetensors": _mutate_safetensors,
    ".pt": _mutate_zip,
    ".pth": _mutate_zip,
    ".npz": _mutate_zip,
}


def mutate(path: Path, rng: random.Random, others: list[Path]) -> None:
    """Damage one file."""
    data, other = path.read_bytes(), rng.choice(others).read_bytes()
    aware = _FORMATS.get(path.suffix)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        if aware is not None and rng.random() < 0.7:
            try:
                data = aware(data, rng, other)
                continue
            except Exception:  # what was changed before is of its format no longer
                pass
        data = _mutate_bytes(data, rng, other)
    path.write_bytes(data)


# What reads it


def _read_all(source: Path, beat: Beat) -> None:
    probe(source).to_dict()
    beat()
    with read(source) as reader:
        for count, frame in enumerate(reader, 1):
            assert frame.rgb.shape == (*reader.info.size, 3)
            beat()
            if count >= _MOST_FRAMES:
                break


def _video(world: Path, out: Path, beat: Beat, rng: random.Random) -> None:
    _read_all(world, beat)


def _segment(world: Path, out: Path, beat: Beat, rng: random.Random) -> None:
    segmenter = VideoSegmenter(ColourSegmentor(32), rng.choice((Dis, Hold))(), interval=3)
    save = rng.choice((("overlay",), ("labels",), ("png",), ("overlay", "labels")))
    end = Fraction(10) if rng.random() < 0.5 else None

    def on_frame(result: Any) -> None:
        beat()
        if result.index >= _MOST_FRAMES:
            raise MpvssError("enough")

    try:
        segmenter.process(world, out, save=save, end=end, on_frame=on_frame)
    except OutputError as error:
        raise AssertionError("a damaged source was blamed on the output") from error


def _labels(world: Path, out: Path, beat: Beat, rng: random.Random) -> None:
    for name in ("few", "many"):
        for _ in LabelReader(world / f"{name}.json"):
            beat()


def _dataset(kind: str) -> Callable[[Path, Path, Beat, random.Random], None]:
    def run(world: Path, out: Path, beat: Beat, rng: random.Random) -> None:
        split = rng.choice((None, "val")) if kind in ("folder", "vspw", "davis") else None
        if rng.random() < 0.5:
            options = _hold(f"{kind}:{world}", split=split, save_predictions=str(out / "predictions"))
            evaluate(options, out / "run", on_video=lambda *_: beat())
            return
        for clip in open_dataset(f"{kind}:{world}", split).clips:
            for i in range(len(clip)):
                clip.load_image(i)
                clip.load_label(i)
                beat()

    return run


def _model(propagator: str) -> Callable[[Path, Path, Beat, random.Random], None]:
    def run(world: Path, out: Path, beat: Beat, rng: random.Random) -> None:
        segmenter = VideoSegmenter.from_pretrained(world, propagator=propagator, interval=2, device="cpu")
        beat()
        for _ in segmenter.stream(moving_frames(3, SIZE)):
            beat()

    return run


def _config(world: Path, out: Path, beat: Beat, rng: random.Random) -> None:
    load_config(world / "train.yaml", [f"optim.lr={rng.choice(_YAML_VALUES)}"] if rng.random() < 0.3 else [])


def _resume(world: Path, out: Path, beat: Beat, rng: random.Random) -> None:
    run = out / "run"
    shutil.copytree(world, run)
    config = make_config(make_values(Path("world"), Path("run")))
    checkpoint = begin(run, config, resume=True)
    beat()
    cut_metrics(run, 3)
    if checkpoint is not None:
        state = load_checkpoint(checkpoint)
        assert isinstance(state["step"], int)


def _convert(world: Path, out: Path, beat: Beat, rng: random.Random) -> None:
    convert_reference(world / "published.pth", out / "model")


def _run(world: Path, out: Path, beat: Beat, rng: random.Random) -> None:
    for name in ("a", "b"):
        RunDirectory(world / name).result()
    compare(world / "a", world / "b", samples=20)
    beat()
    if rng.random() < 0.3:
        write_report(world / "a", out / "report", baseline=world / "b")


def _batch(world: Path, out: Path, beat: Beat, rng: random.Random) -> None:
    shutil.copy(world / "manifest.jsonl", out / "manifest.jsonl")
    readers: list[Callable[[], Any]] = [
        lambda: Manifest(out / "manifest.jsonl").close(),
        lambda: Plan.read(world),
        lambda: Listing.read(world / "frames.npz"),
        lambda: expand([str(world / "list.jsonl")]),
        lambda: ExportInfo.read(world),
    ]
    refused = None
    for reader in readers:
        try:
            reader()
        except MpvssError as error:
            refused = error
    if refused is not None:
        raise refused


READERS: dict[str, tuple[int, Callable[[Path, Path, Beat, random.Random], None]]] = {
    "video": (6, _video),
    "segment": (5, _segment),
    "images": (2, _video),
    "labels": (3, _labels),
    "folder": (1, _dataset("folder")),
    "vspw": (1, _dataset("vspw")),
    "davis": (1, _dataset("davis")),
    "camvid": (1, _dataset("camvid")),
    "segmentor": (3, _model("dis")),
    "motion": (3, _model("query")),
    "config": (3, _config),
    "resume": (3, _resume),
    "convert": (1, _convert),
    "run": (3, _run),
    "batch": (3, _batch),
}
"""Each reader, and how often its turn comes."""


# One input


@dataclass(frozen=True)
class Outcome:
    """What became of an input.

    Attributes:
        number: Of the input.
        reader: Which reader it was for.
        kind: ``read`` and ``refused`` are as they should be.
        detail: The message or the traceback.
    """

    number: int
    reader: str
    kind: str
    detail: str = ""

    @property
    def good(self) -> bool:
        """Whether it is as it should be."""
        return self.kind in ("read", "refused")


def build(number: int, seed: int, worlds: dict[str, Path], place: Path) -> tuple[str, Path, random.Random]:
    """Lay out an input: its reader, what the reader is given, and what is left of the chance."""
    rng = random.Random(f"{seed}:{number}")
    reader = rng.choices(list(READERS), [weight for weight, _ in READERS.values()])[0]
    source = worlds[reader]
    world = place / "world"
    if reader in ("video", "segment"):
        chosen = rng.choice(sorted(source.iterdir()))
        world = place / f"world{chosen.suffix}"
        shutil.copy(chosen, world)
        files = [world]
    else:
        shutil.copytree(source, world)
        files = sorted(path for path in world.rglob("*") if path.is_file())
    others = sorted(path for path in source.rglob("*") if path.is_file())
    by_suffix = {path.suffix: path for path in rng.sample(files, len(files))}
    for _ in range(rng.choice((1, 1, 2, 3))):  # each kind of file as often as the others
        mutate(rng.choice((rng.choice(files), rng.choice(sorted(by_suffix.values())))), rng, others)
    if reader == "images" and rng.random() < 0.3:
        world = rng.choice(files)
    return reader, world, rng


_ALLOWED_OUTSIDE = ("/dev/null", "/dev/urandom")


class _Guard:
    """Notices what no reader may do; installed once in a child process."""

    def __init__(self) -> None:
        self.out: Path | None = None
        self.seen: list[str] = []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.out is None:
            return
        if event in (
            "socket.connect",
            "socket.getaddrinfo",
            "subprocess.Popen",
            "os.system",
            "os.exec",
            "os.posix_spawn",
        ):
            self.seen.append(f"{event} {arguments!r:.300}")
        elif event == "open" and isinstance(arguments[0], str | bytes):
            flags = arguments[2] if isinstance(arguments[2], int) else 0
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
                self._check(event, arguments[0])
        elif event in ("os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod", "shutil.rmtree"):
            self._check(event, arguments[0])
        elif event in ("os.rename", "os.link", "os.symlink"):
            self._check(event, arguments[1])

    def _check(self, event: str, path: Any) -> None:
        assert self.out is not None
        if isinstance(path, int):
            return
        text = os.path.realpath(os.fsdecode(path))
        if text not in _ALLOWED_OUTSIDE and Path(text) != self.out and self.out not in Path(text).parents:
            self.seen.append(f"{event} {text!r:.300}")


def _snapshot(place: Path) -> dict[str, tuple[int, int]]:
    found = {}
    for path in place.rglob("*"):
        if path.name != "OUT" and place / "OUT" not in path.parents:
            status = path.lstat()
            found[str(path)] = (status.st_size, status.st_mtime_ns if path.is_file() else 0)
    return found


def run_one(
    number: int, seed: int, worlds: dict[str, Path], place: Path, guard: _Guard, say: Callable[[str], None]
) -> Outcome:
    """Build an input in an empty folder and let its reader have it."""
    guard.out = None
    shutil.rmtree(place, ignore_errors=True)
    (place / "work").mkdir(parents=True)
    (place / "outside").mkdir()
    (place / "OUT").mkdir()
    os.chdir(place / "work")
    reader, world, rng = build(number, seed, worlds, place)
    before = _snapshot(place)
    guard.seen.clear()
    guard.out = (place / "OUT").resolve()
    say(reader)
    kind, detail = "read", ""
    try:
        READERS[reader][1](world, place / "OUT", lambda: say(reader), rng)
    except MpvssError as error:
        kind, detail = "refused", f"{type(error).__name__}: {error}"
        if len(detail) > LONGEST_MESSAGE:
            kind, detail = "message", f"a message of {len(detail)} characters: {detail[:500]}"
    except BaseException:
        kind, detail = "exception", traceback.format_exc(limit=-12)[-6000:]
    guard.out = None
    if guard.seen:
        kind, detail = "outside", "\n".join(guard.seen)[:3000]
    elif _snapshot(place) != before:
        changed = {path for path, _ in set(_snapshot(place).items()) ^ set(before.items())}
        kind, detail = "outside", f"changed: {sorted(changed)}"
    return Outcome(number, reader, kind, detail)


# The process that reads, and the one that watches


def _child(pipe: Connection, parents: Connection, seed: int, worlds: dict[str, Path], place: Path) -> None:
    parents.close()  # so that the end of the parent is heard
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    quiet = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(quiet, stream)
    guard = _Guard()
    last = 0.0

    def say(reader: str) -> None:
        nonlocal last
        if time.monotonic() - last > 0.1:  # a reader of many small things would do little else
            last = time.monotonic()
            pipe.send(reader)

    pipe.send("ready")
    while True:
        try:
            number = pipe.recv()
        except EOFError:
            return
        last = 0.0
        pipe.send(run_one(number, seed, worlds, place, guard, say))


def _cpu_seconds(pid: int) -> float:
    try:
        numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(numbers[11]) + int(numbers[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return 0.0


def _memory(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0


class Worker:
    """A child process that reads one input after the other; made anew when it has to be stopped."""

    def __init__(self, seed: int, worlds: dict[str, Path], place: Path) -> None:
        self.peak = 0
        self.slowest = 0.0
        self._arguments = (seed, worlds, place)
        self._start()

    def _start(self) -> None:
        fork = multiprocessing.get_context("fork")
        self._pipe, other = fork.Pipe()
        self._process = fork.Process(target=_child, args=(other, self._pipe, *self._arguments), daemon=True)
        self._process.start()
        other.close()
        assert self._pipe.recv() == "ready"
        self._base = _memory(self._process.pid or 0)

    def close(self) -> None:
        """End the child."""
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def run(self, number: int) -> Outcome:
        """Have the child read an input, or find out why it cannot."""
        self._pipe.send(number)
        pid = self._process.pid or 0
        reader = "none yet"
        heard, worked = time.monotonic(), _cpu_seconds(pid)
        while True:
            try:
                if self._pipe.poll(0.02):
                    said = self._pipe.recv()
                    if isinstance(said, Outcome):
                        return said
                    reader = said
                    self.slowest = max(self.slowest, _cpu_seconds(pid) - worked)
                    heard, worked = time.monotonic(), _cpu_seconds(pid)
            except (EOFError, OSError):
                self._process.join(5)
                trouble = ("crash", f"the process ended with {self._process.exitcode}")
                break
            grown = _memory(pid) - self._base
            self.peak = max(self.peak, grown)
            if grown > MEMORY_BYTES:
                trouble = ("memory", f"{grown >> 20} MiB more than before")
                break
            # Of its own time, because the machine may have other work; and of anyone's, for what waits.
            if _cpu_seconds(pid) - worked > HANG_SECONDS or time.monotonic() - heard > 6 * HANG_SECONDS:
                trouble = ("hang", f"nothing for {HANG_SECONDS:g} s")
                break
        self.close()
        self._start()
        return Outcome(number, reader, *trouble)


def fuzz(
    numbers: range, seed: int, folder: Path, keep: Path | None = None, seconds: float = math.inf
) -> dict[str, Any]:
    """Run inputs, and return how many had which outcome, and what is not as it should be.

    Args:
        numbers: Of the inputs.
        seed: They follow from it.
        folder: An empty folder to work in.
        keep: Where the inputs of findings are copied to.
        seconds: No input is begun after this time, in which the worlds are made as well.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)
    began = time.monotonic()
    worlds = make_worlds(folder / "worlds")
    _warm(worlds, folder / "warm")
    worker = Worker(seed, worlds, folder / "place")
    counts: Counter[str] = Counter()
    by_reader: dict[str, Counter[str]] = {}
    findings = []
    number = numbers.start
    try:
        for number in numbers:
            if time.monotonic() - began > seconds:
                break
            outcome = worker.run(number)
            counts[outcome.kind] += 1
            by_reader.setdefault(outcome.reader, Counter())[outcome.kind] += 1
            if not outcome.good:
                findings.append(vars(outcome))
                if keep is not None:
                    kept = keep / f"{seed}-{number}"
                    shutil.rmtree(kept, ignore_errors=True)
                    shutil.copytree(folder / "place", kept, symlinks=True)
                    (kept / "finding.json").write_text(json.dumps(vars(outcome), indent=1))
    finally:
        worker.close()
    return {
        "seed": seed,
        "inputs": counts.total(),
        "next": numbers.start + counts.total(),
        "outcomes": dict(counts),
        "by_reader": {reader: dict(by_reader[reader]) for reader in sorted(by_reader)},
        "seconds": round(time.monotonic() - began, 1),
        "slowest_step_seconds": round(worker.slowest, 2),
        "most_memory_mib": worker.peak >> 20,
        "findings": findings,
    }


def _warm(worlds: dict[str, Path], place: Path) -> None:
    """Import and set up what the readers need, once for all children, and see that undamaged files are read."""
    for reader, (_, run) in READERS.items():
        world, out = place / reader / "world", place / reader / "OUT"
        shutil.copytree(worlds[reader], world)
        out.mkdir()
        chosen = world / "sound.mp4" if reader in ("video", "segment") else world
        if reader == "images":
            for path in world.glob("9.*"):
                path.unlink()
        try:
            run(chosen, out, lambda: None, random.Random(0))
        except MpvssError as error:
            if reader != "convert":  # the file is no whole published model
                raise AssertionError(f"{reader}: an undamaged world was refused") from error
    shutil.rmtree(place)


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--inputs", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no input after so many seconds")
    parser.add_argument("--keep", type=Path, help="copy the inputs of findings here")
    parser.add_argument("--only", type=int, help="run this input in this process and print what comes of it")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the child and the folder are taken along
    with tempfile.TemporaryDirectory(prefix="mpvss-fuzz-") as temporary:
        folder = Path(temporary).resolve()
        if arguments.only is None:
            numbers = range(arguments.first, arguments.first + arguments.inputs)
            report = fuzz(numbers, arguments.seed, folder, arguments.keep, arguments.seconds)
            print(json.dumps(report, indent=1))
            return 1 if report["findings"] else 0
        os.environ["HF_HUB_OFFLINE"] = "1"
        worlds = make_worlds(folder / "worlds")
        outcome = run_one(arguments.only, arguments.seed, worlds, folder / "place", _Guard(), lambda _: None)
        print(f"{outcome.number} {outcome.reader} {outcome.kind}\n{outcome.detail}")
        if arguments.keep is not None:
            shutil.copytree(folder / "place", arguments.keep / f"{arguments.seed}-{arguments.only}", dirs_exist_ok=True)
        os.chdir("/")
        return 0 if outcome.good else 1


if __name__ == "__main__":
    sys.exit(main())
