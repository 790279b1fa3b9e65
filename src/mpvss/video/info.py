"""What is known of a source, and what went wrong while it was read."""

import hashlib
import os
from dataclasses import dataclass, field, fields
from fractions import Fraction
from typing import Literal

import numpy as np
from jaxtyping import UInt8

_MOST_WARNINGS = 20
_LONGEST_NAME = 200
OWN_TIMES = "expected --fps for raw streams and images only, which have no times of their own: {} has; leave --fps out"
Kind = Literal["video", "images", "camera", "stream"]
Image = UInt8[np.ndarray, "H W 3"]


@dataclass(frozen=True)
class VideoInfo:
    """What is known of a source before its frames are read.

    Attributes:
        source: The source as it was named; of an address without user name, password and query.
        name: A stem for output files.
        kind: A video file, image files, a camera, or a network stream.
        height: Height in pixels of the first frame as it is displayed (after rotation).
        width: Width in pixels, likewise.
        time_base: Every timestamp is a whole multiple of this, in seconds.
        frame_rate: Frames per second on average, where known.
        frames: Number of frames: declared or estimated; ``None`` where unknown.
        duration: Length in seconds, where known.
        codec: Name of the codec or image format.
        pixel_format: Name of the pixel format as stored.
        rotation: Degrees counter-clockwise that the stored images are turned for display: 0, 90, 180 or 270.
        has_audio: Whether there is a sound track.
        start: The source's own time of the first frame, in seconds. All times count from there.
        assumed_rate: Whether nothing says how fast the frames follow each other, so that ``frame_rate`` is assumed.
        video_streams: Each video stream of the source: codec, size in pixels and frame rate, for ``video_stream``.
        video_stream: Which of them this is, from 0.
        live: Whether frames arrive as they happen (a camera, a live stream), so that there is no end to look ahead to.
        sample_aspect_ratio: Width of a pixel by its height on a display, after rotation; 1 where unknown.
    """

    source: str
    name: str
    kind: Kind
    height: int
    width: int
    time_base: Fraction
    frame_rate: Fraction | None
    frames: int | None
    duration: Fraction | None
    codec: str
    pixel_format: str
    rotation: int
    has_audio: bool
    live: bool
    start: Fraction = Fraction(0)
    assumed_rate: bool = False
    video_streams: tuple[str, ...] = ()
    video_stream: int = 0
    sample_aspect_ratio: Fraction = Fraction(1)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.height, self.width

    def to_dict(self) -> dict[str, object]:
        """The same as plain values for JSON: rationals become [numerator, denominator]."""
        values = {each.name: _plain(getattr(self, each.name)) for each in fields(self)}
        first = {name: values.pop(name) for name in ("source", "name", "kind")}
        return first | {"size": [values.pop("height"), values.pop("width")]} | values


@dataclass
class Trouble:
    """What went wrong while reading, without being the end of it.

    Attributes:
        damaged: Frames and packets that were lost, or decoded with errors.
        warnings: The first few different things that happened, one line each.
    """

    damaged: int = 0
    warnings: list[str] = field(default_factory=list)

    _counted: dict[str, tuple[int, str]] = field(default_factory=dict)

    def count(self, what: str, example: str, damaged: int = 0) -> None:
        """Count images of which the same is to be said, in one warning with the first of them."""
        self.damaged += damaged
        number, first = self._counted.get(what, (0, example))
        self._counted[what] = number + 1, first
        before, now = (f"{n} of the images {what} (first: {first})" for n in (number, number + 1))
        if number:
            self.warnings[self.warnings.index(before)] = now
        else:
            self.warnings.append(now)

    def note(self, warning: str, damaged: int = 0) -> None:
        """Count damage and keep the warning unless it is known already or there are many."""
        self.damaged += damaged
        if warning not in self.warnings and len(self.warnings) < _MOST_WARNINGS:
            self.warnings.append(warning)


def output_name(stem: str) -> str:
    """The name that outputs begin with; of a very long one the beginning and a checksum.

    The longest output and its temporary name add 55 bytes at most, and the name of a file has 255.
    """
    whole = os.fsencode(stem)
    if len(whole) <= _LONGEST_NAME:
        return stem
    kept = whole[: _LONGEST_NAME - 9].decode(errors="ignore")
    return f"{kept}~{hashlib.sha256(whole).hexdigest()[:8]}"


def _plain(value: object) -> object:
    if isinstance(value, Fraction):
        return [value.numerator, value.denominator]
    return list(value) if isinstance(value, tuple) else value
