"""Laws of the export: the networks in ONNX Runtime say what torch says, and what cannot be used is refused."""

import json
import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import jaxtyping
import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from helpers import ColourSegmentor, moving_frames
from mpvss import _extras, cli, segmentors
from mpvss.convert import export as onnx_export
from mpvss.convert import graph as onnx_graph
from mpvss.convert.export import export
from mpvss.errors import ModelError, MpvssError, OutputError
from mpvss.evaluation.run import evaluate
from mpvss.motion import PixelFlow, QueryFlow
from mpvss.motion.propagator import Propagator
from mpvss.options import EvalOptions, ModelOptions
from mpvss.segmenter import VideoSegmenter
from mpvss.segmentors import PixelPrediction, Segmentor, choose_backend, embedded_folder, require_torch
from mpvss.segmentors import onnx as onnx_backend
from mpvss.segmentors.onnx import MOTION_RULE, ExportInfo, OnnxFlow, choose_provider, load_exported, open_session
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


@contextmanager
def unchecked():
    """Without the checks of shapes in signatures, which tie the sizes that an export for any size leaves free."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    config = replace(TINY, num_queries=QUERIES, query_width=32, layers=2)
    return checkpoint(tmp_path_factory.mktemp("models") / "query", QueryFlow(config))


@pytest.fixture(scope="module")
def exported(model):
    with unchecked():
        found = export(str(model), None, model.parent / "exported").to_dict()
    assert set(found["files"]) == {"export.json", "key.onnx", "motion.onnx"}
    return model.parent / "exported"


@pytest.fixture(scope="module")
def both(model, exported):
    options = {"propagator": "query", "motion": "direct", "interval": 3, "cuts": False, "short_side": 60}
    return [VideoSegmenter.from_pretrained(path, device="cpu", **options) for path in (model, exported)]


def pictures(count=2, size=SIZE):
    return np.stack([frame.rgb for frame in moving_frames(count, size)])


def far(ours, torchs):
    """The largest difference, as a share of the largest value."""
    return np.abs(ours - torchs).max() / np.abs(torchs).max()


def test_they_are_a_segmentor_and_a_propagator(both):
    _, ours = both
    assert isinstance(ours.segmentor, Segmentor)
    assert isinstance(ours.propagator, Propagator)
    assert isinstance(ours.propagator, OnnxFlow)
    assert ours.propagator.name == "query"
    assert ours.segmentor.class_names == both[0].segmentor.class_names
    assert ours.rule == both[0].rule
    assert ours.describe("both")["options"]["backend"] == "onnx"
    assert both[0].describe("both")["options"]["backend"] == "torch"


@pytest.mark.parametrize("size", [SIZE, (96, 64), (33, 200), (32, 32)])
def test_logits_and_queries_are_those_of_torch_at_any_size(both, size):
    expected, found = (segmenter.segmentor(pictures(2, size)) for segmenter in both)
    for name in ("class_logits", "mask_logits", "queries"):
        assert getattr(found, name).shape == getattr(expected, name).shape
        assert far(getattr(found, name), getattr(expected, name)) < 1e-4
    assert expected.mask_logits[0].std() > 0.1
    assert not np.allclose(expected.mask_logits[0], expected.mask_logits[1], atol=1e-3)


@pytest.mark.parametrize("active", [None, [0], [4, 1], [3, 0, 2]])
@pytest.mark.parametrize(("others", "size"), [(1, SIZE), (2, (96, 64))])
def test_flows_are_those_of_torch(both, active, others, size):
    images = pictures(4, size)
    queries = both[0].segmentor(images[:1]).queries
    wanted = None if active is None else np.array(active)
    padded = MOTION_RULE.fit(size).padded
    grid = (padded[0] // 4, padded[1] // 4)
    flows = [
        segmenter.propagator.estimate_flow(images[2:], images[:others], queries, padded, grid, wanted)
        for segmenter in both
    ]
    assert flows[1].shape == (2, QUERIES if active is None else len(active), 2, *grid)
    assert np.allclose(*flows, atol=1e-4)
    assert np.abs(flows[0]).max() > 0.01


@pytest.mark.parametrize("size", [SIZE, (72, 48)])
def test_a_video_gets_the_same_labels(both, size):
    frames = moving_frames(7, size)
    expected, found = (list(segmenter.stream(frames, direction="forward")) for segmenter in both)
    assert [result.is_key for result in found] == [result.is_key for result in expected]
    different = np.mean([np.mean(a.labels != b.labels) for a, b in zip(expected, found, strict=True)])
    assert different < 1e-3  # ties
    assert len(np.unique([result.labels for result in expected])) > 1


def test_a_motion_module_normalises_as_torch_does():
    from mpvss.motion.network.encoder import prepare_image

    image = pictures(1, (50, 70))
    torchs = prepare_image(torch.from_numpy(image).permute(0, 3, 1, 2).float(), 1).numpy()
    assert np.allclose(MOTION_RULE.normalise(image), torchs, atol=1e-6)


def test_the_export_says_what_it_is_and_how_exact(exported):
    info = ExportInfo.read(exported)
    assert (info.size, info.motion, info.num_queries, info.schema_version) == (None, "query", QUERIES, 2)
    assert not info.rule.fixed
    assert set(info.max_difference) == {"class_logits", "mask_logits", "queries", "flow"}
    assert max(info.max_difference.values()) < 1e-3


def test_other_propagators_go_with_an_exported_segmentor(exported):
    segmenter = VideoSegmenter.from_pretrained(exported, propagator="hold")
    assert segmenter.propagator.name == "hold"
    assert segmenter.with_options(propagator="query").propagator.name == "query"
    assert VideoSegmenter.from_pretrained(exported, backend="onnx", propagator="none").propagator is None
    with pytest.raises(ModelError, match="propagator flow needs a motion module"):
        VideoSegmenter.from_pretrained(exported, backend="onnx", propagator="flow")


@pytest.mark.soak
def test_one_flow_for_all_is_exported_too(tmp_path):
    folder = checkpoint(tmp_path / "flow", PixelFlow(TINY))
    with unchecked():
        export(str(folder), None, tmp_path / "exported")
    images = pictures()
    flows = [
        VideoSegmenter.from_pretrained(place, propagator="flow", device="cpu").propagator.estimate_flow(
            images[1:], images[:1], None, (64, 96), (16, 24)
        )
        for place in (folder, tmp_path / "exported")
    ]
    assert flows[1].shape == (1, 1, 2, 16, 24)
    assert np.allclose(*flows, atol=1e-4)


@pytest.mark.soak
@pytest.mark.parametrize("size", [None, SIZE])
@pytest.mark.parametrize("kind", ["mask2former", "maskformer"])
def test_families_are_exported_for_one_size_at_least(tmp_path, kind, size):
    from test_segmentors import _model

    _model(kind).save_pretrained(tmp_path / "m")
    try:
        with unchecked():
            summary = export(str(tmp_path / "m"), size, tmp_path / "out")
    except ModelError as error:
        assert size is None
        assert str(error).endswith("an export for one size may do: --size HEIGHTxWIDTH")
    else:
        assert summary.max_difference["mask_logits"] < 1e-3


@pytest.mark.soak
def test_what_torchs_exporter_has_no_operation_for_is_one_line(tmp_path):
    """OneFormer's own check of its inputs; should the exporter learn it, the families above get one more."""
    from family_world import write_tokenizer
    from test_segmentors import _model

    _model("oneformer").save_pretrained(tmp_path / "m")
    write_tokenizer(tmp_path / "m")
    with unchecked(), pytest.raises(ModelError, match="torch cannot export this network to ONNX: ") as caught:
        export(str(tmp_path / "m"), SIZE, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


# --- what older versions wrote ------------------------------------------------------------------------------------


def graph(path, nodes, inputs, outputs, constants=()):
    """Write a graph of such nodes, inputs and outputs (name and shape), all float32."""
    values = [
        [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in each.items()]
        for each in (inputs, outputs)
    ]
    made = onnx.helper.make_graph(nodes, "g", *values, list(constants))
    opsets = [onnx.helper.make_opsetid("", 17)]
    path.write_bytes(onnx.helper.make_model(made, opset_imports=opsets, ir_version=8).SerializeToString())


def number(name, values):
    return onnx.numpy_helper.from_array(np.asarray(values), name)


@pytest.fixture
def old(tmp_path):
    """A directory as the version before wrote it: one size, and a motion module that takes images as they are."""
    node = onnx.helper.make_node
    graph(
        tmp_path / "key.onnx",
        [
            node("AveragePool", ["pixels"], ["mask_logits"], kernel_shape=[4, 4], strides=[4, 4]),
            node("Identity", ["eye"], ["class_logits"]),
            node("Identity", ["eye"], ["queries"]),
        ],
        {"pixels": (1, 3, 64, 96)},
        {"class_logits": (1, 3, 4), "mask_logits": (1, 3, 16, 24), "queries": (1, 3, 4)},
        [number("eye", np.eye(3, 4, dtype=np.float32)[None])],
    )
    graph(
        tmp_path / "motion.onnx",
        [
            node("Sub", ["current", "other"], ["difference"]),
            node("ReduceMean", ["difference"], ["mean"], axes=[1, 2, 3], keepdims=1),
            node("Unsqueeze", ["mean", "axis"], ["one"]),
            node("Expand", ["one", "shape"], ["flow"]),
        ],
        {"current": (1, 3, *SIZE), "other": (1, 3, *SIZE)},
        {"flow": (1, 1, 2, 8, 12)},
        [number("axis", np.array([1])), number("shape", np.array([1, 1, 2, 8, 12]))],
    )
    values = {
        "schema_version": 1, "name": "old", "class_names": ["a", "b", "c"], "size": SIZE, "motion": "flow",
        "rule": {
            "short_side": 60, "long_side": None, "multiple": 32, "mean": [0, 0, 0], "std": [1, 1, 1], "fixed": True
        },
        "num_queries": 3, "max_difference": {"flow": 0.1},
    }  # fmt: skip
    (tmp_path / "export.json").write_text(json.dumps(values))
    return tmp_path


def test_an_export_of_the_version_before_still_loads(old):
    segmenter = VideoSegmenter.from_pretrained(old)
    assert segmenter.propagator.name == "flow"
    images = pictures()
    assert segmenter.segmentor(images).mask_logits.shape == (2, 3, 16, 24)
    flow = segmenter.propagator.estimate_flow(images[1:], images[:1], None, (64, 96), (8, 12))
    assert np.allclose(flow, images[1].mean(dtype=np.float64) - images[0].mean(dtype=np.float64), atol=1e-3)


# --- refusals -----------------------------------------------------------------------------------------------------


def test_a_network_of_pixels(old):
    graph(
        old / "key.onnx",
        [onnx.helper.make_node("AveragePool", ["pixels"], ["scores"], kernel_shape=[4, 4], strides=[4, 4])],
        {"pixels": (1, 3, "h", "w")},
        {"scores": (1, 3, "hs", "ws")},
    )
    values = json.loads((old / "export.json").read_text())
    values |= {"schema_version": 2, "size": None, "motion": None, "num_queries": 0}
    (old / "export.json").write_text(json.dumps(values | {"rule": values["rule"] | {"fixed": False}}))
    segmenter = VideoSegmenter.from_pretrained(old)
    assert segmenter.propagator.name == "dis"
    found = segmenter.segmentor(pictures())
    assert isinstance(found, PixelPrediction)
    assert (found.kind, found.scores.shape) == ("logits", (2, 3, 16, 24))
    assert len(list(segmenter.stream(moving_frames(3, SIZE)))) == 3


@pytest.mark.soak
def test_networks_of_pixels_are_exported(tmp_path):
    from family_world import write_model

    folder = tmp_path / "m"
    folder.mkdir()
    write_model("segformer", folder)
    with unchecked():
        export(str(folder), None, tmp_path / "out")
    ours, torchs = (VideoSegmenter.from_pretrained(path, device="cpu") for path in (tmp_path / "out", folder))
    for size in ((64, 64), (96, 160)):
        found, expected = (segmenter.segmentor(pictures(1, size)) for segmenter in (ours, torchs))
        assert far(found.scores, expected.scores) < 1e-4


def test_a_picture_of_another_size(old):
    ours = VideoSegmenter.from_pretrained(old)
    frame = moving_frames(1, (60, 80))[0]
    with pytest.raises(ModelError, match=r"exported for images of 90x60 .*got 80x60.*export it again without --size"):
        ours.session().push(frame)
    images = pictures(2, (60, 80))
    with pytest.raises(ModelError, match="exported for images of 90x60"):
        ours.propagator.estimate_flow(images[1:], images[:1], None, (64, 96), (16, 24))
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
    monkeypatch.setattr(onnx_export, "trace", lambda *_, **__: onnx.ModelProto())
    monkeypatch.setattr(onnx_export, "load_exported", lambda _: (Wrong(), None))
    with pytest.raises(ModelError, match=r"key.onnx: the exported network gives other labels than torch at .* %"):
        export(str(model / "segmentor"), SIZE, tmp_path / "exported")
    assert list(tmp_path.iterdir()) == []


def test_only_clear_pixels_must_be_equal():
    geometry = Geometry((32, 32), (32, 32), (32, 32))
    from mpvss.engine.state import WarpedPrediction

    classes = np.array([[9, 0, 0], [0, 9, 0]], np.float32)
    masks = np.zeros((2, 8, 8), np.float32)
    masks[0, :4] = 3.0
    tied = WarpedPrediction(classes, masks)
    turned = WarpedPrediction(classes, masks + np.array([0, 1e-6], np.float32)[:, None, None])
    assert onnx_export._require_equal_labels(tied, turned, geometry, "x") > 0.3
    with pytest.raises(ModelError, match="other labels than torch"):
        onnx_export._require_equal_labels(tied, WarpedPrediction(classes, masks[::-1]), geometry, "x")
    with pytest.raises(ModelError, match="other labels than torch"):
        onnx_export._require_equal_labels(tied, WarpedPrediction(classes, masks + np.float32(np.nan)), geometry, "x")


def test_a_network_that_torch_cannot_export():
    class Broken(torch.nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ModelError, match="torch cannot export this network to ONNX: "):
        onnx_graph.trace(Broken(), {"x": torch.ones(2)}, ("y",))


@pytest.mark.parametrize(
    ("size", "advice"), [(None, "; an export for one size may do: --size HEIGHTxWIDTH$"), (SIZE, "$")]
)
def test_a_network_of_one_size(model, tmp_path, monkeypatch, size, advice):
    def refuse(*_, **__):
        raise ModelError("it has one size")

    monkeypatch.setattr(onnx_export, "trace", refuse)
    with pytest.raises(ModelError, match=f"^it has one size{advice}"):
        export(str(model / "segmentor"), size, tmp_path / "exported")
    assert list(tmp_path.iterdir()) == []


def test_a_size_that_the_model_does_not_see(tmp_path):
    with pytest.raises(ModelError, match=r"compact sees images of 900x64 .* at .*: export it for that size"):
        export("compact", (64, 900), tmp_path / "out")


def test_an_output_that_exists(exported, model, tmp_path):
    with pytest.raises(OutputError, match="exists already; pass --overwrite"):
        export(str(model), None, exported)
    (tmp_path / "mine").write_text("")
    with pytest.raises(OutputError, match="exists already"):  # not an export: never replaced
        export(str(model), SIZE, tmp_path, overwrite=True)


def test_missing_packages_are_named(model, tmp_path, monkeypatch, exported):
    monkeypatch.setattr(onnx_backend, "has", lambda _: False)
    with pytest.raises(ModelError, match=r"onnxruntime, which is not installed: pip install onnxruntime"):
        load_exported(exported)
    monkeypatch.setattr(onnx_backend, "has", lambda _: True)
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
            r"not as .*\(expected schema version 1 or 2, got 99\); export again",
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
    with pytest.raises(ValueError, match=r"backend must be one of auto, torch, onnx, got 'tensorrt'"):
        EvalOptions(data="davis:x", backend="tensorrt")
    with pytest.raises(ValueError, match=r"backend onnx runs in float32, got bfloat16"):
        VideoSegmenter.from_pretrained("x", backend="onnx", dtype="bfloat16")


def test_an_export_is_no_model_for_torch(exported):
    with pytest.raises(ModelError, match="made by mpvss export: give --backend onnx or auto, not torch"):
        VideoSegmenter.from_pretrained(exported, backend="torch")


@pytest.mark.parametrize(
    ("model", "options", "driver", "expected"),
    [
        ("compact", {}, False, "onnx"),
        ("compact", {"device": "cpu"}, True, "onnx"),
        ("compact", {}, True, "torch"),
        ("compact", {"device": "cuda"}, False, "torch"),
        ("compact", {"fast": False}, False, "torch"),
        ("compact", {"dtype": "bfloat16"}, False, "torch"),
        ("compact", {"backend": "torch"}, False, "torch"),
        ("owner/name", {}, False, "torch"),
        ("owner/name", {"backend": "onnx"}, False, "onnx"),
    ],
)
def test_what_auto_means(monkeypatch, model, options, driver, expected):
    monkeypatch.setattr(segmentors, "_has_nvidia_driver", lambda: driver)
    assert choose_backend(ModelOptions(model=model, **options)) == expected


def test_without_torch(monkeypatch, exported):
    monkeypatch.setattr(segmentors, "has", lambda _: False)
    monkeypatch.setattr(_extras, "has", lambda name: name != "torch")
    monkeypatch.setattr(segmentors, "_has_nvidia_driver", lambda: True)
    for model, device in (("compact", "auto"), ("compact", "cuda"), (exported, "auto")):
        assert choose_backend(ModelOptions(model=model, device=device)) == "onnx"
    with pytest.raises(ModelError, match=r"^owner/name: a checkpoint needs torch, .*: pip install 'mpvss\[torch\]'$"):
        VideoSegmenter.from_pretrained("owner/name")
    with pytest.raises(ModelError, match=r"^compcat: no such model; did you mean compact\? a checkpoint needs torch"):
        require_torch("compcat")
    with pytest.raises(MpvssError, match=r"device cuda was asked for.*pip install 'mpvss\[torch\]' or onnxruntime-gpu"):
        VideoSegmenter.from_pretrained("compact", device="cuda")


def test_providers_of_devices(monkeypatch):
    import onnxruntime

    for available, device, expected in (
        (["CUDAExecutionProvider", "CPUExecutionProvider"], "auto", ("CUDAExecutionProvider", 0)),
        (["CUDAExecutionProvider", "CPUExecutionProvider"], "cuda:1", ("CUDAExecutionProvider", 1)),
        (["CUDAExecutionProvider", "CPUExecutionProvider"], "2", ("CUDAExecutionProvider", 2)),
        (["DmlExecutionProvider", "CPUExecutionProvider"], "cuda", ("DmlExecutionProvider", 0)),
        (["CoreMLExecutionProvider", "CPUExecutionProvider"], "mps", ("CoreMLExecutionProvider", 0)),
        (["CoreMLExecutionProvider", "CPUExecutionProvider"], "auto", ("CPUExecutionProvider", 0)),
        (["CUDAExecutionProvider"], "cpu", ("CPUExecutionProvider", 0)),
    ):
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda available=available: available)
        assert choose_provider(device) == expected
    with pytest.raises(MpvssError, match="device mps was asked for, but this ONNX Runtime has no provider for it"):
        choose_provider("mps")


