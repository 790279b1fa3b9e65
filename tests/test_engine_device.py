"""The carrier of other devices gives what the carriers of the CPU give; held here with tensors on the CPU."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from helpers import moving_frames
from mpvss.engine import tensors
from mpvss.engine.carriers import Inference, make_carrier
from mpvss.engine.carriers.device import DeviceCarrier
from mpvss.engine.decode import ClassScores, label_map
from mpvss.engine.fusion import blend_weight, thumbnail, visible_flow
from mpvss.engine.packed import union_of_classes
from mpvss.engine.schedule import FixedInterval
from mpvss.engine.session import Session
from mpvss.errors import ModelError
from mpvss.motion import PixelFlow, QueryFlow, QueryFlowConfig
from mpvss.motion.dis import Dis, Hold
from mpvss.motion.learned import LearnedFlow
from mpvss.segmenter import VideoSegmenter
from mpvss.segmentors.protocol import InputRule, PixelPrediction, Prediction
from mpvss.segmentors.tensors import PixelScores, TensorPrediction, normalised
from mpvss.types import Geometry

GEOMETRIES = [
    Geometry((64, 96), (64, 96), (64, 96)),
    Geometry((61, 95), (61, 95), (64, 96)),
    Geometry((80, 120), (40, 60), (64, 64)),
    Geometry((30, 46), (61, 93), (64, 96)),
]


class Colours:
    """Queries of three colours, twelve classes each, on a device as the networks' own are."""

    name = "colours"

    def __init__(self, classes=3, short_side=None, multiple=32):
        self.class_names = tuple(f"c{number}" for number in range(classes))
        self.rule = InputRule(short_side, multiple=multiple, mean=(0.0, 0.0, 0.0), std=(255.0, 255.0, 255.0))
        self.device = torch.device("cpu")
        self.batches = []

    def predict(self, images):
        self.batches.append(len(images))
        small = torch.nn.functional.avg_pool2d(normalised(self.rule, images), 4)
        masks = torch.cat([(small - small.mean(1, keepdim=True)) * 20, small[:, :1]], 1)
        classes = torch.zeros(4, len(self.class_names) + 1)
        classes[torch.arange(4), torch.tensor([0, 1, 2, -1])] = 9.0
        queries = torch.linspace(-1, 1, 32).reshape(4, 8)
        return TensorPrediction(classes.expand(len(images), -1, -1), masks, queries.expand(len(images), -1, -1))

    def __call__(self, images):
        answer = self.predict(torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2))
        return Prediction(answer.class_logits.numpy(), answer.mask_logits.numpy(), answer.queries.numpy())


class Pixels(Colours):
    """Logits of three classes at a quarter of the size."""

    def predict(self, images):
        self.batches.append(len(images))
        small = torch.nn.functional.avg_pool2d(normalised(self.rule, images), 4)
        maps = torch.full((len(images), len(self.class_names), *small.shape[2:]), -9.0)
        maps[:, :3] = (small - small.mean(1, keepdim=True)) * 40
        return PixelScores(maps, "logits")

    def __call__(self, images):
        answer = self.predict(torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2))
        return PixelPrediction(answer.scores.numpy(), answer.kind, None if answer.ids is None else answer.ids.numpy())


class Instances(Pixels):
    """Scores of two of the classes; where neither is above .5 there is none."""

    def predict(self, images):
        maps = super().predict(images).scores[:, [0, 2]].sigmoid()
        none = torch.full_like(maps[:, :1], 0.5)
        return PixelScores(torch.cat([maps, none], 1), "scores", torch.tensor([0, 2, len(self.class_names)]))


def networks(name):
    config = QueryFlowConfig(**SMALL)
    torch.manual_seed(0)
    module = (QueryFlow if name == "query" else PixelFlow)(config).eval()
    return LearnedFlow(module)


SMALL = {
    "num_queries": 4, "query_width": 8, "heads": 2, "layers": 2, "ffn_width": 16, "mlp_width": 16,
    "encoder_channels": (8, 8, 8, 8, 8, 8), "upsampled_channels": (8, 8, 8, 8),
}  # fmt: skip


def propagators(name):
    return {"dis": Dis, "hold": Hold}[name]() if name in ("dis", "hold") else networks(name)


