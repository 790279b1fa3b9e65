"""Laws of the learned propagators in the pipeline."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from helpers import ColourSegmentor, moving_frames
from mpvss.convert.checkpoint import check_fits
from mpvss.engine.state import KeyState
from mpvss.errors import ModelError
from mpvss.motion import PixelFlow, QueryFlow, QueryFlowConfig
from mpvss.motion.dis import Hold
from mpvss.motion.learned import LearnedFlow
from mpvss.motion.propagators import make_propagator
from mpvss.segmenter import VideoSegmenter
from mpvss.types import Frame, Geometry

TINY = QueryFlowConfig(
    num_queries=4,
    query_width=8,
    encoder_channels=(4, 8, 8, 8, 8, 8),
    encoder_kernels=(3, 3, 3, 3, 3, 3),
    encoder_depths=(1, 1, 1, 1, 1, 1),
    upsampled_channels=(4, 4, 4, 4),
    layers=3,
    heads=2,
    ffn_width=16,
    mlp_width=16,
)
KINDS = {"query": QueryFlow, "flow": PixelFlow}


def trained_looking(module, seed=0):
    """Random weights, as no training leaves zeros anywhere."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return module


def images(count, size=(64, 96)):
    return np.stack([frame.rgb for frame in moving_frames(count, size)])


def tensors(count):
    return torch.from_numpy(images(count)).permute(0, 3, 1, 2)


def random_queries(seed=0):
    return np.random.default_rng(seed).standard_normal((1, 4, 8), np.float32)


def run(propagator, frames, direction="forward", motion="direct", tolerance=0.0, interval=5):
    segmenter = VideoSegmenter(
        ColourSegmentor(), propagator, motion=motion, interval=interval, cuts=False, tolerance=tolerance
    )
    return list(segmenter.stream(frames, direction=direction))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("motion", ["direct", "chain"])
@pytest.mark.parametrize("direction", ["forward", "both"])
def test_an_untrained_module_holds(name, motion, direction):
    frames = moving_frames(8)
    ours = run(LearnedFlow(KINDS[name](TINY)), frames, direction, motion)
    hold = run(Hold(), frames, direction, motion)
    # Class scores are carried as bytes, masks are not: ties aside.
    assert np.mean([(a.labels == b.labels).mean() for a, b in zip(ours, hold, strict=True)]) > 0.995


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_untrained_module_leaves_the_masks_where_they_are(dtype):
    bound = 1e-3 if dtype == torch.float32 else 1e-9
    masks = torch.randn(4, 16, 24, dtype=dtype, generator=torch.Generator().manual_seed(0)) * 5
    flow = QueryFlow(TINY).to(dtype)(tensors(1).to(dtype), tensors(1).to(dtype), torch.randn(1, 4, 8, dtype=dtype))
    from mpvss.motion.warp import resize_flow, warp

    warped = warp(masks[:, None], resize_flow(flow[0], (16, 24)))[:, 0]
    assert (warped - masks).abs().max() <= bound


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("motion", ["direct", "chain"])
@pytest.mark.parametrize("direction", ["forward", "both"])
def test_a_trained_module_moves_masks(name, motion, direction):
    frames = moving_frames(8)
    ours = run(LearnedFlow(trained_looking(KINDS[name](TINY))), frames, direction, motion)
    hold = run(Hold(), frames, direction, motion)
    assert np.mean([(a.labels == b.labels).mean() for a, b in zip(ours, hold, strict=True)]) < 0.98


def test_a_batch_of_frames_with_one_key_frame_equals_one_at_a_time():
    module = LearnedFlow(trained_looking(QueryFlow(TINY)))
    pictures, queries = images(4), random_queries()
    arguments = (queries, (64, 96), (16, 24))
    batch = module.estimate_flow(pictures[1:], pictures[:1], *arguments)
    single = np.concatenate([module.estimate_flow(p[None], pictures[:1], *arguments) for p in pictures[1:]])
    np.testing.assert_allclose(batch, single, atol=1e-5, rtol=1e-4)


def test_active_queries_have_the_same_flow_as_among_all():
    module = LearnedFlow(trained_looking(QueryFlow(TINY)))
    pictures, queries, active = images(2), random_queries(), np.array([1, 3])
    whole = module.estimate_flow(pictures[1:], pictures[:1], queries, (64, 96), (16, 24))
    some = module.estimate_flow(pictures[1:], pictures[:1], queries, (64, 96), (16, 24), active)
    np.testing.assert_allclose(some, whole[:, active], atol=1e-5, rtol=1e-4)


def key_state(class_logits):
    queries = len(class_logits)
    frame = Frame(0, Fraction(0), np.zeros((8, 8, 3), np.uint8))
    random = np.random.default_rng(1)
    masks = random.standard_normal((queries, 2, 2), np.float32) * 5
    embeddings = random.standard_normal((queries, 8), np.float32)
    return KeyState(frame, frame.rgb, class_logits, masks, embeddings, Geometry((8, 8), (8, 8), (8, 8)))


