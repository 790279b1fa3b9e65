"""Codec flow beside DIS and hold: accuracy from true labels and from a model, and CPU time of a frame between.

python benchmarks/codec.py camvid:DIR [--split clip] [--refs 1] [--codec libx264] [--model compact] [--rounds 5]

The clip's images are encoded without B frames (CRF 23, or 2 Mbit/s of MPEG-4) and read back with their motion vectors;
labels are those of the clip. One thread; seconds are the process's own, so a busy machine matters less.
"""

import argparse
import tempfile
import time
import types
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from mpvss import VideoSegmenter
from mpvss.datasets import open_dataset
from mpvss.datasets.clips import Clip
from mpvss.engine import stage_clock
from mpvss.engine.schedule import FixedInterval
from mpvss.engine.session import Session
from mpvss.engine.true_labels import true_label_carrier
from mpvss.metrics import ConfusionMatrix
from mpvss.motion.propagators import make_propagator
from mpvss.types import Frame, Segmentation
from mpvss.video import read


def encode(path: Path, clip: Clip, codec: str, refs: int) -> None:
    """Write a clip's images as a video without B frames."""
    options = {"bf": "0"} | ({"refs": str(refs)} if codec == "libx264" else {"b": "2000000"})
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=round(clip.fps), options=options)
        stream.height, stream.width = clip.load_image(0).shape[:2]
        stream.pix_fmt = "yuv420p"
        for index in range(len(clip)):
            frame = av.VideoFrame.from_ndarray(clip.load_image(index), "rgb24")
            frame.pts, frame.time_base = index, Fraction(1, round(clip.fps))
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def results_of(session: Session, frames: Sequence[Frame]) -> list[Segmentation]:
    """Segment frames."""
    return [result for frame in frames for result in session.push(frame, copy=False)] + session.finish()


def miou(results: Sequence[Segmentation], clip: Clip) -> float:
    """Score results against the clip's labels; 255 in a result is no class."""
    matrix = ConfusionMatrix(clip.num_classes + 1)
    for result in results:
        truth = clip.load_label(result.index)
        assert truth is not None
        matrix.update(np.minimum(result.labels, clip.num_classes), truth)
    return float(np.nanmean(matrix.iou[: clip.num_classes]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--split")
    parser.add_argument("--refs", type=int, default=1)
    parser.add_argument("--codec", default="libx264")
    parser.add_argument("--model", default="compact")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    stage_clock.time = types.SimpleNamespace(perf_counter=time.process_time)  # type: ignore[assignment]
    clip = open_dataset(options.data, options.split).clips[0]
    with tempfile.TemporaryDirectory() as folder:
        encode(Path(folder) / "clip.mp4", clip, options.codec, options.refs)
        with read(Path(folder) / "clip.mp4", vectors=True) as reader:
            frames = list(reader)
    print(f"{sum(frame.vectors is not None for frame in frames)} of {len(frames)} frames have vectors")
    ids = np.array([*range(clip.num_classes), clip.ignore])
    loaded = VideoSegmenter.from_pretrained(options.model, device="cpu", threads=1)
    for direction, interval in (("forward", 5), ("both", 10)):
        chosen = loaded.options.replace(interval=interval, cuts=False)
        for name in ("dis", "codec", "hold"):
            propagator = make_propagator(name)
            assert propagator is not None
            carrier = true_label_carrier(lambda frame: clip.load_label(frame.index), ids, propagator)  # type: ignore[arg-type, return-value]
            true = miou(results_of(Session(carrier, FixedInterval(interval), direction=direction), frames), clip)
            between, whole = [], []
            for _ in range(options.rounds):
                session = VideoSegmenter(loaded.segmentor, propagator, chosen).session(direction=direction)
                results = results_of(session, frames)
                spent, count = session.clock.seconds, sum(not result.is_key for result in results)
                between.append(1e3 * (spent["propagate"] / count + spent["decode"] / len(results)))
                whole.append(1e3 * session.clock.total / len(results))
            print(
                f"{direction} {interval} {name:5s} mIoU {true:.4f} from true labels, {miou(results, clip):.4f} from "
                f"{options.model}; {min(between):.2f} ms a frame between, {min(whole):.2f} ms a frame; "
                f"{dict(session.flow_counts)}"
            )


if __name__ == "__main__":
    main()
