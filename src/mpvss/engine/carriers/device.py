"""Propagation on the device of the networks: what both other carriers do, an interval of frames at a time.

Key frames come in batches, and so do flows; scores, masks, weights and label maps stay on the device until the labels
of an interval are done, and come to the host at once. Scores are not quantised: labels differ from those of a CPU where
two classes are as good as tied.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped, UInt8
from torch import Tensor

from mpvss._threads import threads
from mpvss.engine.carriers.carrier import NO_QUERIES, Inference
from mpvss.engine.decode import score_size
from mpvss.engine.fusion import WEIGHT_CELL, thumbnail
from mpvss.engine.packed import LEAST_PEAK
from mpvss.engine.spill import Spill
from mpvss.engine.state import active_queries
from mpvss.engine.tensors import (
    TensorScores,
    at,
    blend_weights,
    chosen,
    index,
    possible_classes,
    possible_maps,
    query_scores,
    union,
    visible_flows,
    winners,
)
from mpvss.engine.view import View
from mpvss.errors import ModelError
from mpvss.labels import ignore_id, label_dtype
from mpvss.motion.propagator import flow_grid, serves_both_ways
from mpvss.motion.warp import compose, invert, resize_flow, warp
from mpvss.segmentors.protocol import resize_frame
from mpvss.segmentors.tensors import TensorPrediction
from mpvss.types import Frame, Geometry, Segmentation

# Frames whose flows, masks and scores are on the device at a time.
_AT_ONCE = 8

Images = UInt8[np.ndarray, "B H W 3"]
Flows = Float[Tensor, "B G 2 h w"]


@dataclass(frozen=True, eq=False)
class _Predicted:
    """What the segmentor said about a key frame, on the device: queries, or maps of pixels."""

    image: UInt8[np.ndarray, "H W 3"]
    geometry: Geometry
    class_logits: Float[Tensor, "Q K1"] | None
    masks: Float[Tensor, "Q h w"]
    queries: Float[Tensor, "Q D"] | None
    kind: Literal["logits", "scores"] = "logits"
    ids: Int64[np.ndarray, " Q"] | None = None


@dataclass(frozen=True, eq=False)
class KeyTensors:
    """A key frame as the frames around it need it: its active queries, or the scores of its classes."""

    view: View
    geometry: Geometry
    scores: TensorScores
    said: _Predicted
    active: Int64[Tensor, " A"] | None


class DeviceCarrier:
    """Keeps and propagates on a device; see ``Carrier``."""

    def __init__(self, inference: Inference) -> None:
        """Begin a video; ``inference.network`` has ``predict``, which answers with tensors, and ``device``."""
        self.inference, self.clock = inference, inference.clock
        self._network: Any = inference.network
        self._device: torch.device = torch.device(self._network.device)
        self._pool: ThreadPoolExecutor | None = None
        self._last: tuple[View, Flows | None] | None = None
        self._spill = Spill("frames that wait for a key frame")

    # --- key frames ---------------------------------------------------------------------------------------------------

    def geometry(self, frame: Frame) -> Geometry:
        """Return what must be the same for a frame as for its key frame."""
        return self.inference.rule.fit(frame.size)

    def predict(self, frames: Sequence[Frame]) -> list[_Predicted]:
        """Run the segmentor on key frames at once; see ``Carrier.predict``."""
        geometry = self.geometry(frames[0])
        with self.clock("key"):
            images = np.stack(self._map(lambda frame: resize_frame(frame, geometry.resized), frames))
            with torch.no_grad():
                answer = self._network.predict(self._up(images).permute(0, 3, 1, 2))
            if isinstance(answer, TensorPrediction):
                parts: list[Any] = list(zip(answer.class_logits, answer.mask_logits, answer.queries, strict=True))
            else:
                ids = None if answer.ids is None else answer.ids.cpu().numpy()
                parts = [(None, maps, None, answer.kind, ids) for maps in answer.scores]
            return [_Predicted(image, geometry, *part) for image, part in zip(images, parts, strict=True)]

    @torch.no_grad()
    def keep(self, frame: Frame, predicted: _Predicted) -> tuple[KeyTensors, Segmentation]:
        """Label a key frame; see ``Carrier.keep``."""
        geometry = predicted.geometry
        with self.clock("decode"):
            scores, own = self._scores(predicted)
            (result,) = self._results([frame], scores.planes[None], scores.ids, geometry, is_key=True, own=own)
        with self.clock("propagate"):
            size = self._image_size(geometry)
            image = predicted.image if size == geometry.resized else resize_frame(frame, size)
            active = None
            if self.inference.propagator.per_query:
                if predicted.class_logits is None:
                    raise ModelError(NO_QUERIES)
                active = _active(predicted.class_logits, self.inference.tolerance)
            elif not self.inference.confidence:
                scores = _kept(scores)
            view = View(image, frame.index, frame.vectors)
            kept = KeyTensors(view, geometry, scores, predicted, active)
            self._last = (view, None)
        return kept, result

    def _scores(self, said: _Predicted) -> tuple[TensorScores, Float[Tensor, "P H W"] | None]:
        """Return the class scores of a key frame; and, at its size, the logits of a segmentor of pixels."""
        every = self.inference.confidence or self.inference.min_score > 0
        if said.class_logits is not None:
            classes = None if every else possible_classes(said.class_logits, said.masks)
            planes = query_scores(said.class_logits, said.masks[None], said.geometry, classes)[0]
            ids = np.arange(len(planes)) if classes is None else classes
            return TensorScores(ids, planes), None
        kept = np.arange(len(said.masks)) if every else possible_maps(said.masks)
        maps = said.masks[index(kept, said.masks)]
        planes = at(score_size(said.geometry), maps[None], said.geometry)[0]
        ids = kept if said.ids is None else said.ids[kept]
        scores = TensorScores(ids, planes.softmax(0) if said.kind == "logits" else planes)
        return scores, at(said.geometry.source, maps[None], said.geometry)[0]

    # --- frames between -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def next(self, kept: KeyTensors, frame: Frame) -> Segmentation:
        """Label a frame from the key frame before it; see ``Carrier.next``."""
        with self.clock("propagate"):
            assert self._last is not None
            view = self._view(frame)
            neighbour, accumulated = self._last
            chained = self.inference.motion == "chain"
            step = self._estimate([view], [neighbour if chained else kept.view], kept)
            flow = _chained(step, accumulated) if chained else step
            self._last = (view, flow)
        (result,) = self._from_one([frame], kept, flow)
        return result

    @torch.no_grad()
    def between(self, before: KeyTensors, frames: Sequence[Frame], after: KeyTensors | None) -> list[Segmentation]:
        """Label the frames between two key frames, or after the last one; see ``Carrier.between``."""
        with self.clock("propagate"):
            views = [replace(view, image=self._spill.keep(view.image)) for view in self._map(self._view, frames)]
            forward, backward = self._flows(views, before, after)
        done: list[Segmentation] = []
        for first in range(0, len(frames), _AT_ONCE):
            some = slice(first, first + _AT_ONCE)
            if after is None or backward is None:
                done += self._from_one(frames[some], before, forward[some])
                continue
            distance = torch.arange(first + 1, first + 1 + len(frames[some]), device=self._device)
            near = 1 - distance.float() / (len(frames) + 1)
            sides = ((before, forward[some], near), (after, backward[some], 1 - near))
            done += self._fused(frames[some], [view.image for view in views[some]], sides)
        self._spill.clear()
        return done

    def close(self) -> None:
        """End the threads."""
        self.inference.tally.report(self.inference.propagator.name)
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def _flows(self, views: list[View], before: KeyTensors, after: KeyTensors | None) -> tuple[Flows, Flows | None]:
        """Flows from the frames between to the key frame before them, and to the one after."""
        if self.inference.motion == "direct":
            sides = [self._estimate(views, [key.view], key) for key in (before, after) if key is not None]
            return sides[0], sides[1] if after is not None else None
        if after is None:
            return _accumulated(self._estimate(views, [before.view, *views[:-1]], before)), None
        if serves_both_ways(self.inference.propagator, "chain"):
            steps = self._estimate([*views, after.view], [before.view, *views], before)
            back = torch.stack([invert(step) for step in steps[1:].flip(0)])
            return _accumulated(steps[:-1]), _accumulated(back).flip(0)
        forward = self._estimate(views, [before.view, *views[:-1]], before)
        backward = self._estimate(views[::-1], [after.view, *views[:0:-1]], after)
        return _accumulated(forward), _accumulated(backward).flip(0)

    def _estimate(
        self,
        views: Sequence[View],
        others: Sequence[View],
        key: KeyTensors,
    ) -> Flows:
        """Backward flows from frames to others, one for all or one each: a network's in batches, others in threads."""
        propagator, geometry = self.inference.propagator, key.geometry
        if propagator.per_query:
            padded, grid = geometry.padded, (key.said.masks.shape[-2], key.said.masks.shape[-1])
        else:
            padded = score_size(geometry)
            grid = flow_grid(padded)
        queries = key.said.queries if propagator.per_query else None
        pairs = list(zip(views, others if len(others) == len(views) else [others[0]] * len(views), strict=True))
        if hasattr(propagator, "predict"):
            flows = []
            for first in range(0, len(pairs), _AT_ONCE):
                now, then = (
                    self._up(np.stack([view.image for view in part])).permute(0, 3, 1, 2)
                    for part in zip(*pairs[first : first + _AT_ONCE], strict=True)
                )
                embeddings = None if queries is None else queries[None]
                flows.append(propagator.predict(now, then, embeddings, padded, grid, key.active).float())
            return torch.cat(flows).to(self._device)
        host = None if queries is None else queries[None].float().cpu().numpy()
        active = None if key.active is None else key.active.cpu().numpy()

        def one(pair: tuple[Any, Any]) -> Any:
            return self.inference.flow(pair[0], pair[1], padded, grid, host, active)

        return self._up(np.stack(self._map(one, pairs, safe=getattr(propagator, "thread_safe", False))))

    def _from_one(self, frames: Sequence[Frame], key: KeyTensors, flow: Flows) -> list[Segmentation]:
        with self.clock("propagate"):
            if self.inference.propagator.per_query:
                planes, ids = self._masks(key, flow)[0], None
            else:
                planes, ids = _warped(key.scores, flow), key.scores.ids
        with self.clock("decode"):
            ids = np.arange(planes.shape[1]) if ids is None else ids
            return self._results(frames, planes, ids, key.geometry, is_key=False)

    def _masks(self, key: KeyTensors, flow: Flows) -> tuple[Float[Tensor, "B K H W"], Float[Tensor, "B Q h w"]]:
        """Warp the masks of the active queries; return the class scores of that, and the masks."""
        said = key.said
        assert said.class_logits is not None
        logits, masks = (each if key.active is None else each[key.active] for each in (said.class_logits, said.masks))
        if flow.shape[1] == 1:
            warped = warp(masks[None].expand(len(flow), -1, -1, -1), flow[:, 0])
        else:
            many = masks[None, :, None].expand(len(flow), -1, -1, -1, -1).flatten(0, 1)
            warped = warp(many, flow.flatten(0, 1)).reshape(len(flow), *masks.shape)
        return query_scores(logits, warped, key.geometry), warped

    def _fused(
        self,
        frames: Sequence[Frame],
        images: Sequence[UInt8[np.ndarray, "H W 3"]],
        sides: tuple[tuple[KeyTensors, Flows, Tensor], tuple[KeyTensors, Flows, Tensor]],
    ) -> list[Segmentation]:
        """Blend what two key frames say about frames between them."""
        per_query, geometry = self.inference.propagator.per_query, sides[0][0].geometry
        with self.clock("propagate"):
            size = score_size(geometry)
            covered = geometry.padded if per_query else size
            grid = (-(-size[0] // WEIGHT_CELL), -(-size[1] // WEIGHT_CELL))
            if per_query:
                grid = (sides[0][0].said.masks.shape[-2], sides[0][0].said.masks.shape[-1])
            current = self._thumbnails(images, covered, grid)
            scores = (None, None) if per_query else union(sides[0][0].scores, sides[1][0].scores)
            total: Tensor | float = 0.0
            weights: Tensor | float = 0.0
            for (key, flow, near), own in zip(sides, scores, strict=True):
                if own is None:
                    assert key.said.class_logits is not None
                    planes, masks = self._masks(key, flow)
                    logits = key.said.class_logits if key.active is None else key.said.class_logits[key.active]
                    seen = visible_flows(flow, logits, masks)
                else:
                    planes, seen = _warped(own, flow), resize_flow(flow[:, 0], grid)
                small = self._thumbnails([key.view.image], covered, grid)
                weight = blend_weights(current, small, seen, near, covered)[:, None]
                weight = at(size, weight, _plain(geometry, per_query))
                total, weights = total + planes * weight, weights + weight
            assert isinstance(total, Tensor) and isinstance(weights, Tensor)
            ids = np.arange(total.shape[1]) if scores[0] is None else scores[0].ids
        with self.clock("decode"):
            return self._results(frames, total / weights.clamp(min=1e-12), ids, geometry, is_key=False)

    def _thumbnails(
        self, images: Sequence[UInt8[np.ndarray, "H W 3"]], covered: tuple[int, int], grid: tuple[int, int]
    ) -> Float[Tensor, "B 3 h w"]:
        small = self._map(lambda image: thumbnail(image, covered, grid), images)
        return self._up(np.stack(small)).permute(0, 3, 1, 2)

    # --- to the host and back -----------------------------------------------------------------------------------------

    def _results(
        self,
        frames: Sequence[Frame],
        planes: Float[Tensor, "B P h w"],
        ids: Int64[np.ndarray, " P"],
        geometry: Geometry,
        *,
        is_key: bool,
        own: Float[Tensor, "P H W"] | None = None,
    ) -> list[Segmentation]:
        """Bring label maps to the host: the one place where it waits for the device.

        The labels are the classes of the largest planes, or of the largest of ``own``, from which a least score of the
        planes only takes labels away.
        """
        inference, count = self.inference, len(self._network.class_names)
        options: dict[str, Any] = {"num_classes": count, "classes": inference.classes}
        scored: dict[str, Any] = {"confidence": inference.confidence, "min_score": inference.min_score}
        labels, shares = winners(planes, ids, geometry.source, **options, **scored)
        if own is not None:
            logits, _ = winners(own[None], ids, geometry.source, **options)
            void = ignore_id(count)
            labels = torch.where(labels == void, void, logits).to(logits.dtype) if inference.min_score else logits
        found = [each if each is None else self._down(each) for each in (labels, shares)]
        arrays = found[0].astype(label_dtype(count), copy=False)  # type: ignore[union-attr]
        confidence = [None] * len(frames) if found[1] is None else list(found[1])
        return [
            Segmentation(frame, self._spill.keep(label), is_key, share, inference.class_names)
            for frame, label, share in zip(frames, arrays, confidence, strict=True)
        ]

    def _up(self, array: Shaped[np.ndarray, "..."]) -> Tensor:
        """Copy an array to the device, without waiting for it where its memory can be pinned."""
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        if self._device.type == "cuda":
            return tensor.pin_memory().to(self._device, non_blocking=True)
        return tensor.to(self._device)

    def _down(self, tensor: Tensor) -> Any:
        if self._device.type != "cuda":
            return tensor.cpu().numpy()
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        host.copy_(tensor, non_blocking=True)
        torch.cuda.current_stream(self._device).synchronize()
        return host.numpy()

    def _image_size(self, geometry: Geometry) -> tuple[int, int]:
        return geometry.resized if self.inference.propagator.per_query else score_size(geometry)

    def _view(self, frame: Frame) -> View:
        return View(resize_frame(frame, self._image_size(self.geometry(frame))), frame.index, frame.vectors)

    def _map(self, work: Any, items: Sequence[Any], *, safe: bool = True) -> list[Any]:
        if not safe or len(items) < 2 or threads() == 1:
            return [work(item) for item in items]
        if self._pool is None:
            self._pool = ThreadPoolExecutor(threads(), "mpvss-frame")
        return list(self._pool.map(work, items))


def _plain(geometry: Geometry, per_query: bool) -> Geometry:
    """What weights cover: the padded image where they lie on the grid of masks, else the scores alone."""
    size = score_size(geometry)
    return geometry if per_query else Geometry(size, size, size)


def _chained(step: Flows, accumulated: Flows | None) -> Flows:
    return step if accumulated is None else torch.stack([compose(step[0], accumulated[0])])


def _accumulated(steps: Flows) -> Flows:
    """Compose flows between neighbours, the key frame's neighbour first, into flows to the key frame."""
    flows = [steps[0]]
    for step in steps[1:]:
        flows.append(compose(step, flows[-1]))
    return torch.stack(flows)


def _warped(scores: TensorScores, flow: Flows) -> Float[Tensor, "B P H W"]:
    whole = resize_flow(flow[:, 0], (scores.planes.shape[1], scores.planes.shape[2]))
    return warp(scores.planes[None].expand(len(flow), -1, -1, -1), whole)


def _kept(scores: TensorScores) -> TensorScores:
    """Keep the classes that win somewhere, or peak above a twentieth; waits for the device."""
    best = scores.planes.amax(0)
    wins = ((scores.planes >= best) & (best > 0)).flatten(1).any(1)
    kept = chosen(wins | (scores.planes.flatten(1).amax(1) >= LEAST_PEAK))
    return TensorScores(scores.ids[kept], scores.planes[index(kept, scores.planes)]) if len(kept) else scores


def _active(class_logits: Float[Tensor, "Q K1"], tolerance: float) -> Int64[Tensor, " A"] | None:
    """Return the queries that may change a class score by more than the tolerance; see ``KeyState.only_active``."""
    kept = active_queries(class_logits.softmax(1)[:, :-1].amax(1).float().cpu().numpy(), tolerance)
    return None if kept is None else index(kept, class_logits)