def test_a_provider_that_does_not_start(monkeypatch, exported, caplog):
    monkeypatch.setattr(onnx_backend, "choose_provider", lambda _: ("CUDAExecutionProvider", 0))
    with pytest.raises(MpvssError, match=r"ONNX Runtime has CUDA.*, but it does not start.*use cpu"):
        open_session(exported / "key.onnx", "cuda")
    assert open_session(exported / "key.onnx", "auto").get_providers() == ["CPUExecutionProvider"]
    assert "does not start on this machine; the networks run on the CPU" in caplog.text


# --- the embedded model -------------------------------------------------------------------------------------------


def test_the_embedded_graphs_hold_no_weights():
    """Each weight is a whole tensor of the safetensors file beside the graph, in half precision."""
    total = 0
    for name, file in (("compact", "key"), ("compact-query", "motion"), ("compact-flow", "motion")):
        folder = embedded_folder("compact").with_name(name)
        content = (folder / "model.safetensors").read_bytes()
        start = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:start])
        parts = {
            (start + entry["data_offsets"][0], entry["data_offsets"][1] - entry["data_offsets"][0], *entry["shape"])
            for entry in header.values()
            if entry.get("dtype") == "F16"
        }
        initializers = onnx.load(folder / f"{file}.onnx", load_external_data=False).graph.initializer
        used = set()
        for tensor in initializers:
            where = {entry.key: entry.value for entry in tensor.external_data}
            if where:
                assert where["location"] == "model.safetensors"
                used.add((int(where["offset"]), int(where["length"]), *tensor.dims))
            else:
                assert len(tensor.raw_data) < 1024
        assert used <= parts
        assert len(used) >= len(parts) - 5
        total += sum(path.stat().st_size for path in folder.iterdir())
    assert total < 12_000_000


