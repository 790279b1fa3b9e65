"""The overlay: every frame with its classes drawn over it, and the source's sound."""

from pathlib import Path

from mpvss.outputs.audio import Audio
from mpvss.outputs.draw import ResultDrawer
from mpvss.outputs.mp4 import Mp4Writer
from mpvss.outputs.planes import to_planes
from mpvss.outputs.sink import RunInfo
from mpvss.types import Segmentation


class SourceVideo(Mp4Writer):
    """A video of the source's times, shape of pixels and sound."""

    def __init__(self, path: Path, info: RunInfo, size: tuple[int, int]) -> None:
        reader, source = info.reader, info.reader.info
        has_audio = source.kind == "video" and source.has_audio
        super().__init__(
            path,
            size,
            source.time_base,
            audio=Audio(Path(source.source), reader.selected_end, reader.clock) if has_audio else None,
            origin=reader.origin,
            sample_aspect_ratio=source.sample_aspect_ratio,
        )


class OverlaySink(SourceVideo):
    """NAME.overlay.mp4."""

    ending = ".overlay.mp4"

    def __init__(self, path: Path, info: RunInfo) -> None:
        super().__init__(path, info, info.reader.info.size)
        self._drawer = ResultDrawer(info)

    def write(self, result: Segmentation) -> None:
        """Append the frame with its classes."""
        planes = to_planes(result.frame.rgb)
        self._drawer.draw(planes, result.labels)
        self.append_planes(planes, result.pts)
