"""``mpvss propagate``."""

from pathlib import Path
from typing import Annotated

import typer

from mpvss.cli._console import interruptible, print_json, print_run, set_up
from mpvss.cli._options import expand
from mpvss.cli.app import app
from mpvss.cli.segment import Out
from mpvss.options import ConsoleOptions, FillOptions
from mpvss.progress import progress


@app.command()
@expand
def propagate(
    video: Annotated[str, typer.Argument(help="A video file, or a folder or glob of images.")],
    masks: Annotated[
        Path, typer.Option(help="Folder of PNG masks named as the images, or by frame number counted from 0.")
    ],
    options: FillOptions,
    console: ConsoleOptions,
    out: Out = Path("out"),
) -> None:
    """Propagate masks drawn at some frames of a video to all the others."""
    set_up(console)
    from mpvss.annotate import Filler
    from mpvss.annotate import propagate as fill
    from mpvss.motion.propagators import make_propagator
    from mpvss.segmenter import VideoSegmenter
    from mpvss.video import probe

    info = probe(video)
    if options.model is None:
        propagator, segmentor = make_propagator(options.propagator), None
    else:
        segmenter = VideoSegmenter.from_pretrained(options.model, propagator=options.propagator, device=options.device)
        propagator, segmentor = segmenter.propagator, segmenter.segmentor
    assert propagator is not None
    filler = Filler(propagator, options.motion, options.direction, segmentor)
    with progress(info.name, info.frames, quiet=console.quiet) as advance:
        summary = fill(
            video,
            masks,
            out,
            filler,
            save=options.save,
            overwrite=options.overwrite,
            name=options.name,
            on_frame=interruptible(advance),
        )
    if console.as_json:
        print_json(summary.to_dict())
    else:
        print_run(summary)
