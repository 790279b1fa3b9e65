"""Checksums of decoded labels over many option combinations: what a change of structure must leave as it is.

    python benchmarks/label_checksums.py VIDEO [VIDEO ...] --work DIR --out before.json
    python benchmarks/label_checksums.py VIDEO [VIDEO ...] --work DIR --out after.json --against before.json

The clips are made once in DIR from the first frames of the videos and used again; every combination is one call of the
command line, so that the script outlives the modules behind it. Exits with 1 where a checksum differs.
"""

import argparse
import json
import shutil
import sys
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from mpvss.cli import run
from mpvss.outputs import LabelReader

SIZE = (272, 480)
FRAMES = 24
# Name of the combination: the clip and the options of ``mpvss segment``.
COMBINATIONS = {
    "default": ("clip", ""),
    "none": ("clip", "--propagator none"),
    **{
        f"{propagator}-{motion}-{direction}": (
            "clip",
            f"--propagator {propagator} --motion {motion} --direction {direction}",
        )
        for propagator in ("dis", "flow", "query")
        for motion in ("chain", "direct")
        for direction in ("forward", "both")
    },
    "hold-forward": ("clip", "--propagator hold --direction forward"),
    "hold-both": ("clip", "--propagator hold --direction both"),
    "interval-1": ("clip", "--interval 1"),
    "interval-5": ("clip", "--interval 5"),
    "interval-10-forward": ("clip", "--interval 10 --direction forward"),
    "cuts": ("cuts", ""),
    "cuts-query": ("cuts", "--propagator query"),
    "no-cuts": ("cuts", "--no-cuts"),
    "short-side-128": ("clip", "--short-side 128"),
    "short-side-320": ("clip", "--short-side 320 --interval 5"),
    "vfr": ("vfr", "--interval 5"),
    "stride": ("clip", "--stride 3 --interval 2"),
    "range": ("clip", "--start 0.2 --end 0.7"),
    "classes": ("clip", "--classes road,car"),
    "resume": ("long", "--resume --direction forward"),
    "no-fast": ("clip", "--no-fast --interval 10"),
    "bfloat16": ("clip", "--dtype bfloat16 --interval 12 --end 0.52"),
}


def frames_of(video: Path, count: int) -> list[np.ndarray]:
    """The first frames of a video at the clips' size."""
    with av.open(str(video)) as container:
        frames = []
        for frame in container.decode(video=0):
            frames.append(frame.reformat(SIZE[1], SIZE[0], "rgb24").to_ndarray())
            if len(frames) == count:
                break
    return frames


def write(path: Path, frames: list[np.ndarray], times: list[int]) -> None:
    """Write frames at these times, in 25ths of a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "12", "preset": "fast", "threads": "1"})
        stream.height, stream.width = SIZE
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 25)
        for rgb, time in zip(frames, times, strict=True):
            frame = av.VideoFrame.from_ndarray(rgb, "rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def make_clips(videos: list[Path], folder: Path) -> None:
    """Write the clips: plain, with cuts between the videos, with uneven times, and one long enough for chunks."""
    folder.mkdir(parents=True, exist_ok=True)
    first = frames_of(videos[0], 2 * FRAMES)
    scenes = [frame for video in videos for frame in frames_of(video, 9)]
    uneven = np.cumsum([1 + (i % 3) * (i % 5) for i in range(FRAMES)]).tolist()
    for name, frames, times in (
        ("clip", first[:FRAMES], list(range(FRAMES))),
        ("cuts", scenes, list(range(len(scenes)))),
        ("vfr", first[:FRAMES], uneven),
        ("long", first, list(range(len(first)))),
    ):
        if not (folder / f"{name}.mkv").exists():
            write(folder / f"{name}.mkv", frames, times)


def checksum(path: Path) -> str:
    """CRC-32 over every frame's index, time, key flag and labels."""
    crc = 0
    for index, pts, labels, is_key in LabelReader(path):
        crc = zlib.crc32(f"{index} {pts} {is_key}".encode(), zlib.crc32(np.ascontiguousarray(labels), crc))
    return f"{crc:08x}"


def main() -> int:
    """Run every combination and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("videos", nargs="+", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--against", type=Path)
    options = parser.parse_args()
    make_clips(options.videos, options.work / "clips")
    sums: dict[str, str] = {}
    for name, (clip, arguments) in COMBINATIONS.items():
        target = options.work / "labels" / name
        shutil.rmtree(target, ignore_errors=True)
        source = str(options.work / "clips" / f"{clip}.mkv")
        code = run(["segment", source, "-o", str(target), "--save", "labels", "--quiet", "--json", *arguments.split()])
        if code:
            return code
        sums[name] = checksum(target / f"{clip}.labels.mkv")
        print(name, sums[name], file=sys.stderr)
    options.out.write_text(json.dumps(sums, indent=1) + "\n")
    if options.against is None:
        return 0
    before = json.loads(options.against.read_text())
    changed = [name for name in sums if sums[name] != before.get(name)]
    print(f"{len(sums) - len(changed)} of {len(sums)} equal; changed: {', '.join(changed) or 'none'}")
    return int(bool(changed))


if __name__ == "__main__":
    raise SystemExit(main())
