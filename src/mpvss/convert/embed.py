"""Write the ONNX graphs of the embedded model: ``python -m mpvss.convert.embed [NAME]``.

They are beside the weights in assets/ and hold none of their own: ``key.onnx`` reads those of the segmentor,
``motion.onnx`` those of a motion module, from the ``model.safetensors`` that torch loads too.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from mpvss.convert.export import (
    TRIAL_SIZES,
    describe,
    key_network,
    load_for_export,
    motion_network,
    onnx_save,
    require_exporter,
    trace_motion,
    trace_segmentor,
)
from mpvss.convert.graph import point_to_weights, weights_of
from mpvss.motion.propagators import LEARNED
from mpvss.segmentors import EMBEDDED, embedded_folder
from mpvss.segmentors.onnx import EXPORT_NAME, KEY_NAME, MOTION_NAME

_WEIGHTS = "model.safetensors"


def embed(name: str, out: Path) -> list[Path]:
    """Write the graphs of an embedded model, and what describes them.

    Args:
        name: The model.
        out: Takes ``NAME/key.onnx``, ``NAME/export.json``, and ``NAME-query/motion.onnx`` and the like.

    Returns:
        The files.

    Raises:
        ModelError: A package is missing, or torch cannot export a network.
    """
    require_exporter()
    folder = embedded_folder(name)
    assert folder is not None
    segmenter = load_for_export(name, None)
    size = TRIAL_SIZES[0]
    graph = trace_segmentor(segmenter, size, fixed=False, weights_outside=True)
    point_to_weights(graph, weights_of(key_network(segmenter, size)), folder / _WEIGHTS)
    written = [out / name / KEY_NAME, out / name / EXPORT_NAME]
    written[0].parent.mkdir(parents=True, exist_ok=True)
    onnx_save(graph, written[0])
    written[1].write_text(replace(describe(segmenter, None), max_difference={}).to_json(), encoding="utf-8")
    for motion in LEARNED:
        beside = folder.with_name(f"{name}-{motion}")
        if beside.is_dir():
            segmenter = segmenter.with_options(propagator=motion)  # type: ignore[arg-type]
            graph = trace_motion(segmenter, size, fixed=False, weights_outside=True)
            point_to_weights(graph, weights_of(motion_network(segmenter)), beside / _WEIGHTS)
            written.append(out / beside.name / MOTION_NAME)
            written[-1].parent.mkdir(parents=True, exist_ok=True)
            onnx_save(graph, written[-1])
    return written


def main() -> None:
    """Read the arguments and do what they say."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="?", default=EMBEDDED[0], choices=EMBEDDED)
    parser.add_argument("--out", type=Path, help="where NAME/ and NAME-query/ are; default: the package's assets")
    chosen = parser.parse_args()
    folder = embedded_folder(chosen.name)
    assert folder is not None
    for path in embed(chosen.name, chosen.out or folder.parent):
        print(f"{path}  {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
