"""A run on disk: what it scores, and a line for each finished video."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypedDict

from mpvss._files import output_errors, write_json
from mpvss._validate import convert, parse_json, read_json, shown
from mpvss.errors import DataError, OutputError
from mpvss.evaluation.results import EvalResult
from mpvss.evaluation.scores import CONSISTENCIES, METRICS, Line, check_line, known
from mpvss.options import EvalOptions

SCHEMA = 1


class _Options(TypedDict):
    data: str
    split: str | None
    model: str
    propagator: str
    motion: str
    direction: str
    interval: int | None
    cuts: bool
    oracle: bool
    predictions: str | None


class _Header(TypedDict):
    protocol: str
    classes: list[str]
    clips: int
    options: _Options


class RunDirectory:
    """A run on disk: what it scores, and a line for each finished video."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines = path / "videos.jsonl"

    def begin(self, header: Mapping[str, Any], *, restart: bool = False) -> set[str]:
        """Make the directory, or take it up again; return the names of the videos that are finished.

        Args:
            header: What is scored.
            restart: Whether the lines of a finished run are deleted; those of one that was killed never are.

        Raises:
            OutputError: The directory holds a run with other options, or cannot be written.
            DataError: It is damaged.
        """
        with output_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            if not (self.path / "run.json").exists():
                write_json(self.path / "run.json", header)
            self._check_same(header)
            if restart and (self.path / "result.json").exists():
                self._lines.unlink(missing_ok=True)
                (self.path / "result.json").unlink()
            self._cut_torn_line()
        return {line["clip"] for line in self.lines()}

    def _check_same(self, header: Mapping[str, Any]) -> None:
        former = self.header()
        # Runs of the version before have fewer options.
        old, new = {**EvalOptions(data="").to_dict(), **former["options"]}, header["options"]
        changed = [f"{name} {old.get(name)!r}, now {new[name]!r}" for name in new if old.get(name) != new[name]]
        if not changed and {**former, "options": old} != header:
            changed = ["another data set in the same place"]
        if changed:
            raise OutputError(
                f"{self.path}: holds a run with other options ({'; '.join(changed)}); choose another directory"
            )

    def _cut_torn_line(self) -> None:
        """Drop what a killed run began to write."""
        if not self._lines.exists():
            return
        with self._lines.open("rb+") as file:
            content = file.read()
            file.truncate(content.rfind(b"\n") + 1)

    def header(self) -> dict[str, Any]:
        """What is scored.

        Raises:
            DataError: There is no run in this directory.
        """
        path = self.path / "run.json"
        try:
            header: dict[str, Any] = convert(read_json(path), dict, what="run.json")
            if header.get("schema") != SCHEMA:
                raise DataError(f"{path}: expected schema {SCHEMA} of a run, got {shown(header.get('schema'))}")
            convert(header, _Header, what="run.json")
        except (OSError, ValueError) as error:
            raise DataError(
                f"{self.path}: expected a run directory, as mpvss eval --out writes it ({error})"
            ) from error
        return header

    def lines(self) -> Iterator[Line]:
        """The finished videos, in order, one in memory at a time.

        Raises:
            DataError: A line is damaged.
        """
        if not self._lines.exists():
            return
        classes = len(self.header()["classes"])
        with self._lines.open("rb") as file:
            for number, text in enumerate(file, 1):
                try:
                    line = check_line(parse_json(text), classes)
                except ValueError as error:
                    raise DataError(
                        f"{self._lines}: line {number} is damaged ({error}); delete the run and start again"
                    ) from error
                yield line

    def append(self, line: Line) -> None:
        """Add a finished video, and see it on the disk.

        Raises:
            OutputError: The disk is full, for example.
        """
        with output_errors(self._lines), self._lines.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def result(self, *, partial: bool = False) -> EvalResult:
        """The figures of a finished run, or of its finished videos.

        Raises:
            DataError: It is not finished, or has not one video that is.
        """
        header, totals = self.header(), _Totals()
        for line in self.lines():
            try:
                totals.add(line)
            except ValueError as error:
                raise DataError(f"{self._lines}: {error}; delete the run and start again") from error
        if not totals.videos or (not partial and totals.videos != header["clips"]):
            raise DataError(
                f"{self.path}: {totals.videos} of {header['clips']} videos are scored; "
                "run mpvss eval again with the same options"
            )
        return totals.result(header)


class _Totals:
    """Sums over the videos of a run; ``None`` where one of them is unknown."""

    def __init__(self) -> None:
        self.metrics: dict[str, Any] = {}
        self.seconds: dict[str, float] = {}
        self.videos = self.frames = 0
        self.counts: dict[str, float | None] = {"key_frames": 0, "gmac": 0.0, "classical_flows": 0}

    def add(self, line: Line) -> None:
        """Add a video.

        Raises:
            ValueError: Its metrics have other settings than those before.
        """
        for name, state in line["metrics"].items():
            metric = METRICS[name].from_state(state)
            if name in self.metrics:
                self.metrics[name].merge(metric)
            else:
                self.metrics[name] = metric
        for stage, spent in line["seconds"].items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + spent
        self.videos += 1
        self.frames += line["frames"]
        for name, total in self.counts.items():
            value: Any = line.get(name)
            self.counts[name] = None if total is None or value is None else total + value

    def result(self, header: Mapping[str, Any]) -> EvalResult:
        """The figures of all videos together."""
        confusion, by_distance = self.metrics["confusion"], self.metrics.get("by_distance")
        miou = confusion.miou
        if header["protocol"] == "cityscapes" and by_distance is not None:
            miou = by_distance.mean
        names = (*CONSISTENCIES, "flicker", "j")
        iou = zip(header["classes"], confusion.iou.tolist(), strict=True)
        key_frames, gmac, flows = self.counts.values()
        return EvalResult(
            miou=known(miou),
            wiou=known(confusion.wiou),
            **{name: known(self.metrics[name].value) if name in self.metrics else None for name in names},
            miou_by_distance=None if by_distance is None else [known(value) for value in by_distance.miou],
            iou={name: known(value) for name, value in iou},
            videos=self.videos,
            frames=self.frames,
            key_frames=None if key_frames is None else int(key_frames),
            gmac_per_frame=None if gmac is None else gmac / self.frames,
            classical_flows_per_frame=None if flows is None else flows / self.frames,
            seconds=self.seconds,
            options=header["options"],
        )
