"""Labels without annotators: a segmentor's own results on every frame of a video, kept as a folder data set."""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from mpvss._files import install, scratch
from mpvss._validate import convert, read_json, shown_address
from mpvss.datasets.listing import require_names
from mpvss.engine.schedule import CutDetector
from mpvss.errors import DataError, OutputError
from mpvss.labels import ignore_id
from mpvss.segmenter import VideoSegmenter
from mpvss.segmentors import HuggingFaceSegmentor, prepare
from mpvss.training.checkpoints import whole_file, writing
from mpvss.types import Frame
from mpvss.video import read

log = logging.getLogger(__name__)

SPLIT = "taught"
_JPEG = (cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)


def teach(
    videos: Sequence[str], segmentor: HuggingFaceSegmentor, root: Path, *, confidence: float = 0.5, stride: int = 1
) -> str:
    """Run a segmentor on every frame of some videos, once, and keep frames and labels.

    Args:
        videos: Anything that ``mpvss.video.reader`` opens and that ends.
        segmentor: The teacher.
        root: Directory of the data set, which docs/datasets.md describes; made where it is missing. Each scene is a
            clip, its frames at the segmentor's size.
        confidence: Pixels where the winner's share of the class scores is lower get no label.
        stride: Take every n-th frame.

    Returns:
        The data set as ``open_dataset`` takes it; the split ``taught`` is these videos.

    Raises:
        SourceError: A video cannot be read.
        OutputError: The disk is full, or the directory holds the results of another teacher.
    """
    classes = root / "classes.txt"
    text = "\n".join(_distinct(segmentor.class_names)) + "\n"
    if classes.is_file() and classes.read_text(encoding="utf-8") != text:
        raise OutputError(f"{root}: holds labels of other classes; choose another directory for this teacher")
    clips: list[str] = []
    for video in videos:
        clips += _teach_one(video, segmentor, root, confidence, stride)
    with whole_file(classes) as file:
        file.write(text.encode())
    with whole_file(root / f"{SPLIT}.txt") as file:
        file.write(("\n".join(clips) + "\n").encode())
    return f"folder:{root}"


def _distinct(names: Sequence[str]) -> list[str]:
    """Class names as lines of a file; a name that comes up again gets its number."""
    lines = [" ".join(name.split()) for name in names]
    return [f"{name} {i}" if name in lines[:i] else name for i, name in enumerate(lines)]


def _identity(video: str, segmentor: HuggingFaceSegmentor, confidence: float, stride: int) -> str:
    """What tells whether the result would be the same: file, teacher with a probe of its weights, and options."""
    path = Path(video)
    files = sorted(path.iterdir()) if path.is_dir() else [path] if path.is_file() else []
    facts = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    # In doubles, which some devices lack.
    weights = [float(value.cpu().double().abs().sum()) for value in segmentor.model.state_dict().values()]
    return json.dumps([str(path.resolve()), facts, segmentor.name, weights, repr(segmentor.rule), confidence, stride])


def _teach_one(video: str, segmentor: HuggingFaceSegmentor, root: Path, confidence: float, stride: int) -> list[str]:
    identity = hashlib.sha256(_identity(video, segmentor, confidence, stride).encode()).hexdigest()[:12]
    name = f"{Path(shown_address(video)).stem[:48] or 'video'}-{identity}"
    done = root / f"{name}.json"
    if done.is_file():
        try:
            clips = convert(read_json(done), list[str], what="the list of clips")
        except (OSError, ValueError) as error:
            raise DataError(f"{done}: damaged ({error}); delete it to have the video taught again") from error
        require_names(clips, done)
        return clips
    log.info("teaching %s", video)
    with writing(root), scratch(root / name) as part:
        scenes = _write_scenes(video, segmentor, part, confidence, stride)
        clips = []
        for scene in scenes:
            clips.append(f"{name}-{scene:03}")
            for kind in ("images", "labels"):
                install(part / kind / f"{scene}", root / kind / clips[-1])
    with whole_file(done) as file:
        file.write(json.dumps(clips).encode())
    return clips


def _write_scenes(video: str, segmentor: HuggingFaceSegmentor, part: Path, confidence: float, stride: int) -> list[int]:
    """Write images and labels by scene; return the scenes of at least two frames."""
    cuts = CutDetector()
    void = ignore_id(len(segmentor.class_names))
    counts = [0]
    session = VideoSegmenter(segmentor, None).session(confidence=True)
    with read(video, stride=stride) as reader:
        for frame in reader:
            if cuts.is_cut(frame.rgb):
                counts.append(0)
            small, _ = prepare(frame, segmentor.rule)
            result = session.push(Frame(frame.index, frame.pts, small))[0]
            assert result.confidence is not None
            labels = np.where(result.confidence < confidence, result.labels.dtype.type(void), result.labels)
            for kind, pixels, suffix in (
                ("images", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), "jpg"),
                ("labels", labels, "png"),
            ):
                folder = part / kind / f"{len(counts) - 1}"
                folder.mkdir(parents=True, exist_ok=True)
                path = folder / f"{counts[-1]:06}.{suffix}"
                if not cv2.imwrite(str(path), pixels, _JPEG if suffix == "jpg" else ()):
                    raise OSError(f"cannot write {path}")
            counts[-1] += 1
    return [scene for scene, count in enumerate(counts) if count > 1]
