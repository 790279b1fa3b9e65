"""What a batch costs: CPU time a frame of each stage, of the driver for a video, and throughput with 1 and 2 workers.

OMP_NUM_THREADS=1 python benchmarks/batch_scaling.py VIDEO
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path

from mpvss.batch import driver as batch_driver
from mpvss.batch.chunks import ChunkedVideo, chunk_files
from mpvss.batch.listed import Listing
from mpvss.batch.run import run_batch
from mpvss.batch.settings import Settings
from mpvss.batch.tasks import Outcome
from mpvss.options import BatchOptions, OutputOptions
from mpvss.video import read


def stages(video: str, seconds: float) -> dict[str, float]:
    """CPU milliseconds a frame."""
    segmenter = Settings().load().with_options(end=seconds)
    costs = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def measure(stage: str, work, frames: int):
            began = time.process_time()
            result = work()
            costs[stage] = 1000 * (time.process_time() - began) / frames
            return result

        frames = sum(1 for _ in read(video, end=seconds))
        measure("one run", lambda: segmenter.process(video, folder / "whole"), frames)
        measure("read", lambda: sum(1 for _ in read(video, end=seconds)), frames)
        chunked = ChunkedVideo(segmenter, video)
        plan = measure("list", lambda: chunked.list_frames(folder, frames // 3, {}), frames)
        listing = Listing.read(folder / "frames.npz")

        def chunks() -> None:
            for number in range(plan.chunks):
                chunked.segment(plan, listing, number, folder)

        measure("segment", chunks, frames)
        files = (folder / chunk_files(number)[0] for number in range(plan.chunks))
        measure("join", lambda: chunked.join(OutputOptions(), plan, files, folder / "joined"), frames)
        size = Path(video).stat().st_size
        labels = (folder / "whole" / f"{Path(video).stem}.labels.mkv").stat().st_size
        costs |= {
            "frames": frames,
            "chunks": plan.chunks,
            "source bytes": size,
            "label bytes a frame": labels / frames,
        }
    return costs


class _Instant:
    """Workers that are done at once."""

    def __init__(self, *_) -> None:
        self._given: deque = deque()

    def idle(self):
        return range(100)

    def submit(self, _, task) -> None:
        self._given.append(task)

    def wait(self, _):
        outputs = {kind: {"path": "x", "bytes": 1, "sha256": "0" * 64} for kind in ("meta", "overlay", "labels")}
        summary = {"frames": 1, "key_frames": 1, "damaged": 0, "outputs": outputs}
        outcomes = [Outcome(task, summary=summary) for task in self._given]
        self._given.clear()
        return outcomes, 0

    def close(self) -> None:
        pass


def driver(videos: int) -> dict[str, float]:
    """Milliseconds of the driver for a video, with a hundred workers that take no time."""
    batch_driver.LocalEngine = _Instant
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in").mkdir()
        for number in range(videos):
            (folder / "in" / f"{number}.mp4").touch()
        cpu, wall = time.process_time(), time.perf_counter()
        run_batch([str(folder / "in")], str(folder / "out"), Settings(split=0), BatchOptions(workers=100))
        return {
            "driver cpu": 1000 * (time.process_time() - cpu) / videos,
            "driver wall": 1000 * (time.perf_counter() - wall) / videos,
            "manifest bytes": (folder / "out" / "manifest.jsonl").stat().st_size / videos,
        }


def throughput(video: str, workers: int, copies: int, seconds: float) -> float:
    """Frames a second of whole batches, from the first video that is begun to the last that is done."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in").mkdir()
        for number in range(copies):
            (folder / "in" / f"{number}.mp4").symlink_to(Path(video).absolute())
        command = [sys.executable, "-m", "mpvss.cli", "batch", str(folder / "in"), "-o", str(folder / "out"), "--quiet"]
        command += ["--workers", str(workers), "--end", str(seconds), "--split", "0", "--json"]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        frames = sum(video["frames"] for video in json.loads(done.stdout)["items"])
        events = [json.loads(line) for line in (folder / "out" / "manifest.jsonl").read_text().splitlines()]
        times = [event["time"] for event in events if event["event"] in {"start", "done"}]
        return frames / (max(times) - min(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("video")
    parser.add_argument("--seconds", type=float, default=3.0, help="of the video that are used")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--copies", type=int, default=4, help="of the video in a batch")
    arguments = parser.parse_args()
    print(json.dumps(stages(arguments.video, arguments.seconds)))
    print(json.dumps(driver(2000)))
    for _ in range(arguments.rounds):
        one, two = (throughput(arguments.video, n, arguments.copies, arguments.seconds) for n in (1, 2))
        print(
            json.dumps({"1 worker": one, "2 workers": two, "ratio": two / one, "load": os.getloadavg()[0]}), flush=True
        )


if __name__ == "__main__":
    main()
