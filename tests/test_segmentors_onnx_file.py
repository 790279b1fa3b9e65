"""Laws of ONNX files of others: what they say is read as they mean it, and what cannot be used is one line."""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from helpers import moving_frames
from mpvss import cli
from mpvss.errors import ModelError
from mpvss.segmenter import VideoSegmenter
from mpvss.segmentors import Segmentor
from mpvss.segmentors.onnx_file import OnnxFileSegmentor
from mpvss.segmentors.protocol import PixelPrediction, Prediction

FREE = (1, 3, "height", "width")
NAMES = {"names": "{0: 'red', 1: 'green', 2: 'blue'}", "stride": "32"}
node = helper.make_node


def save(path, nodes, *, inputs=None, outputs=("y",), constants=(), types=None, metadata=NAMES, opsets=()):
    """Write a graph; inputs are names and shapes, of float32 where ``types`` says nothing else."""
    types = types or {}
    inputs = {"x": FREE} if inputs is None else inputs

    def value(name, shape):
        return helper.make_tensor_value_info(name, types.get(name, TensorProto.FLOAT), shape)

    graph = helper.make_graph(
        nodes,
        "g",
        [value(*each) for each in inputs.items()],
        [value(name, None) for name in outputs],
        [numpy_helper.from_array(each, name) for name, each in dict(constants).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), *opsets], ir_version=8)
    helper.set_model_props(model, metadata or {})
    path.write_bytes(model.SerializeToString())
    return path


def colours(path, **rest):
    """The mean colour of each square of 4x4 pixels, as class scores of red, green and blue."""
    return save(path, [node("AveragePool", ["x"], ["y"], kernel_shape=[4, 4], strides=[4, 4])], **rest)


def image(height=64, width=96):
    return moving_frames(1, (height, width))[0].rgb


def blocks(rgb, side=4):
    height, width = rgb.shape[0] // side, rgb.shape[1] // side
    return rgb.reshape(height, side, width, side, 3).mean((1, 3)).transpose(2, 0, 1)


def test_scores_of_pixels(tmp_path):
    segmentor = OnnxFileSegmentor(colours(tmp_path / "m.onnx"))
    assert isinstance(segmentor, Segmentor)
    assert (segmentor.name, segmentor.class_names) == ("m.onnx", ("red", "green", "blue"))
    found = segmentor(np.stack([image(), image()]))
    assert isinstance(found, PixelPrediction)
    assert found.scores.shape == (2, 3, 16, 24)
    assert np.allclose(found.scores[0], blocks(image()) / 255, atol=1e-5)
    assert (found.kind, found.ids) == ("logits", None)


def test_a_video_of_any_size_is_segmented_as_on_every_frame(tmp_path):
    path = colours(tmp_path / "m.onnx")
    for size in ((64, 96), (50, 70)):
        segmenter = VideoSegmenter.from_pretrained(path, interval=3)
        frames = moving_frames(5, size)
        results = list(segmenter.stream(frames, direction="forward"))
        alone = list(segmenter.per_frame().stream(frames))
        assert [result.labels.shape for result in results] == [size] * 5
        assert [result.is_key for result in results] == [True, False, False, True, False]
        assert np.array_equal(results[0].labels, alone[0].labels)
        assert len(np.unique(results[0].labels)) > 1
    assert segmenter.describe("both")["options"]["backend"] == "onnx"
    assert segmenter.with_options(propagator="hold").propagator.name == "hold"
    with pytest.raises(ModelError, match="propagator query needs a motion module"):
        segmenter.with_options(propagator="query")


def test_a_network_of_one_size_gets_it(tmp_path):
    segmentor = OnnxFileSegmentor(colours(tmp_path / "m.onnx", inputs={"x": (1, 3, 40, 60)}))
    geometry = segmentor.rule.fit((480, 640))
    assert (geometry.resized, geometry.padded, segmentor.rule.fixed) == ((40, 60), (40, 60), True)
    assert segmentor(image(40, 60)[None]).scores.shape == (1, 3, 10, 15)


