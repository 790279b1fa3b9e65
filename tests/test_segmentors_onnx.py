"""Laws of the export: the networks in ONNX Runtime say what torch says, and what cannot be used is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import ColourSegmentor, moving_frames
from mpvss import cli
from mpvss.convert import export as onnx_export
from mpvss.convert.export import export
from mpvss.errors import ModelError, OutputError
from mpvss.evaluation.run import evaluate
from mpvss.motion import PixelFlow, QueryFlow
from mpvss.motion.propagator import Propagator
from mpvss.options import EvalOptions
from mpvss.segmenter import VideoSegmenter
from mpvss.segmentors import Segmentor
from mpvss.segmentors import onnx as onnx_backend
from mpvss.segmentors.onnx import ExportInfo, OnnxFlow, load_exported
from mpvss.types import Geometry
from test_evaluation_benchmark import tiny_model
from test_motion_network import TINY

SIZE = (60, 90)
QUERIES = 5


def checkpoint(folder, module):
    """A tiny segmentor, and a motion module beside it that does not say zero."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    module.segmentor = "segmentor"
    module.save_pretrained(folder)
    tiny_model(3, QUERIES, seed=2).save_pretrained(folder / "segmentor")
    (folder / "segmentor" / "preprocessor_config.json").write_text(json.dumps({"size": {"shortest_edge": 48}}))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    config = replace(TINY, num_queries=QUERIES, query_width=32, layers=2)
    return checkpoint(tmp_path_factory.mktemp("models") / "query", QueryFlow(config))


@pytest.fixture(scope="module")
def exported(model):
    found = export(str(model), SIZE, model.parent / "exported").to_dict()
    assert set(found["files"]) == {"export.json", "key.onnx", "motion.onnx"}
    return model.parent / "exported"


@pytest.fixture(scope="module")
def both(model, exported):
    options = {"propagator": "query", "motion": "direct", "interval": 3, "cuts": False}
    return [
        VideoSegmenter.from_pretrained(str(model), short_side=60, device="cpu", **options),
        VideoSegmenter.from_pretrained(exported, backend="onnx", **options),
    ]


def pictures(count=2, size=SIZE):
    return torch.stack([torch.from_numpy(frame.rgb).permute(2, 0, 1) for frame in moving_frames(count, size)])


def test_they_are_a_segmentor_and_a_propagator(both):
    _, ours = both
    assert isinstance(ours.segmentor, Segmentor)
    assert isinstance(ours.propagator, Propagator)
    assert isinstance(ours.propagator, OnnxFlow)
    assert ours.propagator.name == "query"
    assert ours.segmentor.class_names == both[0].segmentor.class_names
    assert ours.rule == replace(both[0].rule, fixed=True)


def test_logits_and_queries_are_those_of_torch(both):
    expected, found = (segmenter.segmentor(pictures()) for segmenter in both)
    for name in ("class_logits", "mask_logits", "queries"):
        ours, torchs = getattr(found, name), getattr(expected, name)
        assert float((ours - torchs).abs().max()) < 1e-4 * float(torchs.abs().max())
    assert expected.mask_logits[0].std() > 0.1
    assert not torch.allclose(expected.mask_logits[0], expected.mask_logits[1], atol=1e-3)


@pytest.mark.parametrize("active", [None, [0], [4, 1], [3, 0, 2]])
@pytest.mark.parametrize("others", [1, 2])
def test_flows_are_those_of_torch(both, active, others):
    images = pictures(4)
    queries = both[0].segmentor(images[:1]).queries
    wanted = None if active is None else torch.tensor(active)
    flows = [
        segmenter.propagator.estimate_flow(images[2:], images[:others], queries, (64, 96), (16, 24), wanted)
        for segmenter in both
    ]
    assert flows[1].shape == (2, QUERIES if active is None else len(active), 2, 16, 24)
    assert torch.allclose(*flows, atol=1e-4)
    assert flows[0].abs().max() > 0.01


