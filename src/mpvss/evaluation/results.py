"""What an evaluation and a comparison return."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

FIGURES = {
    "miou": "mIoU",
    "wiou": "weighted IoU",
    "j": "J",
    "vc8": "VC8",
    "vc16": "VC16",
    "correct_vc8": "correct VC8",
    "correct_vc16": "correct VC16",
    "flicker": "flicker",
    "gmac_per_frame": "GMAC a frame",
}
"""Names of the figures, for people."""

WINDOW = 10
"""Frames of a window: what a bootstrap draws where there is one video, and of which the worst frame is kept."""


@dataclass(frozen=True)
class EvalResult:
    """The figures of a finished run. What is undefined or unknown is ``None``.

    Attributes:
        miou: 0 to 1, as the next eight.
        wiou: IoU weighted by each class's share of the true pixels.
        vc8: Video consistency over 8 frames.
        vc16: Over 16 frames.
        correct_vc8: The same of right predictions only.
        correct_vc16: Over 16 frames.
        flicker: Share of pixels whose label changes along the optical flow.
        j: Region similarity of DAVIS; ``None`` for other data sets.
        miou_by_distance: mIoU at each distance to the key frame.
        iou: IoU by class name.
        videos: How many were scored.
        frames: How many were scored.
        key_frames: How many of them are key frames.
        gmac_per_frame: Billions of multiply-adds.
        classical_flows_per_frame: Flows of ``dis``, which are no multiply-adds and not among them.
        seconds: By stage.
        options: What was scored, and how; see ``EvalOptions``.
    """

    miou: float | None
    wiou: float | None
    vc8: float | None
    vc16: float | None
    correct_vc8: float | None
    correct_vc16: float | None
    flicker: float | None
    j: float | None
    miou_by_distance: list[float | None] | None
    iou: dict[str, float | None]
    videos: int
    frames: int
    key_frames: int | None
    gmac_per_frame: float | None
    classical_flows_per_frame: float | None
    seconds: dict[str, float]
    options: Mapping[str, Any]

    def figures(self) -> dict[str, float]:
        """The known ones of ``FIGURES``, in that order."""
        values = ((name, getattr(self, name)) for name in FIGURES)
        return {name: value for name, value in values if value is not None}

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON holds it."""
        return asdict(self)


@dataclass(frozen=True)
class Difference:
    """How a figure of two runs differs, with a 95 % interval.

    Attributes:
        value: b - a.
        low: Lower end of the interval; ``None`` without one.
        high: Upper end.
        method: ``BCa``, ``percentile`` or ``None``.
        why: Why it is no BCa interval.
    """

    value: float
    low: float | None
    high: float | None
    method: str | None
    why: str | None

    @property
    def interval(self) -> str:
        """The interval for people, or why there is none."""
        return f"none: {self.why}" if self.low is None else f"{self.low:+.4f} to {self.high:+.4f}"


@dataclass(frozen=True)
class CompareResult:
    """Two finished runs on the same videos side by side.

    Attributes:
        a: One run.
        b: The other.
        difference: By figure, b - a.
        unit: What the bootstrap drew: ``video`` or ``window``.
        units: How many there were.
        frames_left_out: Frames after the last whole window, which are in no interval.
        samples: Draws.
    """

    a: EvalResult
    b: EvalResult
    difference: dict[str, Difference]
    unit: str
    units: int
    frames_left_out: int
    samples: int

    def notes(self) -> list[str]:
        """What is to be said of the intervals, for people."""
        names_by_reason: dict[str | None, list[str]] = {}
        for name, difference in self.difference.items():
            if difference.method == "percentile":
                names_by_reason.setdefault(difference.why, []).append(FIGURES[name])
        notes = [f"plain percentiles for {', '.join(names)} ({why})" for why, names in names_by_reason.items()]
        if self.frames_left_out:
            notes.append(f"the last {self.frames_left_out} frames fill no window of {WINDOW} and are in no interval")
        return notes

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON holds it."""
        return asdict(self)