def run(segmentor, propagator, frames, carrier, direction="both", key_batch=1, interval=5, **options):
    video = VideoSegmenter(segmentor, propagator)
    inference = Inference(
        video.segment, segmentor.rule, propagator, network=segmentor, class_names=segmentor.class_names, **options
    )
    session = Session(
        make_carrier(inference, carrier), FixedInterval(interval), direction=direction, key_batch=key_batch
    )
    with session:
        return [result for frame in frames for result in session.push(frame)] + session.finish()


@pytest.fixture(autouse=True)
def whole_scores(monkeypatch):
    """Class scores of the CPU as they are, not quantised to 8 bits, which makes ties."""
    monkeypatch.setattr("mpvss.engine.carriers.class_scores.ClassScoreCarrier._top", lambda *_: None)


def alike(ours, others, least=0.9995):
    for one, other in zip(ours, others, strict=True):
        assert one.index == other.index and one.is_key == other.is_key and one.labels.dtype == other.labels.dtype
        assert (one.labels == other.labels).mean() >= (1 if one.is_key else least)


@pytest.mark.parametrize("direction", ["both", "forward"])
@pytest.mark.parametrize("motion", ["chain", "direct"])
@pytest.mark.parametrize("name", ["dis", "hold"])
@pytest.mark.parametrize("kind", [Colours, Pixels, Instances])
def test_labels_equal_those_of_the_cpu_but_for_ties(kind, name, motion, direction):
    frames = moving_frames(13, (61, 95))
    found = run(kind(), propagators(name), frames, None, direction, motion=motion)
    expected = run(kind(), propagators(name), frames, "class_scores", direction, motion=motion)
    alike(found, expected)
    moved = sum((one.labels != other.labels).any() for one, other in pairwise(found))
    assert moved > (8 if name == "dis" or direction == "both" else 1)


@pytest.mark.parametrize("size", [(61, 95), (128, 190)])
@pytest.mark.parametrize("classes", [3, 40, 300])
def test_any_number_of_classes_and_size_of_the_network(classes, size):
    frames = moving_frames(6, size)
    for kind in (Colours, Pixels):
        network = kind(classes, short_side=64)
        alike(run(network, Dis(), frames, None), run(network, Dis(), frames, "class_scores"))


@pytest.mark.parametrize("direction", ["both", "forward"])
@pytest.mark.parametrize("kind", [Colours, Pixels, Instances])
def test_confidence_and_least_scores_equal_those_of_the_cpu(kind, direction):
    frames = moving_frames(7)
    for options in ({"confidence": True}, {"min_score": 0.7}, {"classes": (0, 2)}):
        found = run(kind(), Dis(), frames, None, direction, **options)
        expected = run(kind(), Dis(), frames, "class_scores", direction, **options)
        alike(found, expected)
        if "confidence" in options:
            for one, other in zip(found, expected, strict=True):
                assert np.abs(one.confidence - other.confidence).mean() < 1e-3
        else:
            assert any((one.labels == 255).any() for one in found)


@pytest.mark.parametrize("key_batch", [2, 3, 7])
@pytest.mark.parametrize("direction", ["both", "forward"])
def test_key_frames_in_batches_give_the_same(key_batch, direction):
    frames, network = moving_frames(13), Colours()
    one_by_one = run(network, Dis(), frames, None, direction, interval=3)
    network.batches.clear()
    batched = run(network, Dis(), frames, None, direction, key_batch, interval=3)
    assert max(network.batches) == min(key_batch, 5)
    alike(batched, one_by_one, least=1)


def test_an_interval_longer_than_a_chunk_is_divided_without_a_seam():
    frames = moving_frames(24)
    alike(run(Colours(), Dis(), frames, None, interval=22), run(Colours(), Dis(), frames, "class_scores", interval=22))


@pytest.mark.parametrize("name", ["query", "flow"])
@pytest.mark.parametrize("motion", ["chain", "direct"])
@pytest.mark.parametrize("direction", ["both", "forward"])
def test_networks_of_motion_in_batches_equal_those_of_the_cpu(name, motion, direction):
    frames = moving_frames(7, (61, 95))
    carrier = {"query": "queries", "flow": "class_scores"}[name]
    for options in ({"motion": motion}, {"motion": motion, "tolerance": 0.5}):
        found = run(Colours(), propagators(name), frames, None, direction, **options)
        alike(found, run(Colours(), propagators(name), frames, carrier, direction, **options))