@pytest.mark.parametrize("tolerance", [0.0, 0.001, 0.05, 0.5, 10.0])
def test_leaving_queries_out_changes_no_score_by_more_than_the_tolerance(tolerance):
    from mpvss.engine.decode import class_scores
    from mpvss.engine.state import WarpedPrediction

    logits = np.random.default_rng(0).standard_normal((30, 6), np.float32) * 3
    logits[:, -1] += 6
    key = key_state(logits)
    kept = key.only_active(tolerance)
    whole = class_scores([WarpedPrediction(key.class_logits, key.mask_logits)], key.geometry)
    some = class_scores([WarpedPrediction(kept.class_logits, kept.mask_logits)], key.geometry)
    assert np.abs(whole - some).max() <= tolerance + 1e-6
    assert len(kept.queries) == 30
    assert 1 <= len(kept.class_logits) < 30 if tolerance >= 0.05 else len(kept.class_logits) <= 30
    if kept.active is not None:
        np.testing.assert_array_equal(kept.mask_logits, key.mask_logits[kept.active])


def test_zero_tolerance_keeps_every_query_that_says_anything():
    assert key_state(np.random.default_rng(0).standard_normal((5, 4), np.float32)).only_active(0.0).active is None
    silent = np.zeros((5, 4), np.float32)
    silent[2, -1] = 1e4
    assert key_state(silent).only_active(0.0).active.tolist() == [0, 1, 3, 4]


def test_a_small_tolerance_gives_the_same_labels():
    frames = moving_frames(6)
    propagator = LearnedFlow(trained_looking(QueryFlow(TINY)))
    for a, b in zip(run(propagator, frames), run(propagator, frames, tolerance=0.01), strict=True):
        assert (a.labels == b.labels).mean() > 0.999


def test_errors_say_what_to_do():
    with pytest.raises(ModelError, match=r"needs a motion module.*propagator dis"):
        make_propagator("query")
    with pytest.raises(ModelError, match="query was asked for, the checkpoint has a motion module for flow"):
        make_propagator("query", PixelFlow(TINY))
    with pytest.raises(ValueError, match="must be one of auto, query, flow, dis, codec, hold, none"):
        make_propagator("magic")
    with pytest.raises(ModelError, match="4 queries of width 8, the segmentor has 100 of width 256"):
        check_fits(QueryFlow(TINY), 256, 100)
    module = LearnedFlow(QueryFlow(TINY))
    with pytest.raises(ValueError, match="expects the key frame's queries"):
        module.estimate_flow(images(1), images(1), None, (64, 96), (16, 24))
    with pytest.raises(ValueError, match=r"flow covers .*, the grid .* covers"):
        module.estimate_flow(images(1), images(1), random_queries(), (80, 96), (20, 24))


def test_a_checkpoint_names_its_segmentor_and_is_loaded_by_its_directory(tmp_path):
    from mpvss.segmentors import load_segmentor

    compact = load_segmentor("compact")
    config = QueryFlowConfig(**(vars(TINY) | {"num_queries": compact.num_queries, "query_width": compact.query_width}))
    module = QueryFlow(config)
    module.segmentor = "compact"
    module.save_pretrained(tmp_path)
    segmenter = VideoSegmenter.from_pretrained(tmp_path, propagator="query", device="cpu")
    assert segmenter.segmentor.name == "compact"
    assert [r.is_key for r in segmenter.stream(moving_frames(3), direction="forward")] == [True, False, False]
    assert VideoSegmenter.from_pretrained(tmp_path, propagator="hold", device="cpu").propagator.name == "hold"
    module = QueryFlow(TINY)
    module.segmentor = "compact"
    module.save_pretrained(tmp_path / "other")
    with pytest.raises(ModelError, match="4 queries of width 8, the segmentor has 32 of width 128"):
        VideoSegmenter.from_pretrained(tmp_path / "other", propagator="query", device="cpu")


@pytest.mark.parametrize("name", KINDS)
def test_a_flow_that_is_no_number_is_said(name):
    module = KINDS[name](TINY)
    with torch.no_grad():
        for parameter in module.pixel_flow.parameters():
            parameter.fill_(torch.nan)
    with pytest.raises(ModelError, match="the motion module's flow is not finite; its weights are damaged"):
        run(LearnedFlow(module), moving_frames(3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_module_of_another_precision_runs_on_a_cpu(dtype):
    module = trained_looking(PixelFlow(TINY)).to(dtype)
    pictures = images(1)
    flow = LearnedFlow(module).estimate_flow(pictures, pictures, None, (64, 96), (16, 24))
    assert flow.dtype == np.float32 and np.isfinite(flow).all()
