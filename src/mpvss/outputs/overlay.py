"""The overlay: every frame with its classes drawn over it, and the source's sound."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from mpvss.outputs.audio import Audio
from mpvss.outputs.draw import ResultDrawer
from mpvss.outputs.mp4 import Mp4Writer
from mpvss.outputs.sink import FileSink, RunInfo
from mpvss.types import Segmentation


class VideoSink(FileSink[Mp4Writer]):
    """Base of the sinks that write a video of the source's times and sound."""

    def video(self, info: RunInfo, size: tuple[int, int]) -> Mp4Writer:
        """Return an open video of this height and width."""
        reader, source = info.reader, info.reader.info
        has_audio = source.kind == "video" and source.has_audio
        return Mp4Writer(
            self.path,
            size,
            source.time_base,
            audio=Audio(Path(source.source), reader.selected_end, reader.clock) if has_audio else None,
            origin=reader.origin,
            sample_aspect_ratio=source.sample_aspect_ratio,
        )

    @property
    def warnings(self) -> Sequence[str]:
        """What happened to the sound."""
        return self.output.warnings

    def finish(self, end: Fraction | None) -> None:
        """Write what is left; the last image is shown until the end."""
        self.output.until = end
        super().finish(end)


class OverlaySink(VideoSink):
    """NAME.overlay.mp4."""

    ending = ".overlay.mp4"

    def make(self, info: RunInfo) -> Mp4Writer:
        """Open a video of the source's size."""
        self._drawer = ResultDrawer(info)
        return self.video(info, info.reader.info.size)

    def write(self, result: Segmentation) -> None:
        """Append the frame with its classes."""
        self.output.write(self._drawer.draw(result), result.pts)
