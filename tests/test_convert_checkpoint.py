"""Published checkpoints become ours without a number changed; whatever does not fit is named and refused."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, ResNetConfig, SwinConfig

from mpvss.convert.architectures import segmentor_config
from mpvss.convert.checkpoint import (
    check_fits,
    convert_motion_state_dict,
    convert_reference,
    convert_segmentor_state_dict,
    infer_segmentor_config,
    load_motion,
    segmentor_of,
)
from mpvss.errors import ModelError, OutputError
from mpvss.motion import PixelFlow, QueryFlow, QueryFlowConfig

SHAPES = json.loads((Path(__file__).parent / "data" / "motion_module_parameters.json").read_text())
TINY = QueryFlowConfig(
    num_queries=3,
    query_width=8,
    encoder_channels=(4, 6, 8),
    encoder_kernels=(3, 3, 3),
    encoder_depths=(1, 1, 1),
    levels=1,
    upsampled_channels=(4,),
    layers=1,
    heads=2,
    ffn_width=12,
    mlp_width=10,
)
# Theirs is on the left. Written from the original code's names, apart from the converter.
SEGMENTOR_NAMES = [
    (r"backbone.stem.conv1.norm.", "model.pixel_level_module.encoder.embedder.embedder.normalization."),
    (r"backbone.stem.conv1.", "model.pixel_level_module.encoder.embedder.embedder.convolution."),
    (r"backbone.patch_embed.proj.", "model.pixel_level_module.encoder.swin.embeddings.patch_embeddings.projection."),
    (r"backbone.patch_embed.norm.", "model.pixel_level_module.encoder.swin.embeddings.norm."),
    (r"sem_seg_head.pixel_decoder.transformer.level_embed", "model.pixel_level_module.decoder.level_embed"),
    (r"sem_seg_head.pixel_decoder.mask_features.", "model.pixel_level_module.decoder.mask_projection."),
    (r"sem_seg_head.pixel_decoder.adapter_1.norm.", "model.pixel_level_module.decoder.adapter_1.1."),
    (r"sem_seg_head.pixel_decoder.adapter_1.", "model.pixel_level_module.decoder.adapter_1.0."),
    (r"sem_seg_head.pixel_decoder.layer_1.norm.", "model.pixel_level_module.decoder.layer_1.1."),
    (r"sem_seg_head.pixel_decoder.layer_1.", "model.pixel_level_module.decoder.layer_1.0."),
    (r"sem_seg_head.pixel_decoder.input_proj.", "model.pixel_level_module.decoder.input_projections."),
    (r"sem_seg_head.predictor.query_feat.", "model.transformer_module.queries_features."),
    (r"sem_seg_head.predictor.query_embed.", "model.transformer_module.queries_embedder."),
    (r"sem_seg_head.predictor.level_embed.", "model.transformer_module.level_embed."),
    (r"sem_seg_head.predictor.decoder_norm.", "model.transformer_module.decoder.layernorm."),
    (r"sem_seg_head.predictor.class_embed.", "class_predictor."),
]
SEGMENTOR_PATTERNS = [
    (
        r"model\.pixel_level_module\.encoder\.encoder\.stages\.(\d+)\.layers\.(\d+)\.(layer\.(\d)|shortcut)\."
        r"(convolution|normalization)\.(.+)",
        lambda m: (
            f"backbone.res{int(m[1]) + 2}.{m[2]}."
            + ("shortcut." if m[3] == "shortcut" else f"conv{int(m[4]) + 1}.")
            + ("norm." if m[5] == "normalization" else "")
            + m[6]
        ),
    ),
    (
        r"model\.pixel_level_module\.encoder\.swin\.encoder\.layers\.(\d+)\.blocks\.(\d+)\.(.+)",
        lambda m: (
            f"backbone.layers.{m[1]}.blocks.{m[2]}."
            + m[3]
            .replace("attention.relative_position_bias.", "attn.")
            .replace("attention.o_proj", "attn.proj")
            .replace("layernorm_before", "norm1")
            .replace("layernorm_after", "norm2")
        ),
    ),
    (
        r"model\.pixel_level_module\.encoder\.swin\.encoder\.layers\.(\d+)\.(downsample\..+)",
        lambda m: f"backbone.layers.{m[1]}.{m[2]}",
    ),
    (
        r"model\.pixel_level_module\.encoder\.hidden_states_norms\.stage(\d)\.(.+)",
        lambda m: f"backbone.norm{int(m[1]) - 1}.{m[2]}",
    ),
    (
        r"model\.pixel_level_module\.decoder\.encoder\.(layers\.\d+\.)(.+)",
        lambda m: (
            f"sem_seg_head.pixel_decoder.transformer.encoder.{m[1]}"
            + m[2].replace("self_attn_layer_norm", "norm1").replace("final_layer_norm", "norm2").replace("fc", "linear")
        ),
    ),
    (
        r"model\.transformer_module\.decoder\.mask_predictor\.mask_embedder\.(\d)\.0\.(.+)",
        lambda m: f"sem_seg_head.predictor.mask_embed.layers.{m[1]}.{m[2]}",
    ),
    (
        r"model\.transformer_module\.decoder\.layers\.(\d+)\.cross_attn(_layer_norm)?\.(.+)",
        lambda m: (
            f"sem_seg_head.predictor.transformer_cross_attention_layers.{m[1]}."
            + ("norm." if m[2] else "multihead_attn.")
            + m[3]
        ),
    ),
    (
        r"model\.transformer_module\.decoder\.layers\.(\d+)\.self_attn(_layer_norm)?\.(.+)",
        lambda m: (
            f"sem_seg_head.predictor.transformer_self_attention_layers.{m[1]}."
            + ("norm." if m[2] else "self_attn.")
            + m[3]
        ),
    ),
    (
        r"model\.transformer_module\.decoder\.layers\.(\d+)\.(fc1|fc2|final_layer_norm)\.(.+)",
        lambda m: (
            f"sem_seg_head.predictor.transformer_ffn_layers.{m[1]}."
            + {"fc1": "linear1", "fc2": "linear2", "final_layer_norm": "norm"}[m[2]]
            + f".{m[3]}"
        ),
    ),
]
# What the library's model has more: without effect on its output.
EXTRA = re.compile(r".*num_batches_tracked|.*encoder\.swin\.layernorm\..*|criterion\.empty_weight")


def _original_name(name):
    for theirs, ours in SEGMENTOR_NAMES:
        if name.startswith(ours):
            return theirs + name[len(ours) :]
    for pattern, place in SEGMENTOR_PATTERNS:
        if match := re.fullmatch(pattern, name):
            return place(match)
    raise AssertionError(name)


def to_original(state):
    """Rename the library's Mask2Former to its original naming, with stacked query, key and value projections."""
    renamed = {_original_name(name): value for name, value in state.items() if not EXTRA.fullmatch(name)}
    out, stacks = {}, {}
    for name, value in renamed.items():
        if match := re.fullmatch(r"(.+\.self_attn)\.([qkv])_proj\.(weight|bias)", name):
            stacks.setdefault(f"{match[1]}.in_proj_{match[3]}", {})[match[2]] = value
        elif match := re.fullmatch(r"(.+)\.attention\.([qkv])_proj\.(weight|bias)", name):
            stacks.setdefault(f"{match[1]}.attn.qkv.{match[3]}", {})[match[2]] = value
        else:
            out[name] = value
    return out | {name: torch.cat([parts[part] for part in "qkv"]) for name, parts in stacks.items()}


