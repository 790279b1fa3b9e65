"""The examples run, and give what the functions in them say."""

import runpy
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace

import cv2
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from helpers import moving_frames
from mpvss.outputs import LabelReader
from test_video_reader import write_video

EXAMPLES = Path(__file__).parents[1] / "examples"
LINES = 25


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run an example as a script on a clip of 12 frames; return the labels that it writes."""
    clip = write_video(tmp_path / "clip.mp4", [frame.rgb for frame in moving_frames(12)])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["example", str(clip)])

    def run_one(name):
        values = runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        assert (tmp_path / "out" / "clip.overlay.mp4").is_file()
        return values, np.array([each[2] for each in LabelReader(tmp_path / "out" / "clip.labels.mkv")])

    return run_one


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_is_short_and_says_how_it_is_run(path):
    text = path.read_text()
    assert len(text.splitlines()) < LINES
    assert path.name in text.split('"""')[1] or path.name == "serve_mediapipe.py"
    assert f"({path.name})" in (EXAMPLES / "README.md").read_text()


def reddest(image):
    """What the stand-ins say: class 1 where there is more red than blue."""
    return (image[..., 0] > image[..., 2]).astype(np.int64)


def test_onnxruntime(run, tmp_path, monkeypatch):
    weights = helper.make_tensor("w", TensorProto.FLOAT, (2, 3, 1, 1), [0.0, 0.0, 1.0, 1.0, 0.0, 0.0])
    shape = (1, None, None, None)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", "w"], ["logits"])],
        "colours",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "model.onnx")
    monkeypatch.setenv("MODEL", str(tmp_path / "model.onnx"))
    monkeypatch.setenv("CLASSES", "blue,red")
    values, labels = run("wrap_onnxruntime.py")
    assert labels.shape == (12, 64, 96)
    assert values["segmenter"].class_names == ("blue", "red")
    assert 0.05 < labels.mean() < 0.95


def test_http(run, monkeypatch):
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            jpeg = np.frombuffer(self.rfile.read(int(self.headers["Content-Length"])), np.uint8)
            asked.append(self.headers["Content-Type"])
            ids = reddest(cv2.imdecode(jpeg, cv2.IMREAD_COLOR)[..., ::-1]).astype(np.uint8)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(cv2.imencode(".png", ids)[1].tobytes())

        def log_message(self, *_):
            pass

    with HTTPServer(("localhost", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("ENDPOINT", f"http://localhost:{server.server_port}/")
        monkeypatch.setenv("CLASSES", "blue,red")
        _, labels = run("wrap_http.py")
        server.shutdown()
    assert asked == ["image/jpeg"] * 2  # frames 0 and 10
    assert 0.05 < labels.mean() < 0.95


def test_torch(run, monkeypatch):
    class Model(torch.nn.Module):
        def forward(self, images):
            assert images.shape[0] == 1
            return {"out": torch.stack([images[:, 2], images[:, 0]], 1)}

    weights = SimpleNamespace(
        meta={"categories": ["blue", "red"]}, transforms=lambda: lambda image: image.float() / 255
    )
    names = ("torchvision", "torchvision.models", "torchvision.models.segmentation")
    for name in names:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    segmentation = sys.modules[names[-1]]
    segmentation.LRASPP_MobileNet_V3_Large_Weights = SimpleNamespace(DEFAULT=weights)
    segmentation.lraspp_mobilenet_v3_large = lambda weights: Model()
    values, labels = run("wrap_torch.py")
    assert values["segmenter"].class_names == ("blue", "red")
    assert 0.05 < labels.mean() < 0.95


def test_ultralytics(run, monkeypatch):
    class Model:
        names = {0: "red", 1: "blue"}  # noqa: RUF012 - as the package has it

        def __init__(self, weights):
            assert weights == "yolo11n-seg.pt"
            self.calls = 0

        def __call__(self, image, *, retina_masks, verbose):
            assert retina_masks and not verbose
            self.calls += 1
            red = torch.from_numpy(reddest(image[..., ::-1])).float()
            boxes = SimpleNamespace(cls=torch.tensor([0.0, 1.0]), conf=torch.tensor([0.9, 0.8]))
            if self.calls == 2:  # nothing is found
                return [SimpleNamespace(masks=None, boxes=SimpleNamespace(cls=torch.zeros(0), conf=torch.zeros(0)))]
            return [SimpleNamespace(masks=SimpleNamespace(data=torch.stack([red, 1 - red])), boxes=boxes)]

    package = ModuleType("ultralytics")
    package.YOLO = Model
    monkeypatch.setitem(sys.modules, "ultralytics", package)
    values, labels = run("wrap_ultralytics.py")
    assert values["model"].calls == 2
    assert set(np.unique(labels[0])) == {0, 1}
    assert (labels[10] == 255).all()
