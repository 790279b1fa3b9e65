"""One long video in chunks: listed once, segmented in chunks that do not depend on each other, joined.

A chunk begins at a key frame and ends before another. Where both directions are used, the key frame that follows is
segmented too, as its neighbour needs it, and its result thrown away. The joined labels and their description have the
same bytes as those of one run over the whole video; so would the overlay if x264 always repeated itself.

A folder holds what is finished, and each of it appears only when it is whole:

    frames.npz            what the first reading listed: a row for each frame
    plan.json             the chunks, and what they were made from; written last
    00000.labels.mkv      the labels of the first chunk
    00000.json            their description; written last
"""

import logging
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from mpvss._files import write_json
from mpvss._validate import convert, read_json, shown_address
from mpvss.batch.listed import FrameList, Listing, fingerprint, read_listed
from mpvss.batch.storage import Beat, no_beat
from mpvss.engine.schedule import KeyFrameFinder, ListedCuts, ListedKeyFrames
from mpvss.errors import DataError, SourceError
from mpvss.motion.propagator import FollowsVectors
from mpvss.options import DirectionName, OutputOptions
from mpvss.outputs import LabelReader, LabelWriter, MetaWriter
from mpvss.outputs.sinks import Sinks, output_paths
from mpvss.outputs.summary import content_crc
from mpvss.segmenter import VideoSegmenter
from mpvss.types import Frame, RunSummary, Segmentation
from mpvss.video import Reader, parse_rate

log = logging.getLogger(__name__)

PLAN = "plan.json"
FRAMES = "frames.npz"


@dataclass(frozen=True)
class Plan:
    """How a video is divided.

    Attributes:
        identity: What the chunks were made from; those of another identity are not for this run.
        direction: ``both`` or ``forward``.
        size: Height and width in pixels.
        frames: Number of frames.
        bounds: Row of the first frame of each chunk, and the number of frames.
        damaged: Frames or packets lost.
        warnings: What else was noticed while reading.
    """

    identity: dict[str, Any]
    direction: DirectionName
    size: tuple[int, int]
    frames: int
    bounds: list[int]
    damaged: int
    warnings: list[str]

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return len(self.bounds) - 1

    def write(self, folder: Path) -> None:
        """Write the plan into a folder; it appears when it is whole."""
        content = asdict(self)
        write_json(folder / PLAN, content | {"crc32": content_crc(content)})

    @classmethod
    def read(cls, folder: Path) -> "Plan | None":
        """Return the plan in a folder, or ``None`` where there is none yet.

        Raises:
            DataError: The file is no plan.
        """
        path = folder / PLAN
        if not path.is_file():
            return None
        try:
            content = convert(read_json(path), dict, what="the plan")
            stated = content.pop("crc32", None)
            if stated not in (None, content_crc(content)):
                raise ValueError("it is damaged")
            return convert(content, cls, what="the plan")
        except (OSError, ValueError) as error:
            raise DataError(f"expected the plan of a run in {path}, got other data: remove {folder}") from error


