"""``mpvss eval``, ``mpvss compare`` and ``mpvss bench``."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mpvss._validate import printable
from mpvss.cli._console import interruptible, log, print_json, print_table, set_up
from mpvss.cli._options import expand, flags_named
from mpvss.cli.app import app
from mpvss.errors import ConfigError
from mpvss.options import BenchOptions, ConsoleOptions, EvalOptions
from mpvss.progress import progress

if TYPE_CHECKING:
    from mpvss.evaluation.bench_results import BenchResult


@app.command(name="eval")
@expand
def evaluate(
    options: EvalOptions,
    console: ConsoleOptions,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Directory of the run: resumed, reported on and compared.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write a page with charts and the worst frames here.")] = None,
    baseline: Annotated[Path | None, typer.Option(help="Directory of a run that the report compares with.")] = None,
) -> None:
    """Score a model, a propagator or label files on a data set."""
    set_up(console)
    from mpvss.evaluation.charts import require_matplotlib
    from mpvss.evaluation.report import write_report
    from mpvss.evaluation.run import evaluate as score

    if baseline is not None and report is None:
        raise ConfigError("--baseline is for the report: give --report too, or use mpvss compare")
    if report is not None:
        require_matplotlib()

    def say(video: str, done: int, total: int) -> None:
        log.info("%d/%d %s", done, total, video)

    with progress("eval", None, quiet=console.quiet) as advance, TemporaryDirectory(prefix="mpvss-") as temporary:
        directory = out or report or Path(temporary)
        step = interruptible(advance)
        with flags_named():
            result = score(options, directory, on_video=say, on_frame=lambda frames: step(total=frames))
        if report is not None:
            log.info("report: %s", write_report(directory, report, baseline=baseline))
    if console.as_json:
        print_json(result.to_dict())
    else:
        _print_result(result.to_dict())


def _print_result(result: dict[str, Any]) -> None:
    from mpvss.evaluation.results import FIGURES

    print(f"videos {result['videos']}, frames {result['frames']}, key frames {result['key_frames'] or 'unknown'}")
    rows = [(words, f"{result[name]:.4f}") for name, words in FIGURES.items() if result.get(name) is not None]
    rows += [(f"  {name}", f"{value:.4f}") for name, value in result["iou"].items() if value is not None]
    if result["miou_by_distance"]:
        rows += [
            (f"mIoU, distance {distance}", "-" if value is None else f"{value:.4f}")
            for distance, value in enumerate(result["miou_by_distance"])
        ]
    print_table(("figure", "value"), rows)
    seconds = result["seconds"]
    stages = ", ".join(f"{name} {value:.1f}" for name, value in seconds.items() if name != "total")
    print(f"seconds: {stages}; total {seconds['total']:.1f}")


@app.command()
def compare(
    run_a: Annotated[Path, typer.Argument(help="Directory of a run, as eval --out writes it.")],
    run_b: Annotated[Path, typer.Argument(help="Another run on the same videos.")],
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of the bootstrap's draws.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Put two evaluations side by side, with 95 % intervals of their differences."""
    from mpvss.evaluation.compare import compare as compare_runs
    from mpvss.evaluation.results import FIGURES

    result = compare_runs(run_a, run_b, seed=seed)
    if as_json:
        print_json(result.to_dict())
        return
    figures_a, figures_b = result.a.figures(), result.b.figures()
    rows = []
    for name in [name for name in figures_a if name in figures_b]:
        a, b = figures_a[name], figures_b[name]
        interval = result.difference[name].interval if name in result.difference else ""
        rows.append((FIGURES[name], f"{a:.4f}", f"{b:.4f}", f"{b - a:+.4f}", interval))
    print_table(("", "A", "B", "B - A", "95 % interval"), rows)
    unit = "videos" if result.unit == "video" else "windows of frames"
    print("; ".join([f"paired bootstrap: {result.samples} draws of {result.units} {unit}", *result.notes()]))


