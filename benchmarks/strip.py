"""The strip of overlay pictures in the README: frames of a video, as ``mpvss segment`` draws them.

python benchmarks/strip.py VIDEO --frames 20 95 170 --out docs/figures/strip.jpg
"""

import argparse
from pathlib import Path

import cv2
import numpy as np

from mpvss import VideoSegmenter
from mpvss.labels import palette_for
from mpvss.outputs import draw
from mpvss.video import read


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("video")
    parser.add_argument("--frames", type=int, nargs="+", default=[20, 95, 170])
    parser.add_argument("--width", type=int, default=420, help="pixels of each picture")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    segmenter = VideoSegmenter.from_pretrained()
    palette = palette_for(segmenter.segmentor.class_names)
    with read(arguments.video) as reader:
        pictures = {frame.index: frame.rgb for frame in reader if frame.index in arguments.frames}
    drawn = [
        draw.overlay(pictures[result.index], result.labels, palette)
        for result in segmenter.stream(arguments.video)
        if result.index in pictures
    ]
    height = round(arguments.width * drawn[0].shape[0] / drawn[0].shape[1])
    small = [cv2.resize(picture, (arguments.width, height), interpolation=cv2.INTER_AREA) for picture in drawn]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(arguments.out), np.hstack(small)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])


if __name__ == "__main__":
    main()
