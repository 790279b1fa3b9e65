"""One long video in segments: listed once, segmented in parts that do not depend on each other, joined.

A segment begins at a key frame and ends before another. Where both directions are used, the key frame that follows is
segmented too, as its neighbour needs it, and its result thrown away. The joined labels and their description have the
same bytes as those of one run over the whole video; so would the overlay if x264 always repeated itself.

A folder holds what is finished, and each of it appears only when it is whole:

    frames.npz            what the first reading found: a row for each frame
    plan.json             the segments, and what they were made from; written last
    00000.labels.mkv      the labels of the first segment
    00000.json            their description; written last
"""

import logging
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from mpvss._files import atomic, write_json
from mpvss._validate import convert, read_json, shown_address
from mpvss.batch.listed import FrameList, fingerprint, read_listed
from mpvss.engine.schedule import KeyFrameFinder, ListedCuts, ListedKeyFrames
from mpvss.errors import DataError, SourceError
from mpvss.options import DirectionName, OutputOptions
from mpvss.outputs import LabelReader, LabelWriter, MetaWriter
from mpvss.outputs.sinks import Sinks, output_paths
from mpvss.outputs.summary import content_crc
from mpvss.segmenter import VideoSegmenter
from mpvss.types import RunSummary, Segmentation
from mpvss.video import parse_rate, read

log = logging.getLogger(__name__)

PLAN = "plan.json"
FRAMES = "frames.npz"
_COLUMNS = {"index": np.int64, "ticks": np.int64, "prints": np.uint32, "keys": np.bool_, "cuts": np.bool_}

Beat = Callable[[], None]


@dataclass(frozen=True)
class Plan:
    """How a video is divided.

    Attributes:
        identity: What the segments were made from; parts of another identity are not for this run.
        direction: ``both`` or ``forward``.
        size: Height and width in pixels.
        frames: Number of frames.
        bounds: Row of the first frame of each segment, and the number of frames.
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
    def segments(self) -> int:
        """Number of segments."""
        return len(self.bounds) - 1

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
            raise DataError(f"expected the plan of a run in {path}, found other data: remove {folder}") from error


@dataclass(frozen=True, eq=False)
class Listing:
    """The frames of a video, and which of them are key frames and begin another scene."""

    frames: FrameList
    keys: Bool[np.ndarray, " N"]
    cuts: Bool[np.ndarray, " N"]

    def write(self, path: Path) -> None:
        """Write the listing; the file appears when it is whole."""
        with atomic(path) as part, part.open("wb") as file:
            np.savez(
                file,
                index=self.frames.index,
                ticks=self.frames.ticks,
                prints=self.frames.prints,
                time_base=np.array([self.frames.time_base.numerator, self.frames.time_base.denominator]),
                keys=self.keys,
                cuts=self.cuts,
            )

    @classmethod
    def read(cls, path: Path) -> "Listing":
        """Read a listing.

        Raises:
            DataError: The file holds none.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                time_base = Fraction(*file["time_base"].tolist())
                columns: dict[str, np.ndarray] = {name: np.asarray(file[name], kind) for name, kind in _COLUMNS.items()}
                if len({column.shape for column in columns.values()}) != 1 or columns["index"].ndim != 1:
                    raise ValueError("columns of different lengths")
                frames = FrameList(columns["index"], columns["ticks"], columns["prints"], time_base)
                return cls(frames, columns["keys"], columns["cuts"])
        except Exception as error:  # what zipfile, zlib and numpy raise at damaged bytes has no common base
            raise DataError(f"expected a list of frames in {path}, found other data: remove {path.parent}") from error