def test_pixels_have_no_queries():
    with pytest.raises(ModelError, match="has no queries: use a propagator that moves all classes alike"):
        run(Pixels(), networks("query"), moving_frames(2), None)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_scores_at_any_geometry_equal_those_of_arrays(geometry):
    from mpvss.engine.decode import class_scores
    from mpvss.engine.state import WarpedPrediction

    torch.manual_seed(1)
    logits, masks = torch.randn(6, 5), 4 * torch.randn(6, geometry.padded[0] // 4, geometry.padded[1] // 4)
    expected = class_scores([WarpedPrediction(logits.numpy(), masks.numpy())], geometry)
    found = tensors.query_scores(logits, masks[None], geometry)[0]
    np.testing.assert_allclose(found, expected, atol=2e-4)
    ids = np.arange(4)
    labels, _ = label_map(ClassScores(ids, expected, 4), geometry)
    winners, _ = tensors.winners(found[None], ids, geometry.source, num_classes=4)
    assert (winners[0].numpy() == labels).mean() > 0.998


def test_weights_equal_those_of_arrays():
    frames = moving_frames(2, (61, 93))
    flow = np.random.default_rng(0).normal(0, 1, (2, 16, 24)).astype(np.float32)
    small = [thumbnail(frame.rgb, (64, 96), (16, 24)) for frame in frames]
    expected = blend_weight(small[0], small[1], flow, 1, 4, (64, 96))
    thumbs = torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2)
    near = torch.tensor([0.75])
    found = tensors.blend_weights(thumbs[:1], thumbs[1:], torch.from_numpy(flow)[None], near, (64, 96))[0]
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_the_flow_that_shows_equals_that_of_arrays():
    torch.manual_seed(0)
    flow, logits, masks = torch.randn(3, 2, 8, 9), torch.randn(3, 4), torch.randn(3, 8, 9)
    found = tensors.visible_flows(flow[None], logits, masks[None])[0]
    np.testing.assert_array_equal(found, visible_flow(flow.numpy(), logits.numpy(), masks.numpy()))


def test_classes_of_either_side():
    one = tensors.TensorScores(np.array([1, 4]), torch.rand(2, 3, 3))
    other = tensors.TensorScores(np.array([0, 4]), torch.rand(2, 3, 3))
    wide = tensors.union(one, other)
    assert wide[0].ids.tolist() == wide[1].ids.tolist() == [0, 1, 4]
    assert not wide[0].planes[0].any() and torch.equal(wide[1].planes[2], other.planes[1])
    arrays = [ClassScores(side.ids, side.planes.numpy(), 5) for side in (one, other)]
    assert union_of_classes(*arrays).tolist() == [0, 1, 4]


def test_a_network_elsewhere_is_carried_there():
    video = VideoSegmenter(Colours(), Dis())
    assert not isinstance(video.session().carrier, DeviceCarrier)
    video.segmentor.device = torch.device("meta")
    assert isinstance(video.session().carrier, DeviceCarrier)


class Apple(TorchDispatchMode):
    """Stands for a device that has no doubles, and of each kind of operation only what torch 2.6 has for MPS."""

    absent = ("unique", "searchsorted", "grid_sampler_3d", "adaptive_avg_pool2d", "linalg", "median", "histc")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            assert not isinstance(value, torch.Tensor) or value.dtype != torch.float64, f"{func} gives a double"
        assert not any(name in str(func) for name in self.absent), f"{func} is not there"
        return result


@pytest.mark.parametrize(
    ("kind", "name"), [(Colours, "dis"), (Colours, "query"), (Colours, "flow"), (Pixels, "dis"), (Pixels, "flow")]
)
@pytest.mark.parametrize("direction", ["both", "forward"])
def test_nothing_asks_a_device_for_what_it_lacks(kind, name, direction, monkeypatch):
    monkeypatch.setattr("mpvss.engine.carriers.device.threads", lambda: 1)  # a mode belongs to one thread
    propagator, network, frames = propagators(name), kind(40), moving_frames(7, (61, 95))
    with Apple():
        for options in ({}, {"confidence": True, "min_score": 0.3, "classes": (0, 1)}):
            assert len(run(network, propagator, frames, None, direction, **options)) == 7
        with pytest.raises(AssertionError, match="gives a double"):
            torch.zeros(1).double()
        with pytest.raises(AssertionError, match="is not there"):
            torch.unique(torch.zeros(3))