def test_a_video_gets_the_same_labels(both):
    frames = moving_frames(7, SIZE)
    expected, found = (list(segmenter.stream(frames, direction="forward")) for segmenter in both)
    assert [result.is_key for result in found] == [result.is_key for result in expected]
    different = np.mean([np.mean(a.labels != b.labels) for a, b in zip(expected, found, strict=True)])
    assert different < 1e-3  # ties
    assert len(np.unique([result.labels for result in expected])) > 1


def test_the_export_says_what_it_is_and_how_exact(exported):
    info = ExportInfo.read(exported)
    assert (info.size, info.motion, info.num_queries) == (SIZE, "query", QUERIES)
    assert set(info.max_difference) == {"class_logits", "mask_logits", "queries", "flow"}
    assert max(info.max_difference.values()) < 1e-3


def test_other_propagators_go_with_an_exported_segmentor(exported):
    segmenter = VideoSegmenter.from_pretrained(exported, backend="onnx", propagator="hold")
    assert segmenter.propagator.name == "hold"
    assert VideoSegmenter.from_pretrained(exported, backend="onnx", propagator="none").propagator is None
    with pytest.raises(ModelError, match="propagator flow needs a motion module"):
        VideoSegmenter.from_pretrained(exported, backend="onnx", propagator="flow")


@pytest.mark.soak
def test_one_flow_for_all_is_exported_too(tmp_path):
    folder = checkpoint(tmp_path / "flow", PixelFlow(TINY))
    export(str(folder), SIZE, tmp_path / "exported")
    images = pictures()
    flows = [
        VideoSegmenter.from_pretrained(
            place, propagator="flow", backend=backend, device="cpu"
        ).propagator.estimate_flow(images[1:], images[:1], None, (64, 96), (16, 24))
        for place, backend in ((folder, "torch"), (tmp_path / "exported", "onnx"))
    ]
    assert flows[1].shape == (1, 1, 2, 16, 24)
    assert torch.allclose(*flows, atol=1e-4)


@pytest.mark.soak
def test_the_embedded_model_and_mask2former_are_exported(tmp_path):
    from test_segmentors import _model

    assert export("compact", SIZE, tmp_path / "compact").max_difference["mask_logits"] < 1e-2
    _model("mask2former").save_pretrained(tmp_path / "m")
    assert export(str(tmp_path / "m"), SIZE, tmp_path / "m2f").max_difference["mask_logits"] < 1e-3


# --- refusals -----------------------------------------------------------------------------------------------------


def test_a_picture_of_another_size(both):
    _, ours = both
    frame = moving_frames(1, (60, 80))[0]
    with pytest.raises(ModelError, match=r"exported for images of 90x60 .*got 80x60.*--size 60x80"):
        ours.session().push(frame)
    images = pictures(2, (60, 80))
    with pytest.raises(ModelError, match="exported for images of 90x60"):
        ours.propagator.estimate_flow(images[1:], images[:1], torch.zeros(1, QUERIES, 32), (64, 96), (16, 24))
    with pytest.raises(ModelError, match="takes images of 60 pixels only, got a shorter side of 48"):
        VideoSegmenter(ours.segmentor, None, short_side=48)


def test_a_query_flow_without_queries(both):
    images = pictures()
    with pytest.raises(ValueError, match="expects the key frame's queries, got none"):
        both[1].propagator.estimate_flow(images[1:], images[:1], None, (64, 96), (16, 24))


def test_networks_that_differ_from_torch_are_not_kept(model, monkeypatch, tmp_path):
    """What ONNX Runtime loads here has two classes the other way round."""

    class Wrong(ColourSegmentor):
        def __call__(self, images):
            found = torch_says(images)
            return replace(found, class_logits=found.class_logits[..., [1, 0, 2, 3]])

    torch_says = VideoSegmenter.from_pretrained(str(model / "segmentor"), propagator="none", short_side=60).segmentor
    monkeypatch.setattr(onnx_export, "_export", lambda *_: None)
    monkeypatch.setattr(onnx_export, "load_exported", lambda _: (Wrong(), None))
    with pytest.raises(ModelError, match=r"key.onnx: the exported network gives other labels than torch at .* %"):
        export(str(model / "segmentor"), SIZE, tmp_path / "exported")
    assert list(tmp_path.iterdir()) == []