def _small_segmentor(arch):
    """The paper's depths, every width shrunk: 5 queries of width 32, 4 classes."""
    real = segmentor_config(arch, 4).backbone_config
    stages = ["stage1", "stage2", "stage3", "stage4"]
    if arch.startswith("swin"):
        window = real.window_size
        backbone = SwinConfig(
            embed_dim=8, num_heads=[1, 2, 4, 8], depths=real.depths, window_size=window, out_features=stages
        )
    else:
        backbone = ResNetConfig(embedding_size=4, hidden_sizes=[8, 12, 16, 20], depths=real.depths, out_features=stages)
    config = Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=32,
        mask_feature_size=24,
        hidden_dim=32,
        encoder_feedforward_dim=40,
        encoder_layers=2,
        decoder_layers=4,
        dim_feedforward=36,
        num_attention_heads=4,
        num_queries=5,
        num_labels=4,
    )
    model = Mask2FormerForUniversalSegmentation(config).eval()
    generator = torch.Generator().manual_seed(0)
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not EXTRA.fullmatch(name):
            value.copy_(torch.randn(value.shape, generator=generator).mul_(0.1))
            if name.endswith("running_var"):
                value.abs_()
    return model


def _published_motion(queries=100, dtype=torch.float32):
    shapes = SHAPES | {"decoder.query_embed.weight": [queries, 256]}
    return {
        f"motion.{name}": torch.full(shape, math.sqrt(i)).to(dtype) for i, (name, shape) in enumerate(shapes.items())
    }


