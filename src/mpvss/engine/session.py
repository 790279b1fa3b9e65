"""One video on its way: a queue of frames and the schedule that divides it. Holds no tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from mpvss.engine.carriers import Carrier
from mpvss.engine.schedule import Cuts, Schedule, WindowFrame, check_direction
from mpvss.engine.spill import Spill
from mpvss.types import IMAGE_RATE, Frame, Segmentation, check_image


@dataclass(frozen=True)
class _Step:
    """What is decided about a frame: it is a key frame after those between, or propagated to from the last one."""

    frame: Frame
    is_key: bool = True
    new_scene: bool = False
    between: Sequence[Frame] = ()


class Session:
    """Segments one video, frame by frame: ``push`` every frame in order, then ``finish``. A context manager.

    Going forward, each push answers with that frame. With both directions a frame is answered when the key frame after
    it is known. Nothing is propagated across a cut, and after the last key frame only the forward side is left. Frames
    that wait lie in a temporary file beyond ``spill.MOST_HELD`` bytes.
    """

    def __init__(
        self,
        carrier: Carrier[Any],
        schedule: Schedule,
        *,
        direction: str = "forward",
        cuts: Cuts | None = None,
        key_batch: int = 1,
    ) -> None:
        """Begin a video.

        Args:
            carrier: Labels frames; belongs to this session.
            schedule: Decides which frames are key frames; belongs to this session.
            direction: ``forward`` propagates from the key frame before; ``both`` also from the one after, fused.
            cuts: Tells the frames that begin another scene; ``None`` for one scene.
            key_batch: So many key frames go through the segmentor at once; what depends on them waits until then.

        Raises:
            ValueError: There is no such direction, or the batch is less than 1.
        """
        check_direction(direction)
        if key_batch < 1:
            raise ValueError(f"key_batch must be at least 1 key frame, got {key_batch}")
        self.carrier, self.clock = carrier, carrier.clock
        self._schedule, self._direction, self._cuts = schedule, direction, cuts
        self._window: list[WindowFrame] = []
        self._waiting: list[Frame] = []  # both directions: the frames of the window
        self._spill = Spill("frames that wait for a key frame")
        self._kept: Any = None
        self._geometry: Any = None
        self._key_batch = key_batch
        self._steps: list[_Step] = []  # those that wait for key frames to fill a batch
        self._pushed, self._finished = 0, False
        self._last_pts: Fraction | None = None

    def push(
        self, frame: Frame | UInt8[np.ndarray, "H W 3"], *, copy: bool = True, color: Literal["rgb", "bgr"] = "rgb"
    ) -> list[Segmentation]:
        """Take the next frame; return the frames that are finished by it, in order: none, one or more.

        Args:
            frame: A frame, or a bare RGB image: those are counted from 0, at 25 a second as image files are.
            copy: Whether the image's memory may be written over when this returns; ``False`` saves a copy.
            color: Order of the channels; ``bgr`` for images of OpenCV. Results carry RGB.

        Raises:
            ValueError: The image is not (H, W, 3) of uint8; its time is before that of the frame before; the session is
                finished; or the networks answered NaN.
        """
        frame = self._checked(frame, copy, color)
        cut = self._cuts is not None and self._cuts.is_cut(frame.rgb)
        geometry, former = self.carrier.geometry(frame), self._geometry
        self._geometry = geometry
        done = self._run_steps() if geometry != former else []
        return done + self._decide(frame, new_scene=cut or geometry != former, first=former is None)

    def _decide(self, frame: Frame, *, new_scene: bool, first: bool) -> list[Segmentation]:
        """Ask the schedule about a frame, and do what is decided."""
        if first:
            return self._take(_Step(frame, new_scene=True))
        self._window.append(WindowFrame(frame.index, frame.pts, new_scene))
        if self._direction == "both":
            self._waiting.append(frame)
            return self._advance()
        position = self._schedule.decide(self._window)
        if position is None:
            return self._take(_Step(frame, is_key=False))
        if position != len(self._window) - 1:
            raise ValueError(f"a schedule going forward can choose only the last frame, got {position} of the window")
        return self._take(_Step(frame, new_scene=new_scene))

    def finish(self) -> list[Segmentation]:
        """Return the frames that still waited for a key frame after them; the video has ended."""
        self._finished = True
        done = self._run_steps()
        waiting, self._waiting = self._waiting, []
        done += self.carrier.between(self._kept, waiting, None) if waiting else []
        self._spill.clear()
        self.close()
        return done

    def _checked(self, frame: Frame | UInt8[np.ndarray, "H W 3"], copy: bool, color: str) -> Frame:
        if self._finished:
            raise ValueError("this session is finished; begin another one for more frames")
        if color not in ("rgb", "bgr"):
            raise ValueError(f"color must be rgb or bgr, got {color!r}")
        check_image(frame.rgb if isinstance(frame, Frame) else frame)
        if not isinstance(frame, Frame):
            frame = Frame(self._pushed, self._pushed / IMAGE_RATE, frame)
        if self._last_pts is not None and not frame.pts >= self._last_pts:
            raise ValueError(
                f"frames must come in the order of their times, got frame {frame.index} at {float(frame.pts):g} s "
                f"after one at {float(self._last_pts):g} s; begin another session for another video"
            )
        self._pushed += 1
        self._last_pts = frame.pts
        if color == "bgr":
            return replace(frame, rgb=frame.rgb[..., ::-1].copy())
        return replace(frame, rgb=frame.rgb.copy()) if copy else frame

    def _advance(self) -> list[Segmentation]:
        """Go on to the next key frames that the schedule has decided on; keep the last frame if it has to wait."""
        done: list[Segmentation] = []
        while self._window and (position := self._schedule.decide(self._window)) is not None:
            between, frame, rest = self._waiting[:position], self._waiting[position], self._waiting[position + 1 :]
            window, self._waiting = self._window, rest
            done += self._take(_Step(frame, new_scene=window[position].new_scene, between=between))
            self._window = window[position + 1 :]
        if self._waiting:
            self._waiting[-1] = self._spill.keep_frame(self._waiting[-1])
        elif not self._steps:
            self._spill.clear()
        return done

    def _take(self, step: "_Step") -> list[Segmentation]:
        """Do a step, or let it wait until there are enough key frames for a batch."""
        if step.is_key:
            self._window = []
        elif not self._steps:
            return [self._next(step.frame)]
        self._steps.append(step)
        return self._run_steps() if sum(each.is_key for each in self._steps) == self._key_batch else []

    def _run_steps(self) -> list[Segmentation]:
        """Run the segmentor on the key frames that wait, and label everything up to the last of them."""
        steps, self._steps = self._steps, []
        if not steps:
            return []
        predicted = iter(self.carrier.predict([step.frame for step in steps if step.is_key]))
        done: list[Segmentation] = []
        for step in steps:
            if not step.is_key:
                done.append(self._next(step.frame))
                continue
            kept, own = self.carrier.keep(step.frame, next(predicted))
            if step.between:
                done += self.carrier.between(self._kept, step.between, None if step.new_scene else kept)
            self._kept = kept
            done.append(own)
        return done

    def _next(self, frame: Frame) -> Segmentation:
        result = self.carrier.next(self._kept, frame)
        if result.confidence is not None and self._window and self._window[-1].index == frame.index:
            self._window[-1] = replace(self._window[-1], confidence=float(result.confidence.mean()))
        return result

    @property
    def flow_counts(self) -> Mapping[str, int]:
        """How many flows each propagator made, where one falls back on another."""
        inference = getattr(self.carrier, "inference", None)
        return {} if inference is None else dict(inference.tally.counts)

    def close(self) -> None:
        """Release the carrier's threads."""
        self.carrier.close()

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        self._finished = True
        self.close()