def test_only_clear_pixels_must_be_equal():
    geometry = Geometry((32, 32), (32, 32), (32, 32))
    from mpvss.engine.state import WarpedPrediction

    classes = torch.tensor([[9.0, 0, 0], [0, 9.0, 0]])
    masks = torch.zeros(2, 8, 8)
    masks[0, :4] = 3.0
    tied = WarpedPrediction(classes, masks)
    turned = WarpedPrediction(classes, masks + torch.tensor([0.0, 1e-6])[:, None, None])
    assert onnx_export._require_equal_labels(tied, turned, geometry, "x") > 0.3
    with pytest.raises(ModelError, match="other labels than torch"):
        onnx_export._require_equal_labels(tied, WarpedPrediction(classes, masks.flip(0)), geometry, "x")
    with pytest.raises(ModelError, match="other labels than torch"):
        onnx_export._require_equal_labels(tied, WarpedPrediction(classes, masks + torch.nan), geometry, "x")


def test_a_network_that_torch_cannot_export(tmp_path):
    class Broken(torch.nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ModelError, match="torch cannot export this network to ONNX: "):
        onnx_export._export(Broken(), {"x": torch.ones(2)}, ("y",), tmp_path / "x.onnx")


def test_a_size_that_the_model_does_not_see(tmp_path):
    with pytest.raises(ModelError, match=r"compact sees images of 900x64 .* at .*: export it for that size"):
        export("compact", (64, 900), tmp_path / "out")


def test_an_output_that_exists(exported, model, tmp_path):
    with pytest.raises(OutputError, match="exists already; pass --overwrite"):
        export(str(model), SIZE, exported)
    (tmp_path / "mine").write_text("")
    with pytest.raises(OutputError, match="exists already"):  # not an export: never replaced
        export(str(model), SIZE, tmp_path, overwrite=True)


def test_missing_packages_are_named(model, tmp_path, monkeypatch, exported):
    monkeypatch.setattr(onnx_backend, "find_spec", lambda _: None)
    with pytest.raises(ModelError, match=r"onnxruntime, which is not installed: pip install 'mpvss\[onnx\]'"):
        load_exported(exported)
    monkeypatch.setattr(onnx_backend, "find_spec", lambda _: "there")
    monkeypatch.setattr("mpvss._extras.find_spec", lambda name: None if name == "onnxscript" else "there")
    with pytest.raises(
        ModelError, match=r"exporting needs onnxscript, which is not installed: pip install 'mpvss\[onnx\]'"
    ):
        export(str(model), SIZE, tmp_path / "out")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "export.json").unlink(), "expected a directory made by mpvss export.*export --model"),
        (lambda folder: (folder / "export.json").write_text("[]"), "not as this version of mpvss export writes it"),
        (
            lambda folder: (folder / "export.json").write_text('{"schema_version": 99}'),
            r"not as .*\(expected schema version 1, got 99\); export again",
        ),
        (lambda folder: (folder / "key.onnx").unlink(), "key.onnx: the network is missing; export again"),
        (lambda folder: (folder / "motion.onnx").write_bytes(b"?"), "motion.onnx: ONNX Runtime cannot load"),
    ],
)
def test_a_damaged_export(exported, tmp_path, damage, message):
    folder = tmp_path / "damaged"
    shutil.copytree(exported, folder)
    damage(folder)
    with pytest.raises(ModelError, match=message):
        load_exported(folder)


