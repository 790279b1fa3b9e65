"""``mpvss train`` and ``mpvss distill``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mpvss._extras import require
from mpvss._validate import printable
from mpvss.cli._console import print_json, set_up
from mpvss.cli._options import expand, flags_named
from mpvss.cli.app import app
from mpvss.options import ConsoleOptions, DistillOptions

if TYPE_CHECKING:
    from mpvss.training.loop import TrainSummary


@app.command()
@expand
def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="What to train, on what, and how.")],
    console: ConsoleOptions,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Replace a value, as in optim.lr=1e-4.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
) -> None:
    """Train a segmentor per frame, or a motion module behind one, from a configuration file."""
    set_up(console)
    require("train", "training needs")
    from mpvss.training.config import load_config
    from mpvss.training.loop import train as run_training

    with flags_named():
        settings = load_config(config, overrides or ())
    _print_training(run_training(settings, resume=resume, quiet=console.quiet), console.as_json)


@app.command()
@expand
def distill(
    videos: Annotated[list[str], typer.Argument(metavar="VIDEO", help="Videos, image folders or globs.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory of the run, which --model takes afterwards.")],
    options: DistillOptions,
    console: ConsoleOptions,
) -> None:
    """Train a motion module on videos without labels; the segmentor itself is the teacher."""
    set_up(console)
    require("train", "training needs")
    from mpvss.training.distill import distill as run_distillation

    with flags_named():
        summary = run_distillation(videos, out, options, quiet=console.quiet)
    _print_training(summary, console.as_json)


def _print_training(summary: "TrainSummary", as_json: bool) -> None:
    values = summary.to_dict()
    if as_json:
        print_json(values)
        return
    print(f"{printable(values['out'])}: {values['steps']} steps, {values['seconds']:.0f} s")
    for name in ("miou", "oracle_miou"):
        if values.get(name) is not None:
            print(f"  {name:12} {values[name]:.4f}")