@pytest.mark.parametrize("size", [(96, 128), (130, 70)])
def test_the_embedded_model_says_what_torch_says(size):
    torchs, ours = (
        VideoSegmenter.from_pretrained("compact", backend=backend, propagator="none") for backend in ("torch", "onnx")
    )
    assert ours.rule == torchs.rule
    assert ours.class_names == torchs.class_names
    expected, found = (segmenter.segmentor(pictures(1, size)) for segmenter in (torchs, ours))
    for name in ("class_logits", "mask_logits", "queries"):
        assert far(getattr(found, name), getattr(expected, name)) < 1e-4


@pytest.mark.parametrize("propagator", ["query", "flow"])
def test_its_motion_modules_say_what_torch_says(propagator):
    images = pictures(2, (96, 130))
    flows = []
    for backend in ("torch", "onnx"):
        segmenter = VideoSegmenter.from_pretrained("compact", backend=backend, propagator=propagator)
        assert isinstance(segmenter.propagator, OnnxFlow) == (backend == "onnx")
        queries = segmenter.segmentor(images[:1]).queries
        padded = segmenter.propagator.estimate_flow(images[1:], images[:1], queries, (96, 160), (24, 40))
        flows.append(padded)
    assert np.allclose(*flows, atol=1e-3)
    assert np.abs(flows[0]).max() > 0.01


