"""EfficientNet-Lite0 equals a plain function of the published weights, their names and paddings written down here."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoBackbone, AutoConfig

from compact import convert_imagenet_state_dict
from mpvss.segmentors.efficientnet import (
    EfficientNetLiteBackbone,
    EfficientNetLiteConfig,
    _SameConv,
    fold_batch_norm,
    register,
)

STAGES = ["stage1", "stage2", "stage3", "stage4"]
CHANNELS, STRIDES = (24, 40, 112, 320), (4, 8, 16, 32)
# Table 1 of the paper: repeats, kernel, stride, expansion, input and output channels; Lite keeps the widths of B0.
TABLE = (
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)


def blocks():
    """Number, kernel, stride, expansion, input and output channels of each block."""
    number = 0
    for repeats, kernel, stride, expansion, inputs, outputs in TABLE:
        for repeat in range(repeats):
            yield number, kernel, stride if repeat == 0 else 1, expansion, inputs if repeat == 0 else outputs, outputs
            number += 1


def published(seed=0):
    """Random weights under the names of the published file, the classification head included."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}

    def conv(name, outputs, inputs, kernel):
        scale = 1.5 / math.sqrt(inputs * kernel * kernel)
        weights[f"{name}.weight"] = scale * torch.randn(outputs, inputs, kernel, kernel, generator=generator)

    def norm(name, channels):
        weights[f"{name}.weight"] = 0.5 + torch.rand(channels, generator=generator)
        weights[f"{name}.bias"] = 0.3 * torch.randn(channels, generator=generator)
        weights[f"{name}.running_mean"] = 0.3 * torch.randn(channels, generator=generator)
        weights[f"{name}.running_var"] = 0.5 + torch.rand(channels, generator=generator)
        weights[f"{name}.num_batches_tracked"] = torch.tensor(7)

    conv("_conv_stem", 32, 3, 3)
    norm("_bn0", 32)
    for number, kernel, _, expansion, inputs, outputs in blocks():
        inner = inputs * expansion
        if expansion > 1:
            conv(f"_blocks.{number}._expand_conv", inner, inputs, 1)
            norm(f"_blocks.{number}._bn0", inner)
        conv(f"_blocks.{number}._depthwise_conv", inner, 1, kernel)
        norm(f"_blocks.{number}._bn1", inner)
        conv(f"_blocks.{number}._project_conv", outputs, inner, 1)
        norm(f"_blocks.{number}._bn2", outputs)
    conv("_conv_head", 1280, 320, 1)
    norm("_bn1", 1280)
    weights["_fc.weight"], weights["_fc.bias"] = torch.zeros(1000, 1280), torch.zeros(1000)
    return weights