def test_the_last_axis_may_be_the_colours(tmp_path):
    transposed = [node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2])]
    pool = node("AveragePool", ["t"], ["p"], kernel_shape=[4, 4], strides=[4, 4])
    back = node("Transpose", ["p"], ["y"], perm=[0, 2, 3, 1])
    path = save(tmp_path / "m.onnx", [*transposed, pool, back], inputs={"x": (1, "h", "w", 3)})
    assert np.allclose(OnnxFileSegmentor(path)(image()[None]).scores[0], blocks(image()) / 255, atol=1e-5)


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_what_the_file_beside_it_says(tmp_path, suffix):
    path = colours(tmp_path / "m.onnx", metadata=None)
    says = {
        "channels": "bgr", "scale": 1, "mean": [10, 20, 30], "std": [2, 4, 8], "size": 64, "multiple": 4,
        "output_kind": "logits", "classes": ["blue", "green", "red"],
    }  # fmt: skip
    (tmp_path / f"m.{suffix}").write_text(json.dumps(says))
    segmentor = OnnxFileSegmentor(path)
    assert segmentor.class_names == ("blue", "green", "red")
    assert segmentor.rule.fit((128, 192)).resized == (64, 96)
    expected = (blocks(image()) - np.array([10, 20, 30])[:, None, None]) / np.array([2, 4, 8])[:, None, None]
    assert np.allclose(segmentor(image()[None]).scores[0], expected[::-1], atol=1e-4)
    (tmp_path / f"m.{suffix}").write_text('{"colour": 1}')
    with pytest.raises(ModelError, match=rf"m\.{suffix}: expected settings of m\.onnx.*colour"):
        OnnxFileSegmentor(path)


def test_names_that_exporters_write(tmp_path):
    for metadata in (
        NAMES,
        {"id2label": '{"0": "red", "1": "green", "2": "blue"}'},
        {"classes": "red, green,blue"},
        {"class_names": '["red", "green", "blue"]'},
    ):
        assert OnnxFileSegmentor(colours(tmp_path / "m.onnx", metadata=metadata)).class_names[2] == "blue"
    path = colours(tmp_path / "m.onnx", metadata=None)
    with pytest.raises(ModelError, match=r"expected the names of its classes.*give them with --classes-file"):
        OnnxFileSegmentor(path)
    (tmp_path / "config.json").write_text('{"id2label": {"0": "a", "1": "b", "2": "c"}}')
    assert OnnxFileSegmentor(path).class_names == ("a", "b", "c")
    assert OnnxFileSegmentor(path, classes=["x", "y", "z"]).class_names == ("x", "y", "z")


def test_how_the_input_is_scaled(tmp_path, caplog):
    path = colours(tmp_path / "m.onnx", metadata={"classes": "a,b,c"})
    assert OnnxFileSegmentor(path).rule.mean == pytest.approx((123.675, 116.28, 103.53))
    assert "does not say how its input is scaled" in caplog.text
    (tmp_path / "preprocessor_config.json").write_text(
        '{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}'
    )
    rule = OnnxFileSegmentor(path).rule
    assert (rule.mean, rule.std) == ((127.5,) * 3, (63.75,) * 3)
    cast = node("Cast", ["x"], ["f"], to=TensorProto.FLOAT)
    pool = node("AveragePool", ["f"], ["y"], kernel_shape=[4, 4], strides=[4, 4])
    raw = save(tmp_path / "raw.onnx", [cast, pool], types={"x": TensorProto.UINT8})
    assert np.allclose(OnnxFileSegmentor(raw)(image()[None]).scores[0], blocks(image()), atol=1e-3)


def test_shares_of_one_are_scores(tmp_path):
    pool = node("AveragePool", ["x"], ["p"], kernel_shape=[4, 4], strides=[4, 4])
    path = save(tmp_path / "m.onnx", [pool, node("Softmax", ["p"], ["y"], axis=1)])
    assert OnnxFileSegmentor(path)(image()[None]).kind == "scores"
    assert OnnxFileSegmentor(path, output="logits")(image()[None]).kind == "logits"
    minus = save(tmp_path / "n.onnx", [pool, node("Neg", ["p"], ["y"])])
    assert OnnxFileSegmentor(minus)(image()[None]).kind == "logits"
    with pytest.raises(ModelError, match=r"expected class scores of 0 or more, got -.*--output-kind logits"):
        OnnxFileSegmentor(minus, output="scores")(image()[None])