def divide(keys: Bool[np.ndarray, " N"], at_most: int) -> list[int]:
    """Return the rows at which chunks of about equal length begin, each at a key frame, and the number of rows.

    Args:
        keys: Whether a row is a key frame; the first one is.
        at_most: Frames of a chunk, but for those up to the next key frame.

    Raises:
        ValueError: ``at_most`` is below 1.
    """
    if at_most < 1:
        raise ValueError(f"expected chunks of at least 1 frame, got {at_most}")
    total = len(keys)
    length = -(-total // -(-total // at_most))
    bounds = [0]
    for row in np.flatnonzero(keys).tolist():
        if row >= bounds[-1] + length:
            bounds.append(row)
    return [*bounds, total]


def chunk_files(number: int) -> tuple[str, str]:
    """Names of the files of a chunk; the one that is written last stands last."""
    return f"{number:05d}.labels.mkv", f"{number:05d}.json"


def is_whole(folder: Path, number: int) -> bool:
    """Whether a chunk is finished, and every frame of it passes its checksum; of a damaged one a warning tells."""
    labels_name, meta_name = chunk_files(number)
    if not (folder / meta_name).exists():
        return False
    try:
        for _ in LabelReader(folder / labels_name):
            pass
    except DataError as error:
        log.warning("a finished chunk is damaged, and done again: %s", error)
        return False
    return True


@dataclass(frozen=True)
class ChunkedVideo:
    """A video that is segmented in chunks.

    Attributes:
        segmenter: Its options say what is read.
        source: A file, or a folder or pattern of images.
        beat: Called at each frame that is listed, segmented or joined.
    """

    segmenter: VideoSegmenter
    source: str | Path
    beat: Beat = no_beat

    def list_frames(self, folder: Path, at_most: int, identity: Mapping[str, Any]) -> Plan:
        """Read the video once, and write which frames it has, which are key frames, and where its chunks begin.

        No network runs.

        Args:
            folder: Where the files go.
            at_most: Frames of a chunk.
            identity: Kept with the plan.

        Raises:
            SourceError: The source cannot be read, holds no frame, or is live.
        """
        direction = self.segmenter.options.direction or "both"
        with self.segmenter.read(self.source) as reader:
            if reader.info.live:
                raise SourceError(f"expected a recorded video, got the live source {self.source}: it has no end")
            listing = self._listed(reader, KeyFrameFinder(*self.segmenter.schedule(direction)))
            plan = Plan(
                identity=dict(identity),
                direction=direction,
                size=reader.info.size,
                frames=len(listing.keys),
                bounds=divide(listing.keys, at_most),
                damaged=reader.damaged,
                warnings=reader.warnings,
            )
        listing.write(folder / FRAMES)
        plan.write(folder)
        return plan

    def _listed(self, reader: Reader, finder: KeyFrameFinder) -> Listing:
        # 26 bytes a frame, 2.3 MB an hour: the one thing that grows with the length of a video.
        index, ticks, prints = array("q"), array("q"), array("Q")
        cuts = bytearray()
        time_base = reader.info.time_base
        for frame in reader:
            cuts.append(finder.add(frame))
            index.append(frame.index)
            ticks.append(int(frame.pts / time_base))
            prints.append(fingerprint(frame.rgb))
            self.beat()
        frames = FrameList(np.array(index, np.int64), np.array(ticks, np.int64), np.array(prints, np.uint32), time_base)
        return Listing(frames, np.isin(index, finder.keys), np.frombuffer(cuts, bool))

    def segment(self, plan: Plan, listing: Listing, number: int, folder: Path) -> None:
        """Segment one chunk and write its labels.

        Args:
            plan: Of the video.
            listing: Of the video.
            number: Which chunk, from 0.
            folder: Where the files of the chunk go.

        Raises:
            SourceError: The source has changed.
            OutputError: A file cannot be written.
        """
        first, end = plan.bounds[number], plan.bounds[number + 1]
        followed = plan.direction == "both" and end < plan.frames and not listing.cuts[end]
        rows = slice(first, end + 1 if followed else end)
        after = int(listing.frames.index[end]) if followed else None
        keys = frozenset(listing.frames.index[rows][listing.keys[rows]].tolist())
        session = self.segmenter.session(
            direction=plan.direction, key_frames=(ListedKeyFrames(keys), ListedCuts(listing.cuts[rows].tolist()))
        )
        names, time_base = self.segmenter.class_names, listing.frames.time_base
        labels_name, meta_name = chunk_files(number)
        with (
            MetaWriter(folder / meta_name, {"size": list(plan.size), "classes": list(names)}, time_base) as meta,
            LabelWriter(folder / labels_name, plan.size, len(names), time_base) as labels,
        ):

            def write(results: list[Segmentation]) -> None:
                for result in results:
                    if result.index != after:
                        labels.append(result.labels, result.pts)
                        meta.add(result.index, result.pts, result.is_key, labels=result.labels)
                        self.beat()

            for frame in self._read(listing.frames[rows]):
                write(session.push(frame, copy=False))
            write(session.finish())

    def _read(self, frames: FrameList) -> Iterator[Frame]:
        options = self.segmenter.options
        return read_listed(
            self.source,
            frames,
            deinterlace=options.deinterlace,
            fps=parse_rate(options.fps),
            video_stream=options.video_stream,
            vectors=isinstance(self.segmenter.propagator, FollowsVectors),
        )

    def join(
        self,
        output: OutputOptions,
        plan: Plan,
        chunks: Iterable[Path],
        folder: Path,
        *,
        named: str | None = None,
        on_frame: Callable[[Segmentation], None] = lambda _: None,
    ) -> RunSummary:
        """Write the outputs of the whole video from the labels of its chunks.

        Args:
            output: What to write, and how.
            plan: Of the video.
            chunks: The label file of each chunk, in order.
            folder: Where the outputs go, under the name ``video``.
            named: What NAME.json calls the source; ``None`` for ``source``.
            on_frame: Called with each frame that was written.

        Returns:
            What ``VideoSegmenter.process`` returns, without seconds.

        Raises:
            SourceError: The source has changed.
            DataError: Chunks are missing or damaged.
            OutputError: An output cannot be written.
        """
        segmenter = self.segmenter
        about = segmenter.describe(plan.direction) | ({} if named is None else {"source": named})
        paths = output_paths("video", folder, output)
        with segmenter.read(self.source) as reader:
            frames = chain([next(reader)], reader)  # the first one is read before its clock is asked for
            with Sinks(reader, paths, output, segmenter.class_names, about, segmenter.class_ids()) as sinks:
                for result in self._results(frames, chunks):
                    sinks.write(result)
                    on_frame(result)
                    self.beat()
                self._check_count(plan.frames, sinks.frames, more=next(frames, None) is not None)
        return RunSummary(
            source=shown_address(str(self.source)),
            frames=sinks.frames,
            key_frames=sinks.key_frames,
            propagator=about["options"]["propagator"],
            damaged=plan.damaged,
            outputs=paths,
            seconds={},
        )

    def _check_count(self, expected: int, joined: int, *, more: bool) -> None:
        if more:
            raise SourceError(f"expected {expected} frames in {self.source}, got more: it has changed; start anew")
        if joined != expected:
            raise DataError(f"expected {expected} frames in the chunks of {self.source}, got {joined}")

    def _results(self, frames: Iterator[Frame], chunks: Iterable[Path]) -> Iterator[Segmentation]:
        """Each frame with the labels that were made of it."""
        for file in chunks:
            for index, pts, labels, key in LabelReader(file):
                frame = next(frames, None)
                if frame is None or (frame.index, frame.pts) != (index, pts):
                    raise SourceError(
                        f"expected the frame at {float(pts):g} s of {self.source}, which was segmented, got another "
                        "or none: the source has changed meanwhile; start anew"
                    )
                yield Segmentation(frame, labels, key, class_names=self.segmenter.class_names)
