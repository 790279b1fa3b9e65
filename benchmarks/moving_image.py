"""The moving image of the README: per frame beside propagated, from what ``mpvss segment --compare`` wrote.

python benchmarks/moving_image.py VIDEO.compare.mp4 --out docs/figures/compare.webp
"""

import argparse
from pathlib import Path

import av
from PIL import Image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("video", type=Path)
    parser.add_argument("--first", type=int, default=12, help="first frame shown")
    parser.add_argument("--last", type=int, default=114)
    parser.add_argument("--every", type=int, default=3, help="frames from one shown to the next")
    parser.add_argument("--width", type=int, default=880, help="in pixels")
    parser.add_argument("--captions", type=int, default=38, help="height in pixels of the captions, which are cut off")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    images = []
    with av.open(str(arguments.video)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if arguments.first <= number <= arguments.last and not number % arguments.every:
                image = frame.to_image().crop((0, arguments.captions, frame.width, frame.height))
                size = (arguments.width, round(image.height * arguments.width / image.width))
                images.append(image.resize(size, Image.Resampling.LANCZOS))
    options = {"duration": 40 * arguments.every, "loop": 0, "quality": 45, "method": 4}
    images[0].save(arguments.out, save_all=True, append_images=images[1:], **options)


if __name__ == "__main__":
    main()