@pytest.mark.parametrize("arch", ["r50", "r101", "swin-t", "swin-s", "swin-b", "swin-l"])
def test_a_segmentor_in_its_original_naming_comes_back_whole(arch):
    model = _small_segmentor(arch)
    original = to_original(model.state_dict())
    config = infer_segmentor_config(original)
    for field in (
        *("num_queries", "num_labels", "hidden_dim", "feature_size", "mask_feature_size", "encoder_layers"),
        *("encoder_feedforward_dim", "decoder_layers", "dim_feedforward", "num_attention_heads"),
    ):
        assert getattr(config, field) == getattr(model.config, field), field
    for field in ("depths", "window_size", "num_heads", "embed_dim", "hidden_sizes", "embedding_size", "out_features"):
        assert getattr(config.backbone_config, field, None) == getattr(model.config.backbone_config, field, None), field
    converted = convert_segmentor_state_dict(original, config)
    expected = {name: value for name, value in model.state_dict().items() if not EXTRA.fullmatch(name)}
    assert converted.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(converted[name], value), name


@pytest.mark.parametrize("prefix", ["", "motion."])
def test_every_published_motion_parameter_has_one_place_and_keeps_its_dtype(prefix):
    published = {prefix + name.removeprefix("motion."): v for name, v in _published_motion(dtype=torch.float16).items()}
    converted = convert_motion_state_dict(published)
    assert len(converted) == len(published)
    assert sorted(v.flatten()[0].item() for v in converted.values()) == sorted(
        v.flatten()[0].item() for v in published.values()
    )
    assert {value.dtype for value in converted.values()} == {torch.float16}
    with torch.device("meta"):
        module = QueryFlow(num_queries=100)
    module.load_state_dict(converted, strict=True, assign=True)


def test_motion_parameters_that_do_not_fit_are_all_named():
    published = _published_motion()
    del published["motion.decoder.fuse_layer.conv.bias"]
    published["motion.decoder.extra"] = torch.zeros(1)
    published["motion.encoder.conv1.0.conv.weight"] = torch.zeros(64, 3, 7, 7)
    with pytest.raises(ModelError) as error:
        convert_motion_state_dict(published)
    lines = str(error.value).splitlines()
    assert lines[1:] == [
        "  missing: decoder.fuse_layer.conv.bias",
        "  unexpected: decoder.extra",
        "  misshapen: encoder.conv1.0.conv.weight, expected (64, 6, 7, 7), got (64, 3, 7, 7)",
    ]
    with pytest.raises(ModelError, match="missing: encoder"):
        convert_motion_state_dict({})


def test_segmentor_parameters_that_do_not_fit_are_all_named():
    model = _small_segmentor("swin-t")
    original = to_original(model.state_dict())
    config = infer_segmentor_config(original)
    del original["backbone.norm2.bias"]
    original["backbone.head.weight"] = torch.zeros(1)
    original["backbone.layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49)  # derived: no error
    original["backbone.layers.0.blocks.0.attn.qkv.weight"] = torch.zeros(16, 8)
    with pytest.raises(ModelError) as error:
        convert_segmentor_state_dict(original, config)
    assert str(error.value).splitlines()[1:] == [
        "  missing: backbone.norm2.bias",
        "  unexpected: backbone.head.weight",
        "  misshapen: backbone.layers.0.blocks.0.attn.qkv.weight, expected (24, 8), got (16, 8)",
    ]
    with pytest.raises(ModelError, match=r"backbone\.stem\.conv1\.weight' is missing"):
        infer_segmentor_config({})


def _reference_file(path, segmentor, queries=5, width=256):
    published = _published_motion(queries, torch.float16) | to_original(segmentor.state_dict())
    torch.save({"model": published, "iteration": 90000}, path)
    return published


@pytest.fixture(scope="module")
def wide_segmentor():
    """As narrow as its query width of 256, which the published motion module has, allows."""
    stages = ["stage1", "stage2", "stage3", "stage4"]
    config = Mask2FormerConfig(
        backbone_config=ResNetConfig(
            embedding_size=4, hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 1, 1], out_features=stages
        ),
        feature_size=256,
        mask_feature_size=32,
        hidden_dim=256,
        encoder_feedforward_dim=16,
        encoder_layers=1,
        decoder_layers=2,
        dim_feedforward=16,
        num_queries=5,
        num_labels=3,
    )
    return Mask2FormerForUniversalSegmentation(config).eval()