@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("batch", [1, 2])
def test_class_ids(tmp_path, keep, batch):
    path = save(
        tmp_path / "m.onnx", [node("ArgMax", ["x"], ["y"], axis=1, keepdims=keep)], types={"y": TensorProto.INT64}
    )
    found = OnnxFileSegmentor(path)(np.stack([image()] * batch))
    assert found.scores.shape[2:] == (64, 96)
    assert np.array_equal(found.ids[found.scores[0].argmax(0)], image().argmax(2))
    with pytest.raises(ModelError, match=r"expected class ids from 0 to 0, got [12]; name all classes"):
        OnnxFileSegmentor(path, classes=["one"])(image()[None])


def test_255_stands_for_no_class(tmp_path):
    constants = {"w": np.full((1, 8, 8), 255, np.uint8)}
    path = save(
        tmp_path / "m.onnx", [node("Identity", ["w"], ["y"])], types={"y": TensorProto.UINT8}, constants=constants
    )
    assert OnnxFileSegmentor(path)(image()[None]).ids.tolist() == [3]


def test_one_class_and_everything_else(tmp_path):
    mean = node("ReduceMean", ["x"], ["m"], axes=[1], keepdims=1)
    half = {"half": np.float32(0.5)}
    logits = save(tmp_path / "l.onnx", [mean, node("Sub", ["m", "half"], ["y"])], constants=half, metadata=None)
    scores = save(tmp_path / "s.onnx", [mean, node("Identity", ["m"], ["y"])], metadata=None)
    for path, kind in ((logits, "logits"), (scores, "scores")):
        (tmp_path / f"{path.stem}.yaml").write_text("{scale: 0.00392156862745098, classes: [bright]}")
        found = OnnxFileSegmentor(path)(image()[None])
        assert (found.kind, found.ids.tolist()) == (kind, [0, 1])
        assert np.array_equal(found.scores[0].argmax(0) == 0, image().mean(2) / 255 > 0.5)


@pytest.mark.parametrize("named", [False, True])
def test_classes_and_masks_of_queries(tmp_path, named):
    pool = node("AveragePool", ["x"], ["masks"], kernel_shape=[4, 4], strides=[4, 4])
    nodes = [node("Identity", ["eye"], ["classes"]), pool]
    outputs = ["classes", "masks"]
    if named:
        nodes.append(node("Identity", ["embeddings"], ["queries"]))
        outputs.append("queries")
    eye = np.eye(3, 4, dtype=np.float32)[None]
    constants = {"eye": eye, "embeddings": np.ones((1, 3, 7), np.float32)}
    path = save(tmp_path / "m.onnx", nodes, outputs=outputs, constants=constants)
    found = OnnxFileSegmentor(path)(image()[None])
    assert isinstance(found, Prediction)
    assert np.array_equal(found.class_logits, eye)
    assert found.mask_logits.shape == (1, 3, 16, 24)
    assert found.queries.shape == (1, 3, 7 if named else 4)


def test_outputs_of_more_kinds(tmp_path):
    """Those of auxiliary heads, of other channels, are left alone."""
    pool = node("AveragePool", ["x"], ["y"], kernel_shape=[4, 4], strides=[4, 4])
    aux = node("ReduceMean", ["x"], ["aux"], axes=[1], keepdims=1)
    found = OnnxFileSegmentor(save(tmp_path / "m.onnx", [aux, pool], outputs=["aux", "y"]))(image()[None])
    assert found.scores.shape == (1, 3, 16, 24)


# --- refusals -----------------------------------------------------------------------------------------------------


def identity():
    return [node("Identity", ["x"], ["y"])]


def takes(path, **inputs):
    return save(path, identity(), inputs=inputs)


def magic(path):
    return save(path, [node("Magic", ["x"], ["y"], domain="acme")], opsets=[helper.make_opsetid("acme", 1)])


