"""``mpvss models``, ``inspect``, ``doctor``, ``cost``, ``export`` and ``convert``."""

import json
from pathlib import Path
from typing import Annotated

import typer

from mpvss._extras import require
from mpvss._validate import printable
from mpvss.cli._console import print_json, print_table, set_up
from mpvss.cli._options import expand, flags_named
from mpvss.cli.app import app
from mpvss.errors import ConfigError, DataError
from mpvss.options import LARGEST_COUNT, ConsoleOptions, StreamOptions, parse_size

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


@app.command()
def models(as_json: Json = False) -> None:
    """List the embedded model and recommended ones from the hub."""
    from mpvss._zoo import list_models

    known = list_models()
    if as_json:
        print_json({"models": known})
        return
    rows = [(m["id"], str(m["classes"]), m["data"], f"{m['megabytes']:.0f} MB", m["licence"]) for m in known]
    print_table(("model", "classes", "data", "size", "licence"), rows)


@app.command()
@expand
def inspect(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Anything segment takes.")],
    options: StreamOptions,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Compare NAME.json and NAME.labels.mkv, frame by frame, with their checksums."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Describe a video without segmenting it, or verify labels that were written."""
    if verify:
        _verify(source, as_json)
        return
    from mpvss.types import shown_size
    from mpvss.video import parse_rate, probe

    info = probe(source, fps=parse_rate(options.fps), video_stream=options.video_stream)
    if as_json:
        print_json(info.to_dict())
        return
    assumed = " (assumed: --fps sets it)" if info.assumed_rate else ""
    ratio = info.sample_aspect_ratio
    readable = {
        "size": shown_size((info.height, info.width)),
        "time_base": f"{info.time_base} s",
        "frame_rate": "unknown" if info.frame_rate is None else f"{float(info.frame_rate):.6g} a second{assumed}",
        "start": f"{float(info.start):.6g} s on the source's own clock",
        "assumed_rate": "yes" if info.assumed_rate else "no",
        "video_streams": "; ".join(f"{number}: {line}" for number, line in enumerate(info.video_streams)) or "none",
        "duration": "unknown" if info.duration is None else f"{float(info.duration):.6g} s",
        "frames": "unknown" if info.frames is None else str(info.frames),
        "has_audio": "yes" if info.has_audio else "no",
        "live": "yes" if info.live else "no",
        "sample_aspect_ratio": f"{ratio.numerator}:{ratio.denominator}",
    }
    for name, value in info.to_dict().items():
        print(f"{name:>19}  {printable(str(readable.get(name, value)))}")


def _verify(path: str, as_json: bool) -> None:
    from mpvss.outputs import LabelReader

    if not path.endswith((".json", ".mkv")):
        raise DataError(f"expected NAME.json or NAME.labels.mkv to verify, got {path}: name one of these two")
    reader = LabelReader(path)
    frames = sum(1 for _ in reader)
    if as_json:
        print(json.dumps({"source": path, "frames": frames, "verified": reader.verified}))
    elif reader.verified:
        print(f"{printable(path)}: verified, {frames} frames have the labels that were written")
    else:
        print(f"{printable(path)}: unverified, {frames} frames can be read, but there are no checksums to compare with")


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check the installation: versions, devices, codecs, and packages known to break it."""
    from mpvss.cli.doctor import examine

    report = examine()
    if as_json:
        print_json(report)
    else:
        for group, values in report.items():
            if isinstance(values, dict):
                for name, value in values.items():
                    print(f"{group:>9}  {name}: {value}")
        for problem in report["problems"] or ["none found"]:
            print(f"{'problems':>9}  {problem}")
    if report["problems"]:
        raise typer.Exit(1)


@app.command()
def cost(
    arch: Annotated[str, typer.Option(help="r50, r101, swin-t, swin-s, swin-b or swin-l.")],
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH in pixels.")] = "480x853",
    interval: Annotated[int, typer.Option(min=1, max=LARGEST_COUNT, help="Frames from one key frame to the next.")] = 5,
    classes: Annotated[int, typer.Option(min=1, max=65535, help="Classes: 124 for VSPW, 19 for Cityscapes.")] = 124,
    as_json: Json = False,
) -> None:
    """Count parameters and multiply-adds of one of the paper's models, as the paper counts them."""
    require("torch", "counting needs")
    with flags_named():
        height, width = parse_size(size)
        from mpvss.convert.cost import cost as count

        counts = count(arch, (height, width), interval, classes).to_dict()
    if as_json:
        print_json(counts)
        return
    for group, values in counts.items():
        for name, value in values.items():
            print(f"{group:>9}  {name:10} {value:8.2f}")


@app.command()
@expand
def export(
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory to make; --model takes it.")],
    console: ConsoleOptions,
    size: Annotated[
        str | None, typer.Option(help="HEIGHTxWIDTH of the only images that the networks will see. Default: any.")
    ] = None,
    model: Annotated[
        str, typer.Option(help="compact, a hub id such as owner/name, a directory, or a motion module's directory.")
    ] = "compact",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist.")] = False,
) -> None:
    """Export a model for ONNX Runtime, without torch; kept only if it gives the labels that torch gives."""
    set_up(console)
    with flags_named():
        parsed = None if size is None else parse_size(size)
    require("onnx", "exporting needs")
    from mpvss.convert.export import export as export_model

    summary = export_model(model, parsed, out, overwrite=overwrite).to_dict()
    if console.as_json:
        print_json(summary)
        return
    for name, megabytes in summary["files"].items():
        print(f"{summary['out']}/{name}  {megabytes:.1f} MB")
    differences = ", ".join(f"{name} {value:.1e}" for name, value in summary["max_difference"].items())
    ties = f"labels equal, ties at {100 * summary['ties']:.3g} % of pixels"
    print(f"largest difference from torch: {differences}; {ties}")


@app.command()
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint of the published code, a .pth file.")],
    directory: Annotated[Path | None, typer.Argument(metavar="OUT", help="The same as --out.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Directory to make.")] = None,
    classes: Annotated[Path | None, typer.Option(help="Text file with one class name a line, in id order.")] = None,
) -> None:
    """Turn a checkpoint of the published code into a directory that --model takes."""
    require("torch", "converting needs")
    from mpvss.convert.checkpoint import convert_reference

    target = out or directory
    if target is None or (out is not None and directory is not None):
        raise ConfigError("expected one directory to make, as --out DIRECTORY")
    names = None
    if classes is not None:
        try:
            names = [line.strip() for line in classes.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{classes}: cannot read class names: {error}") from error
    with flags_named():
        convert_reference(checkpoint, target, names)
    print(target)