@pytest.mark.soak
def test_the_embedded_graphs_are_those_of_the_exporter(tmp_path):
    from mpvss.convert.embed import embed

    assets = embedded_folder("compact").parent
    with unchecked():
        written = embed("compact", tmp_path)
    for path in written:
        ours = assets / path.relative_to(tmp_path)
        if path.name == "export.json":
            assert ExportInfo.read(path.parent) == ExportInfo.read(ours.parent)
        else:
            assert path.read_bytes() == ours.read_bytes(), path.name


def test_a_weight_that_is_not_in_the_file(tmp_path):
    from safetensors.torch import save_file

    network = torch.nn.Linear(3, 2).half().float()
    model = onnx_graph.trace(network, {"x": torch.ones(1, 3)}, ("y",), weights_outside=True)
    save_file({"weight": network.weight.half()}, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match="expected the weight bias of this network in half precision, it is not there"):
        onnx_graph.point_to_weights(model, onnx_graph.weights_of(network), tmp_path / "w.safetensors")


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
    assert cli.run(["export", "-o", str(tmp_path)]) == 0
    assert asked[-1] == (("compact", None, tmp_path), {"overwrite": False})


def test_segment_takes_an_export(exported, tmp_path, capfd):
    from test_video_reader import write_video

    clip = write_video(tmp_path / "clip.mp4", [frame.rgb for frame in moving_frames(4, SIZE)])
    options = ["--model", str(exported), "--propagator", "query", "--interval", "2"]
    assert cli.run(["segment", str(clip), "-o", str(tmp_path / "out"), *options, "-q"]) == 0
    assert (tmp_path / "out" / "clip.labels.mkv").is_file()
    capfd.readouterr()
    options = ["--model", "owner/name", "--backend", "onnx"]
    assert cli.run(["segment", str(clip), "-o", str(tmp_path / "none"), *options, "-q"]) == 2
    error = capfd.readouterr().err
    assert "owner/name: expected a directory made by mpvss export" in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(("propagator", "expected"), [("auto", "query"), ("query", "query"), ("hold", "hold")])
def test_auto_is_the_motion_module_of_the_export(exported, propagator, expected):
    segmenter = VideoSegmenter.from_pretrained(exported, propagator=propagator)
    assert segmenter.propagator.name == expected
    assert isinstance(segmenter.propagator, OnnxFlow) == (expected == "query")


@pytest.mark.parametrize("oracle", [False, True])
@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_eval_takes_the_same_motion_module_as_segment(model, exported, tmp_path, backend, oracle):
    place = {"auto": exported, "torch": model}[backend]
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