BAD = {
    "two images": (
        lambda path: save(path, [node("Add", ["x", "z"], ["y"])], inputs={"x": FREE, "z": FREE}),
        r"expected one input, an image, got 2, 2 of them images \(x .*mpvss.wrap",
    ),
    "an image and a number": (
        lambda path: save(path, [node("Add", ["x", "z"], ["y"])], inputs={"x": FREE, "z": (1,)}),
        r"expected one input, an image, got 2 \(x",
    ),
    "no fixed rank": (
        lambda path: takes(path, x=None),
        "numbers of four dimensions, got x .* no fixed rank must be exported again with a shape",
    ),
    "a batch": (lambda path: takes(path, x=(4, 3, 8, 8)), "one image at a time, got a batch of 4"),
    "grey": (lambda path: takes(path, x=(1, 1, 8, 8)), r"expected an input of 3 colours, .*got \["),
    "one free side": (lambda path: takes(path, x=(1, 3, 64, "w")), "both sides of the input free or both fixed"),
    "text": (
        lambda path: save(path, identity(), types={"x": TensorProto.STRING, "y": TensorProto.STRING}),
        r"expected an image as input.*tensor\(string\)",
    ),
    "a custom operator": (
        magic, "it uses the operator acme:Magic, which ONNX Runtime does not have: export it with standard operators"
    ),
    "no ONNX file": (lambda path: path.write_bytes(b"hello") and path, "expected an ONNX file, got something else"),
    "no file": (lambda path: path, "expected an ONNX file, there is none of this name"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_files_that_cannot_be_used(tmp_path, name):
    make, message = BAD[name]
    path = make(tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=message) as caught:
        OnnxFileSegmentor(path)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("location", ["../w.bin", "missing.bin", "link.bin"])
def test_weights_outside_the_folder(tmp_path, location):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "w.bin").write_bytes(np.ones(9, np.float32).tobytes())
    (folder / "link.bin").symlink_to(tmp_path / "w.bin")
    path = save(
        folder / "m.onnx", [node("Conv", ["x", "w"], ["y"])], constants={"w": np.ones((3, 3, 1, 1), np.float32)}
    )
    model = onnx.load(path)
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(
        ModelError, match="another file, which is missing or outside its folder: put that file beside it"
    ):
        OnnxFileSegmentor(path)


def test_outputs_that_are_none_of_a_segmentor(tmp_path):
    path = save(tmp_path / "m.onnx", [node("GlobalAveragePool", ["x"], ["p"]), node("Flatten", ["p"], ["y"])])
    message = (
        r"m.onnx: expected class scores or logits of 3 classes \(1, 3, h, w\).*got y float32 \[1, 3\]; name as many"
    )
    with pytest.raises(ModelError, match=message):
        OnnxFileSegmentor(path)(image()[None])
    with pytest.raises(ModelError, match=r"expected masks of 3 classes.*got y float32 \[1, 3, 16, 24\]"):
        OnnxFileSegmentor(colours(tmp_path / "c.onnx"), output="masks")(image()[None])
    with pytest.raises(ModelError, match=r"of 2 classes \(1, 2, h, w\).*--classes-file"):
        OnnxFileSegmentor(colours(tmp_path / "c.onnx"), classes=["a", "b"])(image()[None])


def test_numbers_that_are_none(tmp_path):
    path = save(tmp_path / "m.onnx", [node("Neg", ["x"], ["n"]), node("Sqrt", ["n"], ["y"])])
    with pytest.raises(ModelError, match="expected finite numbers from the network, got NaN or infinity"):
        OnnxFileSegmentor(path)(image()[None])


def test_the_command_line_takes_a_file(tmp_path, capfd):
    from test_video_reader import write_video

    clip = write_video(tmp_path / "clip.mp4", [frame.rgb for frame in moving_frames(3, (64, 96))])
    path = colours(tmp_path / "m.onnx", metadata=None)
    command = ["segment", str(clip), "-o", str(tmp_path / "out"), "--model", str(path), "-q"]
    assert cli.run(command) == 2
    assert "expected the names of its classes" in capfd.readouterr().err
    (tmp_path / "names.txt").write_text("red\ngreen\nblue\n")
    assert cli.run([*command, "--classes-file", str(tmp_path / "names.txt"), "--output-kind", "logits"]) == 0
    said = json.loads((tmp_path / "out" / "clip.json").read_text())
    assert said["model"] == "m.onnx"