def divide(keys: Bool[np.ndarray, " N"], at_most: int) -> list[int]:
    """Return the rows at which segments of about equal length begin, each at a key frame, and the number of rows.

    Args:
        keys: Whether a row is a key frame; the first one is.
        at_most: Frames of a segment, but for those up to the next key frame.

    Raises:
        ValueError: ``at_most`` is below 1.
    """
    if at_most < 1:
        raise ValueError(f"expected segments of at least 1 frame, found {at_most}")
    total = len(keys)
    length = -(-total // -(-total // at_most))
    bounds = [0]
    for row in np.flatnonzero(keys).tolist():
        if row >= bounds[-1] + length:
            bounds.append(row)
    return [*bounds, total]


def list_frames(
    segmenter: VideoSegmenter,
    source: str | Path,
    folder: Path,
    *,
    direction: DirectionName | None,
    at_most: int,
    identity: Mapping[str, Any],
    beat: Beat,
) -> Plan:
    """Read a video once, and write which frames it has, which are key frames, and where its segments begin.

    Args:
        segmenter: Says which frames are key frames; no network runs.
        source: A file, or a folder or pattern of images.
        folder: Where the files go.
        direction: ``None`` for both.
        at_most: Frames of a segment.
        identity: Kept with the plan.
        beat: Called at each frame.

    Raises:
        SourceError: The source cannot be read, holds no frame, or is live.
    """
    # 26 bytes a frame, 2.3 MB an hour: the one thing that grows with the length of a video.
    index, ticks, prints = array("q"), array("q"), array("Q")
    cuts = bytearray()
    with read(source, **segmenter.options.selection()) as reader:
        if reader.info.live:
            raise SourceError(f"expected a recorded video, found the live source {source}: it has no end to divide")
        direction = direction or "both"
        finder = KeyFrameFinder(*segmenter.schedule(direction))
        for frame in reader:
            cut = finder.add(frame)
            index.append(frame.index)
            ticks.append(int(frame.pts / reader.info.time_base))
            prints.append(fingerprint(frame.rgb))
            cuts.append(cut)
            beat()
        keys = np.isin(index, finder.keys)
        frames = FrameList(
            np.array(index, np.int64), np.array(ticks, np.int64), np.array(prints, np.uint32), reader.info.time_base
        )
        listing = Listing(frames, keys, np.frombuffer(cuts, bool))
        plan = Plan(
            identity=dict(identity),
            direction=direction,
            size=reader.info.size,
            frames=len(index),
            bounds=divide(listing.keys, at_most),
            damaged=reader.damaged,
            warnings=reader.warnings,
        )
    listing.write(folder / FRAMES)
    content = asdict(plan)
    write_json(folder / PLAN, content | {"crc32": content_crc(content)})
    return plan


def part_files(number: int) -> tuple[str, str]:
    """Names of the files of a segment; the one that is written last stands last."""
    return f"{number:05d}.labels.mkv", f"{number:05d}.json"


def segment_part(
    segmenter: VideoSegmenter,
    source: str | Path,
    plan: Plan,
    listing: Listing,
    number: int,
    folder: Path,
    *,
    beat: Beat,
) -> None:
    """Segment one segment of a video and write its labels.

    Args:
        segmenter: As for the listing.
        source: What was listed.
        plan: Of the video.
        listing: Of the video.
        number: Which segment, from 0.
        folder: Where the files of the segment go.
        beat: Called at each finished frame.

    Raises:
        SourceError: The source has changed.
        OutputError: A file cannot be written.
    """
    first, end = plan.bounds[number], plan.bounds[number + 1]
    followed = plan.direction == "both" and end < plan.frames and not listing.cuts[end]
    rows = slice(first, end + 1 if followed else end)
    names, options = segmenter.class_names, segmenter.options
    keys = frozenset(listing.frames.index[rows][listing.keys[rows]].tolist())
    key_frames = (ListedKeyFrames(keys), ListedCuts(listing.cuts[rows].tolist()))
    session = segmenter.session(direction=plan.direction, key_frames=key_frames)
    time_base = listing.frames.time_base
    labels_name, meta_name = part_files(number)
    header = {"size": list(plan.size), "classes": list(names)}
    with (
        MetaWriter(folder / meta_name, header, time_base) as meta,
        LabelWriter(folder / labels_name, plan.size, len(names), time_base) as labels,
    ):
        after = int(listing.frames.index[end]) if end < plan.frames else None

        def keep(results: list[Segmentation]) -> None:
            for result in results:
                if after is None or result.index < after:
                    labels.append(result.labels, result.pts)
                    meta.add(result.index, result.pts, result.is_key, labels=result.labels)
                    beat()

        for frame in read_listed(
            source,
            listing.frames[rows],
            deinterlace=options.deinterlace,
            fps=parse_rate(options.fps),
            video_stream=options.video_stream,
        ):
            keep(session.push(frame, copy=False))
        keep(session.finish())


def is_whole(folder: Path, number: int) -> bool:
    """Whether a chunk is finished, and every frame of it passes its checksum; of a damaged one a warning tells."""
    labels_name, meta_name = part_files(number)
    if not (folder / meta_name).exists():
        return False
    try:
        for _ in LabelReader(folder / labels_name):
            pass
    except DataError as error:
        log.warning("a finished chunk is damaged, and done again: %s", error)
        return False
    return True


def join(
    segmenter: VideoSegmenter,
    source: str | Path,
    output: OutputOptions,
    plan: Plan,
    parts: Iterator[Path],
    folder: Path,
    *,
    named: str | None = None,
    on_frame: Callable[[Segmentation], None],
) -> RunSummary:
    """Write the outputs of a whole video from the labels of its segments.

    Args:
        segmenter: As for the segments.
        source: What was listed.
        output: What to write, and how.
        plan: Of the video.
        parts: The label file of each segment, in order.
        folder: Where the outputs go, under the name ``video``.
        named: What NAME.json calls the source; ``None`` for ``source``.
        on_frame: Called with each frame that was written.

    Returns:
        What ``VideoSegmenter.process`` returns, without seconds.

    Raises:
        SourceError: The source has changed.
        DataError: Parts are missing or damaged.
        OutputError: An output cannot be written.
    """
    names = segmenter.class_names
    about = segmenter.describe(plan.direction) | ({} if named is None else {"source": named})
    paths = output_paths("video", folder, output)
    with read(source, **segmenter.options.selection()) as reader:
        frame = next(reader)
        with Sinks(reader, paths, output, names, about, segmenter.class_ids()) as sinks:
            for file in parts:
                for index, pts, labels, key in LabelReader(file):
                    following = frame if sinks.frames == 0 else next(reader, None)
                    if following is None or (following.index, following.pts) != (index, pts):
                        raise SourceError(
                            f"expected the frame at {float(pts):g} s of {source}, which was segmented, found another "
                            "or none: the source has changed meanwhile; start anew"
                        )
                    result = Segmentation(following, labels, key)
                    sinks.write(result)
                    on_frame(result)
            if next(reader, None) is not None:
                raise SourceError(f"expected {plan.frames} frames in {source}, got more: it has changed; start anew")
            if sinks.frames != plan.frames:
                raise DataError(f"expected {plan.frames} frames in the segments of {source}, found {sinks.frames}")
    return RunSummary(
        source=shown_address(str(source)),
        frames=sinks.frames,
        key_frames=sinks.key_frames,
        propagator=about["options"]["propagator"],
        damaged=plan.damaged,
        outputs=paths,
        seconds={},
    )
