"""Flows from frames to their key frames: chained from neighbour to neighbour, or direct.

The images and keys are opaque here.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from mpvss.motion.arrays import Flow, compose, invert

MOTIONS = ("chain", "direct")


@runtime_checkable
class Key(Protocol):
    """What a carrier keeps of a key frame, as far as flows are concerned."""

    @property
    def view(self) -> Any:
        """The frame as flows are estimated on it."""
        ...


_K = TypeVar("_K", bound=Key)


def check_motion(motion: str) -> None:
    """Refuse a way to reach key frames that there is not.

    Raises:
        ValueError: It is so.
    """
    if motion not in MOTIONS:
        raise ValueError(f"motion must be one of {', '.join(MOTIONS)}, got {motion!r}")


@dataclass(eq=False)
class Flows(Generic[_K]):
    """Estimates and composes the flows of one video.

    Attributes:
        estimate: Backward flow from an image to another one, for what a key frame keeps.
        motion: ``chain`` composes flows between neighbouring frames; ``direct`` estimates one flow from each frame to
            its key frame (Paper: section 3.2).
        invertible: Whether one flow between neighbours serves both directions, inverted for the other.
        map: Applies a function to each item, in a thread pool where that helps.
        keep: Keeps a flow that waits, in a file where there are too many.
    """

    estimate: Callable[[Any, Any, _K], Flow]
    motion: str
    invertible: bool
    map: Callable[[Callable[[Any], Any], Iterable[Any]], list[Any]]
    keep: Callable[[Flow], Flow]
    _last: tuple[Any, Flow | None] | None = field(default=None, init=False)

    def restart(self, key: _K) -> None:
        """Begin a chain at a key frame."""
        self._last = (key.view, None)

    def next(self, image: Any, key: _K) -> Flow:
        """Return the flow from the frame after the last one to the key frame."""
        assert self._last is not None
        if self.motion == "chain":
            neighbour, accumulated = self._last
            flow = compose(self.estimate(image, neighbour, key), accumulated)
        else:
            flow = self.estimate(image, key.view, key)
        self._last = (image, flow)
        return flow

    def to_key(self, images: Sequence[Any], key: _K) -> list[Flow]:
        """Return the flows from consecutive frames, the nearest first, to a key frame beside them."""
        if self.motion == "chain":
            return self._accumulate(self._steps(images, key))
        return self.map(lambda image: self.keep(self.estimate(image, key.view, key)), images)

    def to_both(self, images: Sequence[Any], before: _K, after: _K) -> tuple[list[Flow], list[Flow]]:
        """Return the flows from the frames between two key frames to either, in the order of the frames."""
        if not self.invertible:
            return self.to_key(images, before), self.to_key(images[::-1], after)[::-1]
        steps = self._steps([*images, after.view], before)
        back = self.map(lambda step: self.keep(invert(step)), steps[:0:-1])
        forward, backward = self.map(self._accumulate, [steps[:-1], back])
        return forward, backward[::-1]

    def _accumulate(self, steps: Sequence[Flow]) -> list[Flow]:
        """Compose flows between neighbours, the key frame's neighbour first, into flows to the key frame."""
        flows: list[Flow] = []
        for step in steps:
            flows.append(self.keep(compose(step, flows[-1])) if flows else step)
        return flows

    def _steps(self, images: Sequence[Any], key: _K) -> list[Flow]:
        """Flows from consecutive frames, the nearest to a key frame first, each to the one before."""

        def step(pair: tuple[Any, Any]) -> Flow:
            return self.keep(self.estimate(pair[0], pair[1], key))

        return self.map(step, zip(images, [key.view, *images[:-1]], strict=True))
