"""Everything ``process`` writes about one source, and what exists already.

All files of a source are written under temporary names and renamed when all of them are whole.
"""

import logging
import math
import os
import time
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from jaxtyping import UInt8

from mpvss import __version__
from mpvss._files import remove_first
from mpvss.cli.doctor import library_versions
from mpvss.errors import OutputError
from mpvss.labels import ignore_id, palette_for
from mpvss.metrics import SMALLEST_FLOW, Flicker
from mpvss.options import OutputOptions
from mpvss.outputs import LabelWriter, MetaWriter, OverlayWriter, PngWriter, draw
from mpvss.types import Segmentation
from mpvss.video import Reader

log = logging.getLogger(__name__)

SAVEABLE = ("overlay", "labels", "png")


ENDINGS = {
    "meta": ".json",
    "overlay": ".overlay.mp4",
    "compare": ".compare.mp4",
    "labels": ".labels.mkv",
    "png": ".png",
}


def output_paths(name: str, out: Path, options: OutputOptions) -> dict[str, Path]:
    """Return the files of one source by kind, and make the directory.

    Raises:
        OutputError: One of them exists and ``overwrite`` is off, or a folder has the name of a file or the other way
            round, or the directory cannot be made.
    """
    wanted = {"meta", *options.save} | ({"compare"} if options.compare else set())
    paths = {kind: out / f"{name}{ending}" for kind, ending in ENDINGS.items() if kind in wanted}
    try:
        _check_existing(paths, options)
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{out}: cannot make the output directory: {error.strerror}") from error
    return paths


def _check_existing(paths: dict[str, Path], options: OutputOptions) -> None:
    for kind, path in paths.items():
        if not os.path.lexists(path):  # a link that leads nowhere is there as well
            continue
        if not options.overwrite:
            raise OutputError(f"{path} exists already; pass --overwrite to replace it, or choose another output")
        if path.is_dir() != (kind == "png"):
            found = "a folder" if path.is_dir() else "a file"
            raise OutputError(f"{path} is {found}, which is not replaced; move it away, or choose another output")


