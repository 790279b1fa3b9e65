"""The paper's six models have its shapes, and segmentor and motion module fit each other."""

import inspect

import pytest
import torch

from mpvss.convert.architectures import ARCHS, build, segmentor_config
from mpvss.convert.checkpoint import check_fits


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("num_classes", [124, 19])
def test_segmentor_and_motion_module_fit(arch, num_classes):
    with torch.device("meta"):
        model = build(arch, num_classes)
    config = model.segmentor.config
    assert model.segmentor.class_predictor.out_features == num_classes + 1
    assert (config.num_queries, config.encoder_layers, config.decoder_layers) == (100, 6, 10)
    assert len(model.segmentor.model.transformer_module.decoder.layers) == 9
    check_fits(model.motion, config.hidden_dim, config.num_queries)
    assert not model.segmentor.training
    assert not model.motion.training


def test_the_two_large_swins_have_windows_of_twelve():
    windows = {arch: segmentor_config(arch, 19).backbone_config.window_size for arch in ARCHS if "swin" in arch}
    assert windows == {"swin-t": 7, "swin-s": 7, "swin-b": 12, "swin-l": 12}


def test_another_number_of_queries_reaches_both_networks():
    with torch.device("meta"):
        model = build("r50", 19, num_queries=200)
    assert model.segmentor.config.num_queries == model.motion.config.num_queries == 200


def test_the_motion_module_takes_what_the_segmentor_gives():
    torch.manual_seed(0)
    model = build("r50", 19)
    image = torch.rand(1, 3, 64, 96) * 255
    with torch.inference_mode():
        out = model.segmentor(image / 255)
        flow = model.motion(image, image, out.transformer_decoder_last_hidden_state)
    assert out.class_queries_logits.shape == (1, 100, 20)
    assert out.masks_queries_logits.shape == (1, 100, 16, 24)
    assert flow.shape == (1, 100, 2, 8, 12)
    assert not flow.any()  # untrained, it holds the key frame's masks


def test_an_unknown_name_and_numbers_below_one_are_refused():
    with pytest.raises(ValueError, match=r"unknown architecture 'vgg'; expected one of r50, r101, swin-t"):
        inspect.unwrap(segmentor_config)("vgg", 19)  # below the checks of annotations, which only tests have
    with pytest.raises(ValueError, match="at least 1 class and 1 query, got 0 and 100"):
        segmentor_config("r50", 0)
