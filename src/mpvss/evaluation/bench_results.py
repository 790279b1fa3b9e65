"""What a comparison with the library returns: seconds, their ratios, and the figures by their names."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mpvss.types import shown_size

Numbers = dict[str, float | None]


@dataclass(frozen=True)
class BenchSeconds:
    """Seconds a frame, medians over the rounds; ``None`` for what was not measured.

    Attributes:
        library_frame: The library's model on every frame: ``library_forward`` and ``library_decode``.
        library_forward: Of which the network.
        library_decode: Of which decoding.
        ours_frame: Ours on every frame.
        ours_forward: Of which the network.
        ours_decode: Of which decoding.
        ours_interval: Mean over one interval.
        ours_key: Of its key frame.
        ours_non_key: Of a frame between.
        stages: ``ours_interval`` by stage; ``read`` and ``write`` from the whole run.
        run: Whole runs, from file to files; ``floor`` is decoding and encoding alone.
    """

    library_frame: float | None
    library_forward: float | None
    library_decode: float | None
    ours_frame: float
    ours_forward: float
    ours_decode: float
    ours_interval: float
    ours_key: float
    ours_non_key: float | None
    stages: Numbers
    run: Numbers


@dataclass(frozen=True)
class SizeResult:
    """Ours on a video of another size.

    Attributes:
        size: Height and width in pixels.
        seconds: A frame: ``ours_frame``, ``ours_interval``, and of whole runs ``run`` and ``floor``.
        overlay: ``bytes``, ``psnr`` and ``psnr_luma`` of the overlay, and ``floor_bytes``, those of the floor's file.
        peak_mib: Peak memory of a process that does nothing but the whole run.
    """

    size: tuple[int, int]
    seconds: Numbers
    overlay: dict[str, float] | None
    peak_mib: float | None


@dataclass(frozen=True)
class BenchResult:
    """What was measured; docs/benchmark.md explains every key.

    Attributes:
        seconds: Seconds a frame.
        gmac: Billions of multiply-adds of a key frame, of a frame between and on average, of networks on the padded
            image, all queries and classes decoded; ``None`` where no network runs in torch.
        classical_flow: Flows a frame without a network, which are not among them, and the ``seconds`` of one; ``None``
            where there are none.
        sgemm: ``gmac_per_second`` of the machine, and the ``share`` of it that each path reaches by that count.
        peak_mib: Peak memory of a process that does nothing but our whole run.
        overlay: Of our whole run, as in ``SizeResult``.
        sizes: Ours on videos of other sizes.
        accuracy: On a data set, where one was given: mIoU, VC8 and flicker of ``library``, ``ours_per_frame`` and
            ``ours``.
        ratios: Of the seconds.
        all_active: With random weights ``seconds`` and ``ratios`` for every query and class.
        note: What random weights stand for, or what is missing.
        options: What was measured.
        machine: Where.
    """

    seconds: BenchSeconds
    gmac: Numbers
    classical_flow: dict[str, float] | None
    sgemm: Mapping[str, Any]
    peak_mib: float | None
    overlay: dict[str, float] | None
    sizes: list[SizeResult]
    accuracy: dict[str, Numbers] | None
    ratios: Numbers
    all_active: dict[str, Numbers] | None
    note: str | None
    options: Mapping[str, Any]
    machine: Mapping[str, str | int | None]

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON holds it."""
        values = asdict(self)
        for size in values["sizes"]:
            size["size"] = list(size["size"])
        return {**values, "figures": self.figures()}

    def figures(self) -> dict[str, float]:
        """The ratios that were measured, by their names for people."""
        options, ratio = self.options, self.ratios
        model, size = options["arch"] or options["model"], _shown(options["size"])
        how = f"{options['propagator']} k={options['interval']} {options['direction']}"
        values = {
            f"library's {model} per frame / ours, {how}, {size}": ratio["library_per_frame_over_ours"],
            f"library's {model} per frame / our key frame, {size}": ratio["library_key_over_ours_key"],
            f"own per frame / propagated, {how}, {size}": ratio["ours_per_frame_over_ours"],
            f"whole run: library per frame / ours, {size}": ratio["library_run_over_ours"],
            f"whole run: SegFormer-B0 per frame / ours, {size}": ratio["segformer_b0_run_over_ours"],
            f"whole run: ours / decoding and encoding alone, {size}": ratio["ours_run_over_floor"],
        }
        for each in self.sizes:
            seconds, size = each.seconds, _shown(each.size)
            values[f"own per frame / propagated, {how}, {size}"] = _ratio(
                seconds["ours_frame"], seconds["ours_interval"]
            )
            values[f"whole run: ours / decoding and encoding alone, {size}"] = _ratio(seconds["run"], seconds["floor"])
        return {name: value for name, value in values.items() if value is not None}


def _shown(size: tuple[int, int] | list[int]) -> str:
    return shown_size(tuple(size)).partition(" ")[0]


def _ratio(above: float | None, below: float | None) -> float | None:
    return None if above is None or below is None else above / below


def ratios(seconds: Mapping[str, Any]) -> Numbers:
    """Return the ratios of a result's ``seconds``; ``None`` where one of the two was not measured."""
    frame, run = seconds.get("library_frame"), seconds.get("run", {})
    mean, whole = seconds.get("ours_interval"), run.get("ours")
    return {
        "library_per_frame_over_ours": _ratio(frame, mean),
        "library_key_over_ours_key": _ratio(frame, seconds.get("ours_key")),
        "non_key_share_of_library_frame": _ratio(seconds.get("ours_non_key"), frame),
        "ours_per_frame_over_ours": _ratio(seconds.get("ours_frame"), mean),
        "library_run_over_ours": _ratio(run.get("library"), whole),
        "ours_per_frame_run_over_ours": _ratio(run.get("ours_per_frame"), whole),
        "segformer_b0_run_over_ours": _ratio(run.get("segformer_b0"), whole),
        "ours_run_over_floor": _ratio(whole, run.get("floor")),
    }