class Sinks:
    """The open outputs of one source; a context manager that keeps them only when the block ends well.

    Attributes:
        frames: Frames written so far.
        key_frames: Those that are key frames.
        seconds: Time spent drawing and writing.
        end: When the last frame ends, in seconds; ``None`` for what the reader says.
    """

    def __init__(
        self,
        reader: Reader,
        paths: dict[str, Path],
        options: OutputOptions,
        class_names: tuple[str, ...],
        about: dict[str, Any],
        classes: list[int] | None,
    ) -> None:
        """Open nothing yet; see ``__enter__``."""
        self.frames = self.key_frames = 0
        self.seconds = 0.0
        self.end: Fraction | None = None
        self._reader, self._paths, self._options = reader, paths, options
        self._names, self._about, self._classes = class_names, about, classes
        self._palette = palette_for(class_names)
        self._legends = (draw.LegendOrder(), draw.LegendOrder())
        missing = draw.missing_letters(class_names) if options.legend else ""
        if missing:
            log.warning("no font here has %s: the legend draws boxes; install one, such as Noto Sans CJK", missing[:80])
        self._flicker = (Flicker(), Flicker())
        self._stack = ExitStack()

    def __enter__(self) -> "Sinks":
        """Open the outputs under temporary names.

        Raises:
            OutputError: One of them cannot be written.
        """
        info, paths = self._reader.info, self._paths
        header = {
            "version": __version__,
            "libraries": library_versions(),
            "source": info.source,
            "size": list(info.size),
            "start": [info.start.numerator, info.start.denominator],
            "sample_aspect_ratio": list(info.sample_aspect_ratio.as_integer_ratio()),
            "classes": list(self._names),
            "palette": self._palette.tolist(),
            "ignore": ignore_id(len(self._names)),
            **self._about,
        }
        if info.has_audio and info.kind != "video" and {"overlay", "compare"} & paths.keys():
            log.warning("%s: its sound is left out of the video, as it is copied from files only", info.source)
        with ExitStack() as stack:
            # Closed in the other order: the description is there only when what it describes is.
            self._meta = stack.enter_context(MetaWriter(paths["meta"], header, info.time_base))
            _check_existing(paths, self._options)  # again, now that no other run can begin
            self._videos = {
                kind: stack.enter_context(self._video(paths[kind], kind == "compare"))
                for kind in ("overlay", "compare")
                if kind in paths
            }
            self._labels = self._png = None
            if "labels" in paths:
                self._labels = stack.enter_context(
                    LabelWriter(paths["labels"], info.size, len(self._names), info.time_base)
                )
            if "png" in paths:
                self._png = stack.enter_context(PngWriter(paths["png"], self._palette))
            self._stack = stack.pop_all()
        return self

    def _video(self, path: Path, pair: bool) -> OverlayWriter:
        info = self._reader.info
        return OverlayWriter(
            path,
            draw.side_by_side_size(info.size) if pair else info.size,
            info.time_base,
            audio_from=info.source if info.kind == "video" and info.has_audio else None,
            origin=self._reader.origin,
            end=self._reader.selected_end,
            clock=self._reader.clock,
            sample_aspect_ratio=info.sample_aspect_ratio,
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        began = time.perf_counter()
        try:
            if kind is None:
                for video in self._videos.values():
                    video.until = self._reader.end if self.end is None else self.end
                for output in (self._labels, self._png, *self._videos.values(), self._meta):
                    if output is not None:
                        output.finish()  # all of them are whole before the first gets its name
                _check_existing(self._paths, self._options)
                remove_first(self._paths["meta"])  # which speaks for the others, old or new, and comes last
        except BaseException as failure:
            self._stack.__exit__(type(failure), failure, failure.__traceback__)
            raise
        self._stack.__exit__(kind, error, trace)
        self.seconds += time.perf_counter() - began
        for warning in dict.fromkeys(warning for video in self._videos.values() for warning in video.warnings):
            log.warning("%s: %s", self._reader.info.source, warning)

    def write(
        self, result: Segmentation, per_frame: Segmentation | None = None, seconds: tuple[float, float] = (0.0, 0.0)
    ) -> None:
        """Write one finished frame to every output.

        Args:
            result: The result to write.
            per_frame: The segmentor's own result on its frame, where the two are compared.
            seconds: Mean seconds a frame so far, per frame and propagated, to show.

        Raises:
            OutputError: An output cannot be written.
        """
        began = time.perf_counter()
        names = self._reader.names
        name = names[result.index] if names else None
        self._meta.add(result.index, result.pts, result.is_key, name, result.labels)
        if self._labels is not None:
            self._labels.write(result.labels, result.pts)
        if self._png is not None:
            self._png.write(result.labels, result.index, name)
        if self._videos:
            picture = self._overlay(result, self._legends[0])
            if "overlay" in self._videos:
                self._videos["overlay"].write(picture, result.pts)
            if per_frame is not None:
                pair = self._pair((self._overlay(per_frame, self._legends[1]), picture), (per_frame, result), seconds)
                self._videos["compare"].write(pair, result.pts)
        self.frames += 1
        self.key_frames += result.is_key
        self.seconds += time.perf_counter() - began

    def _overlay(self, result: Segmentation, order: draw.LegendOrder) -> UInt8[np.ndarray, "H W 3"]:
        picture = draw.overlay(result.frame.rgb, result.labels, self._palette, self._options.alpha, self._classes)
        if self._options.legend:
            shown = order.update(result.labels, len(self._names))
            picture = draw.legend(picture, [(self._names[index], _colour(self._palette[index])) for index in shown])
        return picture

    def _pair(
        self,
        pictures: tuple[UInt8[np.ndarray, "H W 3"], UInt8[np.ndarray, "H W 3"]],
        results: tuple[Segmentation, Segmentation],
        seconds: tuple[float, float],
    ) -> UInt8[np.ndarray, "Hp Wp 3"]:
        captions = []
        for name, flicker, result, cost in zip(
            ("per frame", "propagated"), self._flicker, results, seconds, strict=True
        ):
            if min(result.frame.size) >= SMALLEST_FLOW:
                flicker.update(result.frame.rgb, result.labels)
            share = "" if math.isnan(flicker.value) else f"   flicker {100 * flicker.value:.2f} %"
            captions.append(f"{name}   {1000 * cost:.0f} ms{share}")
        return draw.side_by_side(*pictures, (captions[0], captions[1]), (results[0].is_key, results[1].is_key))

    @property
    def flicker(self) -> tuple[float, float]:
        """Flicker so far, per frame and propagated, 0 to 1; NaN before the second frame."""
        return self._flicker[0].value, self._flicker[1].value


def _colour(rgb: UInt8[np.ndarray, "3"]) -> tuple[int, int, int]:
    return int(rgb[0]), int(rgb[1]), int(rgb[2])
