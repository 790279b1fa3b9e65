"""Predictions of a model, or of a propagator from true labels, for the clips of a data set; and their multiply-adds."""

from collections.abc import Iterator
from dataclasses import fields
from fractions import Fraction

import numpy as np

from mpvss.datasets import Clip, Dataset
from mpvss.engine.decode import Labels
from mpvss.engine.schedule import CutDetector, FixedInterval
from mpvss.engine.session import Session
from mpvss.engine.true_labels import true_label_carrier
from mpvss.errors import DataError
from mpvss.evaluation.gmac import FrameGmac, count_frame_gmac
from mpvss.evaluation.label_files import class_table
from mpvss.evaluation.scores import PredictedFrame, timed
from mpvss.labels import label_dtype
from mpvss.motion.dis import Dis
from mpvss.motion.propagator import Propagator, serves_both_ways
from mpvss.motion.propagators import make_propagator
from mpvss.options import EvalOptions, ModelOptions, PropagationOptions, SegmentOptions
from mpvss.segmenter import VideoSegmenter
from mpvss.segmentors.onnx import OnnxSegmentor
from mpvss.types import Frame, Segmentation


class Predictor:
    """Predicts the frames of clips.

    Args:
        options: Resolved; without ``predictions``.
        dataset: Its class ids are what is predicted.

    Raises:
        ModelError: The model cannot be loaded, or does not know the data set's classes.
    """

    def __init__(self, options: EvalOptions, dataset: Dataset) -> None:
        self._options, self._dataset = options, dataset
        self._segmenter: VideoSegmenter | None = None
        self._gmac: dict[tuple[int, int], FrameGmac] = {}
        # Class ids of a session's results: those of the data set, and last "no class" where labels are true.
        ids = [*range(dataset.num_classes), dataset.ignore]
        if options.model:
            shared = (*fields(ModelOptions), *fields(PropagationOptions))
            inherited = SegmentOptions(**{each.name: getattr(options, each.name) for each in shared})
            self._segmenter = VideoSegmenter.from_pretrained(options.model, options=inherited)
            self.propagator: Propagator | None = self._segmenter.propagator
            if not options.oracle:
                segmentor = self._segmenter.segmentor
                ids = class_table(segmentor.name, segmentor.class_names, dataset)
        else:
            # Without propagation every frame is a key frame, and the propagator does not matter.
            self.propagator = make_propagator("hold" if options.propagator == "none" else options.propagator)
        self._ids = np.array(ids)

    def frames(self, clip: Clip, indices: range, seconds: dict[str, float], part: str) -> Iterator[PredictedFrame]:  # noqa: ARG002 - as label files
        """Predict frames of a clip, in order.

        Args:
            clip: The clip.
            indices: Of its frames; the first is a key frame.
            seconds: Counts the time, by stage.
            part: Does not matter.

        Raises:
            DataError: An image cannot be read, or a key frame has no true labels.
        """
        session = self._session(clip)
        try:
            for index in indices:
                with timed(seconds, "read"):
                    frame = Frame(index, Fraction(index) / clip.fps, clip.load_image(index))
                yield from map(self._predicted, session.push(frame, copy=False))
            yield from map(self._predicted, session.finish())
        finally:
            for stage, spent in session.clock.seconds.items():
                seconds[stage] = seconds.get(stage, 0.0) + spent

    def _predicted(self, result: Segmentation) -> PredictedFrame:
        """A result in the data set's ids; pixels without a class have none there, either."""
        has_class = result.labels < len(self._ids)
        ids = np.where(has_class, self._ids[np.where(has_class, result.labels, 0)], self._dataset.ignore)
        labels = ids.astype(label_dtype(self._dataset.num_classes))
        return PredictedFrame(result.index, result.frame.rgb, labels, result.is_key)

    def _session(self, clip: Clip) -> Session:
        options, segmenter = self._options, self._segmenter
        if segmenter is not None and not options.oracle:
            return segmenter.session(direction=options.direction)
        assert self.propagator is not None and options.interval is not None

        def label(frame: Frame) -> Labels:
            truth = clip.load_label(frame.index)
            if truth is None:
                raise DataError(f"{clip.frames[frame.index].image_path}: a key frame without its true labels")
            return truth

        segmentor = None if segmenter is None else segmenter.segmentor
        return Session(
            true_label_carrier(label, self._ids, self.propagator, motion=options.motion, segmentor=segmentor),
            FixedInterval(options.interval),
            direction=options.direction,
            cuts=CutDetector() if options.cuts else None,
        )

    def cost(self, clip: Clip, keys: list[bool]) -> tuple[float | None, int | None]:
        """GMAC of a clip's frames, and the number of their flows without a network; ``None`` where they are unknown.

        A frame between two key frames pays for both sides where both are used, but for one flow where one between
        neighbours serves both.
        """
        segmenter, options = self._segmenter, self._options
        if segmenter is None or options.oracle:
            return None, None
        # A snippet's frames are each before another key frame.
        after_last = 0 if self._dataset.protocol == "cityscapes" else keys[::-1].index(True)
        between = len(keys) - sum(keys) - after_last
        sides = 2 if options.direction == "both" else 1
        sides_of_frames = sides * between + after_last
        shared = self.propagator is not None and serves_both_ways(self.propagator, options.motion)
        # With both sides, flows to the neighbour before: each frame but the first, key frames included.
        flows = len(keys) - 1 if shared and sides == 2 else sides_of_frames
        classical_flows = flows if isinstance(self.propagator, Dis) else 0
        if isinstance(segmenter.segmentor, OnnxSegmentor):  # torch cannot count what ONNX Runtime computes
            return None, classical_flows
        frame = Frame(0, Fraction(0), clip.load_image(0))
        if frame.size not in self._gmac:
            self._gmac[frame.size] = count_frame_gmac(segmenter, frame)
        gmac = self._gmac[frame.size]
        return sum(keys) * gmac.key + sides_of_frames * gmac.side + flows * gmac.flow, classical_flows