@app.command()
@expand
def bench(
    options: BenchOptions,
    console: ConsoleOptions,
    video: Annotated[
        str | None,
        typer.Argument(metavar="[VIDEO]", help="Your clip: per frame against k = 5, 10, 20. Without it: the library."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Directory for BENCH.json and BENCH.png. Of a VIDEO: out.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw the figures.")] = None,
) -> None:
    """Measure what propagation saves, in one run: on your VIDEO, or against the library on every frame."""
    set_up(console)
    from mpvss.evaluation.charts import require_matplotlib

    if plot is not None or (out is not None and video is None):
        require_matplotlib()
    if video is not None:
        _prove(video, options, console, out or Path("out"), plot)
        return
    from mpvss.evaluation import benchmark

    with flags_named():
        result = benchmark.bench(options)
    if out is not None:
        benchmark.save(result, out)
    if plot is not None:
        benchmark.plot(result, plot)
    if console.as_json:
        print_json(result.to_dict())
    else:
        _print_bench(result)


# Options of bench that go with the comparison with the library only.
_NOT_OF_A_VIDEO = ("arch", "classes", "size", "source")


def _prove(video: str, options: BenchOptions, console: ConsoleOptions, out: Path, plot: Path | None) -> None:
    from mpvss.evaluation import charts, proof

    wrong = next((name for name in _NOT_OF_A_VIDEO if getattr(options, name) is not None), None)
    if wrong is not None:
        raise ConfigError(f"--{wrong} goes without a VIDEO, got {video}: leave one of the two out")
    with flags_named():
        result = proof.prove(video, options)
    paths = proof.save(result, out, picture=charts.installed())
    if plot is not None:
        proof.plot(result, plot)
    if console.as_json:
        print_json(result.to_dict())
        return
    print(printable(result.title))
    print_table(proof.HEAD, proof.table(result))
    if not result.whole:
        print("the video goes on: --frames takes more of it")
    if len(paths) == 1:
        log.warning("no picture: it needs matplotlib, pip install 'mpvss[eval]'")
    print("written:", printable(" ".join(map(str, paths))))


def _print_bench(result: "BenchResult") -> None:
    from rich.console import Console

    values = result.to_dict()
    console = Console(highlight=False, markup=False)
    console.print(_milliseconds_table(values))
    console.print(_figures_table(values))
    for name, ratio in (values["all_active"] or {"ratios": {}})["ratios"].items():
        if ratio is not None:
            console.print(f"with every query and class active: {name} {ratio:.2f}")
    for line in _other_lines(values):
        console.print(line, soft_wrap=True)


def _other_lines(values: dict[str, Any]) -> Iterator[str]:
    """What stands below the tables."""
    rate = values["sgemm"]["gmac_per_second"]
    if rate is not None:
        yield f"sgemm: {rate:.1f} GMAC/s; share of it: {_listed(values['sgemm']['share'])}"
        yield f"GMAC: {_listed(values['gmac'])}"
    if values["classical_flow"] is not None:
        flows, spent = (values["classical_flow"][name] for name in ("flows_per_frame", "seconds"))
        yield f"classical flow, which is no GMAC: {flows:.2f} a frame, {1000 * spent:.1f} ms each"
    measured = [(values["options"]["size"], values["overlay"], values["peak_mib"])]
    measured += [(each["size"], each["overlay"], each["peak_mib"]) for each in values["sizes"]]
    for size, overlay, peak in measured:
        if overlay is not None:
            yield (
                f"our whole run at {size[1]}x{size[0]}: overlay {overlay['bytes'] / 1e6:.2f} MB, PSNR of luma "
                f"{overlay['psnr_luma']:.1f} dB, of RGB {overlay['psnr']:.1f} dB (encoding alone "
                f"{overlay['floor_bytes'] / 1e6:.2f} MB), peak memory {peak or 0:.0f} MiB"
            )
    if values["note"]:
        yield values["note"]
    machine = values["machine"]
    torch = f"torch {machine['torch']}" if machine.get("torch") else "no torch"
    yield (
        f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads, {torch}, "
        f"commit {machine['commit'] or 'unknown'}"
    )


def _listed(numbers: dict[str, float | None]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in numbers.items() if value is not None)


def _milliseconds_table(values: dict[str, Any]) -> Any:
    from rich import box
    from rich.table import Table

    seconds, run, options = values["seconds"], values["seconds"]["run"], values["options"]
    between = f"{options['propagator']} {options['motion']} {options['direction']}"
    accuracy = values["accuracy"] or {}
    table = Table(box=box.SIMPLE, title=f"{options['arch'] or options['model']}: milliseconds a frame")
    for head in ("", "segmentation", "whole run", *(["mIoU", "flicker"] if accuracy else [])):
        table.add_column(head, justify="right" if head else "left")
    rows = (
        ("library, every frame", seconds["library_frame"], run["library"], "library"),
        ("  of which decoding", seconds["library_decode"], None, ""),
        ("SegFormer-B0, every frame", None, run["segformer_b0"], ""),
        ("ours, every frame", seconds["ours_frame"], run["ours_per_frame"], "ours_per_frame"),
        (f"ours, interval {options['interval']} ({between})", seconds["ours_interval"], run["ours"], "ours"),
        ("  a key frame", seconds["ours_key"], None, ""),
        ("  a frame between", seconds["ours_non_key"], None, ""),
        *((f"  {stage}, mean of all", value, None, "") for stage, value in seconds["stages"].items()),
        ("decoding and encoding alone", None, run["floor"], ""),
    )
    for name, alone, whole, scored in rows:
        cells = ["-" if value is None else f"{1000 * value:.1f}" for value in (alone, whole)]
        scores = accuracy.get(scored, {"miou": None, "flicker": None}) if accuracy else {}
        cells += ["" if scores[figure] is None else f"{scores[figure]:.4f}" for figure in ("miou", "flicker") if scores]
        table.add_row(name, *cells)
    return table


def _figures_table(values: dict[str, Any]) -> Any:
    from rich import box
    from rich.table import Table

    table = Table("figure", "", box=box.SIMPLE)
    for name, value in values["figures"].items():
        table.add_row(name, f"{value:.2f}")
    return table