def test_backends_that_do_not_fit():
    with pytest.raises(ValueError, match=r"backend must be one of torch, onnx, got 'tensorrt'"):
        EvalOptions(data="davis:x", backend="tensorrt")
    with pytest.raises(ValueError, match=r"onnx runs on the CPU in float32, got cuda and float32"):
        VideoSegmenter.from_pretrained("x", backend="onnx", device="cuda")
    with pytest.raises(ValueError, match=r"onnx runs on the CPU in float32, got auto and bfloat16"):
        VideoSegmenter.from_pretrained("x", backend="onnx", dtype="bfloat16")


def test_an_export_is_no_model_for_torch(exported):
    with pytest.raises(ModelError, match="made by mpvss export: give --backend onnx"):
        VideoSegmenter.from_pretrained(exported)


# --- commands -----------------------------------------------------------------------------------------------------


def test_the_command_says_what_it_wrote(monkeypatch, capfd, tmp_path):
    found = {"out": "here", "files": {"key.onnx": 18.34}, "max_difference": {"flow": 1.5e-5}, "ties": 0.001}
    summary = onnx_export.ExportSummary(**found | {"out": Path("here")})
    asked = []
    monkeypatch.setattr(onnx_export, "export", lambda *given, **options: asked.append((given, options)) or summary)
    assert cli.run(["export", "--size", "48x64", "-o", str(tmp_path), "--overwrite"]) == 0
    assert asked == [(("compact", (48, 64), tmp_path), {"overwrite": True})]
    said = capfd.readouterr().out
    assert "here/key.onnx  18.3 MB" in said
    assert "flow 1.5e-05" in said
    assert cli.run(["export", "--size", "48x64", "-o", str(tmp_path), "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == found


def test_segment_takes_an_export(exported, tmp_path, capfd):
    from test_video_reader import write_video

    clip = write_video(tmp_path / "clip.mp4", [frame.rgb for frame in moving_frames(4, SIZE)])
    options = ["--model", str(exported), "--backend", "onnx", "--propagator", "query", "--interval", "2"]
    assert cli.run(["segment", str(clip), "-o", str(tmp_path / "out"), *options, "-q"]) == 0
    assert (tmp_path / "out" / "clip.labels.mkv").is_file()
    capfd.readouterr()
    assert cli.run(["segment", str(clip), "-o", str(tmp_path / "none"), "--backend", "onnx", "-q"]) == 2
    error = capfd.readouterr().err
    assert "compact: expected a directory made by mpvss export" in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(("propagator", "expected"), [("auto", "query"), ("query", "query"), ("hold", "hold")])
def test_auto_is_the_motion_module_of_the_export(exported, propagator, expected):
    segmenter = VideoSegmenter.from_pretrained(exported, backend="onnx", propagator=propagator)
    assert segmenter.propagator.name == expected
    assert isinstance(segmenter.propagator, OnnxFlow) == (expected == "query")


@pytest.mark.parametrize("oracle", [False, True])
@pytest.mark.parametrize("backend", ["onnx", "torch"])
def test_eval_takes_the_same_motion_module_as_segment(model, exported, tmp_path, backend, oracle):
    place = {"onnx": exported, "torch": model}[backend]
    root = tmp_path / "data"
    for frame in moving_frames(3, SIZE):
        for folder in ("images", "labels"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(frame.rgb).save(root / "images" / f"{frame.index}.png")
        Image.fromarray(np.zeros(SIZE, np.uint8)).save(root / "labels" / f"{frame.index}.png")
    names = VideoSegmenter.from_pretrained(place, backend=backend).segmentor.class_names
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in names))
    options = EvalOptions(data=f"folder:{root}", model=str(place), backend=backend, interval=2, oracle=oracle)
    result = evaluate(options, tmp_path / "run")
    assert result.options["propagator"] == "query"
    named = evaluate(replace(options, propagator="query"), tmp_path / "named")
    assert named.miou == result.miou
    assert evaluate(replace(options, propagator="dis"), tmp_path / "dis").options["propagator"] == "dis"