def test_a_reference_file_becomes_a_directory_that_loads(tmp_path, wide_segmentor):
    published = _reference_file(tmp_path / "reference.pth", wide_segmentor)
    convert_reference(tmp_path / "reference.pth", tmp_path / "out", ["road", "sky", "tree"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "reference.pth"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors", "segmentor"]

    motion = load_motion(tmp_path / "out")
    assert isinstance(motion, QueryFlow)
    assert motion.config == QueryFlowConfig(num_queries=5)
    assert torch.equal(motion.fusion.weight, published["motion.decoder.fuse_layer.conv.weight"])

    where = segmentor_of(tmp_path / "out")
    assert where == str(tmp_path / "out" / "segmentor")
    loaded = Mask2FormerForUniversalSegmentation.from_pretrained(where).eval()
    assert loaded.config.id2label == {0: "road", 1: "sky", 2: "tree"}
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, found = wide_segmentor(image), loaded(image)
    torch.testing.assert_close(found.masks_queries_logits, expected.masks_queries_logits, rtol=0, atol=0)
    torch.testing.assert_close(found.class_queries_logits, expected.class_queries_logits, rtol=0, atol=0)


def test_a_reference_that_does_not_fit_leaves_nothing_behind(tmp_path, wide_segmentor):
    _reference_file(tmp_path / "six.pth", wide_segmentor, queries=6)
    with pytest.raises(ModelError, match="for 6 queries of width 256, the segmentor has 5 of width 256"):
        convert_reference(tmp_path / "six.pth", tmp_path / "out")
    torch.save({"model": to_original(wide_segmentor.state_dict())}, tmp_path / "none.pth")
    with pytest.raises(ModelError, match="missing: decoder"):
        convert_reference(tmp_path / "none.pth", tmp_path / "out")
    (tmp_path / "text.pth").write_text("not a checkpoint")
    with pytest.raises(ModelError, match="checkpoint"):
        convert_reference(tmp_path / "text.pth", tmp_path / "out")
    torch.save({"model": {"optimizer": 3}}, tmp_path / "other.pth")
    with pytest.raises(ModelError, match="expected a state dict, alone or below 'model'"):
        convert_reference(tmp_path / "other.pth", tmp_path / "out")
    with pytest.raises(ModelError, match="expected a checkpoint file, got none"):
        convert_reference(tmp_path / "absent.pth", tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Payload:
    """What a hostile file would hold: code that runs when it is unpickled."""

    def __reduce__(self):
        return (np.savetxt, ("/dev/null", [1.0]))


def test_only_tensors_are_unpickled(tmp_path):
    torch.save({"model": {"weight": torch.zeros(1)}, "trainer": Payload()}, tmp_path / "hostile.pth")
    with pytest.raises(ModelError, match="Loading other objects could run code"):
        convert_reference(tmp_path / "hostile.pth", tmp_path / "out")


def test_a_directory_with_files_is_not_written_to(tmp_path, wide_segmentor):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(OutputError, match="exists already"):
        convert_reference(tmp_path / "reference.pth", tmp_path / "out")


@pytest.mark.parametrize("kind", [QueryFlow, PixelFlow])
def test_a_saved_module_comes_back_equal(tmp_path, kind):
    module = kind(replace(TINY, query_source="learned")).double()
    module.segmentor = "owner/segmentor"
    module.save_pretrained(tmp_path / "here")
    loaded = load_motion(tmp_path / "here")
    assert type(loaded) is kind
    assert loaded.config == module.config
    assert loaded.segmentor == segmentor_of(tmp_path / "here") == "owner/segmentor"
    assert not loaded.training
    for name, value in module.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
        assert loaded.state_dict()[name].dtype == torch.float64
    assert sorted(p.name for p in (tmp_path / "here").iterdir()) == ["config.json", "model.safetensors"]


def test_a_checkpoint_that_is_not_whole_is_refused(tmp_path):
    QueryFlow(TINY).save_pretrained(tmp_path)
    config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    text, state = config.read_text(), load_file(weights)

    for change, message in (
        ({"widht": 3}, "unknown key widht"),
        ({"layers": 0}, "layers must be at least 1"),
        ({"schema_version": 2}, "schema version 2 is not 1"),
        ({"model_type": "detr"}, "expected a model of type query_flow"),
        ({"segmentor": 3}, "segmentor must be a name or null"),
    ):
        config.write_text(json.dumps(json.loads(text) | change))
        with pytest.raises(ModelError, match=message):
            QueryFlow.from_pretrained(tmp_path)
    config.write_text("{")
    with pytest.raises(ModelError, match="not a JSON file"):
        QueryFlow.from_pretrained(tmp_path)

    config.write_text(text)
    broken = {name: value for name, value in state.items() if name != "fusion.bias"}
    broken["norm.weight"] = torch.zeros(9)
    broken["more"] = torch.zeros(1)
    save_file(broken, weights)
    with pytest.raises(ModelError) as error:
        QueryFlow.from_pretrained(tmp_path)
    assert str(error.value).splitlines()[1:] == [
        "  missing: fusion.bias (2,)",
        "  unexpected: more",
        "  misshapen: norm.weight, expected (8,), got (9,)",
    ]
    weights.write_bytes(b"nothing")
    with pytest.raises(ModelError, match=r"model\.safetensors cannot be read"):
        QueryFlow.from_pretrained(tmp_path)
    weights.unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors is missing"):
        QueryFlow.from_pretrained(tmp_path)
    with pytest.raises(ModelError, match="expected a model of type pixel_flow, got 'query_flow'"):
        PixelFlow.from_pretrained(tmp_path)


def test_publishing_uploads_the_same_directory(tmp_path, monkeypatch):
    uploads = []

    class Hub:
        def create_repo(self, repository, private, exist_ok):
            assert exist_ok
            return type("Url", (str,), {"repo_id": repository})(f"https://hub/{repository}")

        def upload_folder(self, repo_id, folder_path, revision):
            uploads.append((repo_id, sorted(p.name for p in Path(folder_path).iterdir())))

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    assert QueryFlow(TINY).push_to_hub("owner/name") == "https://hub/owner/name"
    assert uploads == [("owner/name", ["config.json", "model.safetensors"])]


def test_a_motion_module_of_another_segmentor_is_refused():
    module = QueryFlow(TINY)
    check_fits(module, query_width=8, num_queries=3)
    with pytest.raises(ModelError, match="3 queries of width 8, the segmentor has 3 of width 16"):
        check_fits(module, query_width=16, num_queries=3)
    with pytest.raises(ModelError, match="3 queries of width 8, the segmentor has 100 of width 8"):
        check_fits(module, query_width=8, num_queries=100)
    check_fits(PixelFlow(TINY), query_width=16, num_queries=100)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": 10**9}, "layers and encoder_depths must be at most 1000 in all"),
        ({"ffn_width": 2**40}, "the weights do not fit"),
        ({"mlp_width": 2**62}, "impossible size"),
        ({"seed": 2**64}, "seed must be from 0"),
    ],
)
def test_a_module_that_its_weights_cannot_be_is_refused_before_it_takes_memory(tmp_path, change, message):
    QueryFlow(TINY).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelError, match=message):
        QueryFlow.from_pretrained(tmp_path)