def same(x, weight, stride, groups=1):
    """Convolution as TensorFlow pads it: ceil(n / stride) pixels come out; an odd pixel more goes right and below."""
    kernel = weight.shape[-1]
    pads = [max((math.ceil(n / stride) - 1) * stride + kernel - n, 0) for n in x.shape[-2:]]
    (top, bottom), (left, right) = ((pad // 2, pad - pad // 2) for pad in pads)
    return F.conv2d(F.pad(x, (left, right, top, bottom)), weight, stride=stride, groups=groups)


def reference(weights, x):
    """The features at strides 4, 8, 16 and 32, from the published weights."""

    def norm(x, name):
        values = [weights[f"{name}.{leaf}"] for leaf in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *values, eps=1e-3)

    x = norm(same(x, weights["_conv_stem.weight"], 2), "_bn0").clamp(0, 6)
    features, last = {}, list(blocks())[-1][0]
    for number, _, stride, expansion, inputs, outputs in blocks():
        block, before = f"_blocks.{number}", x
        if stride == 2:
            features[before.shape[-1]] = before
        if expansion > 1:
            x = norm(same(x, weights[f"{block}._expand_conv.weight"], 1), f"{block}._bn0").clamp(0, 6)
        x = norm(same(x, weights[f"{block}._depthwise_conv.weight"], stride, x.shape[1]), f"{block}._bn1").clamp(0, 6)
        x = norm(same(x, weights[f"{block}._project_conv.weight"], 1), f"{block}._bn2")
        if stride == 1 and inputs == outputs:
            x = x + before
        if number == last:
            features[x.shape[-1]] = x
    return list(features.values())[1:]  # without stride 2


@pytest.fixture(scope="module")
def backbone():
    model = EfficientNetLiteBackbone(EfficientNetLiteConfig(out_features=STAGES)).eval()
    model.load_state_dict(convert_imagenet_state_dict(published()), strict=True)
    return model


def features(model, x):
    with torch.inference_mode():
        return model(x).feature_maps


@pytest.mark.parametrize("size", [(32, 64), (96, 160), (224, 224)])
def test_features_equal_a_plain_function_of_the_published_weights(size, backbone):
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    found, expected = features(backbone, x), reference(published(), x)
    assert [tuple(map_.shape) for map_ in found] == [
        (2, channels, size[0] // stride, size[1] // stride) for channels, stride in zip(CHANNELS, STRIDES, strict=True)
    ]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)
        assert ours.std() > 0.1


def test_batch_norms_fold_into_the_convolutions_and_change_nothing(backbone):
    x = torch.randn(2, 3, 96, 160, generator=torch.Generator().manual_seed(1))
    folded = copy.deepcopy(backbone)
    fold_batch_norm(folded)
    assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in folded.modules())
    for ours, theirs in zip(features(folded, x), features(backbone, x), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)
    fold_batch_norm(folded)  # nothing is left to fold
    torch.testing.assert_close(features(folded, x)[0], features(backbone, x)[0], atol=1e-3, rtol=1e-3)


def test_the_converter_fills_every_weight_once_and_takes_all_but_the_head():
    weights = published()
    converted = convert_imagenet_state_dict(weights)
    model = EfficientNetLiteBackbone(EfficientNetLiteConfig())
    assert set(converted) == set(model.state_dict())
    assert {name: value.shape for name, value in converted.items()} == {
        name: value.shape for name, value in model.state_dict().items()
    }
    head = ("_conv_head.", "_fc.", "_bn1.")
    taken = [value for name, value in weights.items() if not name.startswith(head)]
    assert sorted(map(id, taken)) == sorted(map(id, converted.values()))


def test_a_weight_that_the_file_lacks_is_missed():
    weights = published()
    del weights["_blocks.3._bn1.bias"]
    with pytest.raises(RuntimeError, match=r"Missing key.*groups\.2\.0\.layers\.4\.bias"):
        EfficientNetLiteBackbone(EfficientNetLiteConfig()).load_state_dict(convert_imagenet_state_dict(weights))


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (5, 1), (3, 2), (5, 2)])
@pytest.mark.parametrize("size", [(8, 12), (10, 6)])
def test_a_convolution_pads_even_sizes_as_tensorflow_does(kernel, stride, size):
    conv = _SameConv(4, 6, kernel, stride)
    x = torch.randn(1, 4, *size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(conv(x), same(x, conv.weight, stride))


def test_it_is_known_to_the_library_and_registering_again_does_nothing():
    register()
    register()
    config = AutoConfig.for_model("efficientnet_lite", out_features=STAGES)
    assert isinstance(config, EfficientNetLiteConfig)
    backbone = AutoBackbone.from_config(config)
    assert isinstance(backbone, EfficientNetLiteBackbone)
    assert list(backbone.channels) == list(CHANNELS)
    assert config.stage_names == STAGES


@pytest.mark.parametrize("wanted", [["stage4"], ["stage2", "stage3"], STAGES])
def test_only_the_wanted_stages_are_returned(wanted, backbone):
    config = EfficientNetLiteConfig(out_features=wanted)
    model = EfficientNetLiteBackbone(config).eval()
    model.load_state_dict(backbone.state_dict())
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    found, everything = features(model, x), features(backbone, x)
    assert list(model.channels) == [CHANNELS[STAGES.index(stage)] for stage in wanted]
    for stage, map_ in zip(wanted, found, strict=True):
        torch.testing.assert_close(map_, everything[STAGES.index(stage)])


def test_saved_and_loaded_it_is_the_same_twice(backbone, tmp_path):
    register()
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    backbone.save_pretrained(tmp_path / "one")
    first = EfficientNetLiteBackbone.from_pretrained(tmp_path / "one")
    first.save_pretrained(tmp_path / "two")
    second = EfficientNetLiteBackbone.from_pretrained(tmp_path / "two")
    for model in (first, second):
        assert model.config.out_features == STAGES
        for ours, theirs in zip(features(model.eval(), x), features(backbone, x), strict=True):
            assert torch.equal(ours, theirs)
