"""Everything that is written about one source, and what exists already.

All files of a source are written under temporary names and renamed when all of them are whole.
"""

import logging
import os
import time
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

from mpvss._files import remove_first, shown_path
from mpvss.errors import OutputError
from mpvss.options import OutputOptions
from mpvss.outputs.compare import CompareSink
from mpvss.outputs.labels import LabelSink
from mpvss.outputs.overlay import OverlaySink, SourceVideo
from mpvss.outputs.png import PngSink
from mpvss.outputs.sink import RunInfo, Sink
from mpvss.outputs.summary import SummarySink
from mpvss.outputs.text import missing_letters
from mpvss.types import Segmentation
from mpvss.video import Reader

log = logging.getLogger(__name__)

SINKS: dict[str, type[Sink]] = {
    "meta": SummarySink,
    "overlay": OverlaySink,
    "compare": CompareSink,
    "labels": LabelSink,
    "png": PngSink,
}
"""A format is one file beside this one, and one line here. ``meta`` speaks for the others, and is always written."""

SAVEABLE = tuple(name for name in SINKS if name not in ("meta", "compare"))
ENDINGS = {name: sink.ending for name, sink in SINKS.items()}


def output_paths(name: str, out: Path, options: OutputOptions) -> dict[str, Path]:
    """Return the files of one source by kind, and make the directory.

    Raises:
        OutputError: One of them exists and ``overwrite`` is off, or a folder has the name of a file or the other way
            round, or the directory cannot be made.
    """
    kinds = {"meta", *options.save} | ({"compare"} if options.compare else set())
    paths = {kind: out / f"{name}{ending}" for kind, ending in ENDINGS.items() if kind in kinds}
    try:
        _check_existing(paths, options)
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{shown_path(out)}: cannot make the output directory: {error.strerror}") from error
    return paths


def _check_existing(paths: dict[str, Path], options: OutputOptions) -> None:
    for kind, path in paths.items():
        if not os.path.lexists(path):  # a link that leads nowhere is there as well
            continue
        if not options.overwrite:
            raise OutputError(f"{path} exists already; pass --overwrite to replace it, or choose another output")
        if path.is_dir() != SINKS[kind].is_folder:
            what = "a folder" if path.is_dir() else "a file"
            raise OutputError(f"{path} is {what}, which is not replaced; move it away, or choose another output")


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
        self._paths, self._options = paths, options
        self._info = RunInfo(reader, class_names, about, classes, options.alpha, options.legend)
        self._sinks: dict[str, Sink] = {}

    def __enter__(self) -> "Sinks":
        """Open the outputs under temporary names.

        Raises:
            OutputError: One of them cannot be written.
        """
        source = self._info.reader.info
        missing = missing_letters(self._info.class_names) if self._info.legend else ""
        if missing:
            log.warning("no font here has %s: the legend draws boxes; install one, such as Noto Sans CJK", missing[:80])
        with ExitStack() as stack:
            stack.callback(self._abort)
            for kind, path in self._paths.items():  # meta first, which keeps other runs out
                self._sinks[kind] = SINKS[kind](path, self._info)
                if kind == "meta":
                    _check_existing(self._paths, self._options)  # again, now that no other run can begin
            stack.pop_all()
        videos = any(isinstance(sink, SourceVideo) for sink in self._sinks.values())
        if videos and source.has_audio and source.kind != "video":
            log.warning("%s: its sound is left out of the video, as it is copied from files only", source.source)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with ExitStack() as stack:
            stack.callback(self._abort)  # harmless for those that are closed
            if kind is None:
                self._close()
        for warning in dict.fromkeys(line for sink in self._sinks.values() for line in sink.warnings):
            log.warning("%s: %s", self._info.reader.info.source, warning)

    def _close(self) -> None:
        began = time.perf_counter()
        sinks = [*reversed(self._sinks.values())]
        for sink in sinks:
            sink.until = self._info.reader.end if self.end is None else self.end
            sink.finish()
        # All of them are whole before the first gets its name.
        _check_existing(self._paths, self._options)
        remove_first(self._paths["meta"])  # which speaks for the others, old or new, and comes last
        for sink in sinks:
            sink.close()
        self.seconds += time.perf_counter() - began

    def _abort(self) -> None:
        with ExitStack() as stack:
            for sink in self._sinks.values():
                stack.callback(sink.abort)

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
        if per_frame is not None:
            self._compare.beside(per_frame, seconds)
        for sink in self._sinks.values():
            sink.write(result)
        self.frames += 1
        self.key_frames += result.is_key
        self.seconds += time.perf_counter() - began

    @property
    def _compare(self) -> CompareSink:
        compare = self._sinks["compare"]
        assert isinstance(compare, CompareSink)
        return compare

    @property
    def flicker(self) -> tuple[float, float]:
        """Flicker so far, per frame and propagated, 0 to 1; NaN before the second frame."""
        return self._compare.flicker