def test_a_tensor_of_more_values_than_the_file_holds_is_refused(tmp_path):
    """A view of a single number may have any shape, and would have to be written out."""
    torch.save({"a": torch.zeros(1).expand(10**6, 10**6)}, tmp_path / "a.pth")
    with pytest.raises(ModelError, match="'a' has more values than the file holds"):
        convert_reference(tmp_path / "a.pth", tmp_path / "out")


def _pointing(folder, segmentor):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "query_flow", "segmentor": segmentor}))
    return folder


def test_a_motion_module_points_below_its_own_directory_or_to_the_hub_or_where_the_user_says(tmp_path, monkeypatch):
    (tmp_path / "outside").mkdir()
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "motion"
    for inside in ("segmentor", "a/b"):
        (folder / inside).mkdir(parents=True)
        assert segmentor_of(_pointing(folder, inside)) == str(folder / inside)
    for known in ("compact", "someone/something", None):
        assert segmentor_of(_pointing(folder, known)) == known
    (folder / "link").symlink_to(tmp_path / "outside")
    for wrong in (
        str(tmp_path / "outside"),
        "../outside",
        "outside",
        "owner/name",
        "link",
        "./outside",
        "~/x",
        "a/b/c",
    ):
        with pytest.raises(ModelError, match="expected a segmentor below this directory or a hub id"):
            segmentor_of(_pointing(folder, wrong))
    monkeypatch.setenv("MPVSS_SEGMENTOR", str(tmp_path / "outside"))
    assert segmentor_of(folder) == str(tmp_path / "outside")
