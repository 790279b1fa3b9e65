"""Time of a key frame for each family of models, at the size of its published checkpoints, with random weights.

    python benchmarks/families.py [FAMILY ...]

One image, one thread unless OMP_NUM_THREADS says otherwise; the second of two runs. Needs mpvss[torch].
"""

import os
import sys
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import transformers as lib

from mpvss.segmentors import InputRule
from mpvss.segmentors.families import require_family
from mpvss.segmentors.huggingface import HuggingFaceSegmentor

_ADE = {"num_labels": 150}
_STAGES = ["stage1", "stage2", "stage3", "stage4"]
_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
_BASE = {"out_indices": [4, 6, 8, 12], "image_size": 640, "use_relative_position_bias": True, **_ADE}

# Model class, its configuration, height and width: SegFormer-B0, UPerNet Swin-T, BEiT-B, Data2Vec-B, DPT-L and so on.
NETWORKS = {
    "segformer": ("SegformerForSemanticSegmentation", lambda: lib.SegformerConfig(**_ADE), (512, 512)),
    "upernet": (
        "UperNetForSemanticSegmentation",
        lambda: lib.UperNetConfig(
            backbone_config=lib.SwinConfig(out_features=_STAGES), use_auxiliary_head=False, **_ADE
        ),
        (512, 512),
    ),
    "beit": ("BeitForSemanticSegmentation", lambda: lib.BeitConfig(**_BASE), (640, 640)),
    "data2vec-vision": (
        "Data2VecVisionForSemanticSegmentation",
        lambda: lib.Data2VecVisionConfig(**{**_BASE, "image_size": 512, "out_indices": [3, 5, 7, 11]}),
        (512, 512),
    ),
    "dpt": (
        "DPTForSemanticSegmentation",
        lambda: lib.DPTConfig(
            **_LARGE, intermediate_size=4096, image_size=480, backbone_out_indices=[5, 11, 17, 23],
            neck_hidden_sizes=[256, 512, 1024, 1024], **_ADE,
        ),
        (480, 480),
    ),
    "mobilevit": ("MobileViTForSemanticSegmentation", lambda: lib.MobileViTConfig(num_labels=21), (512, 512)),
    "mobilevitv2": ("MobileViTV2ForSemanticSegmentation", lambda: lib.MobileViTV2Config(num_labels=21), (512, 512)),
    "mobilenet_v2": ("MobileNetV2ForSemanticSegmentation", lambda: lib.MobileNetV2Config(num_labels=21), (513, 513)),
    "tipsv2_dpt": ("Tipsv2DptForSemanticSegmentation", lambda: lib.Tipsv2DptConfig(**_ADE), (448, 448)),
    "detr": (
        "DetrForSegmentation",
        lambda: lib.DetrConfig(
            backbone_config=lib.ResNetConfig(out_features=_STAGES), use_timm_backbone=False, num_labels=250
        ),
        (800, 1066),
    ),
    "rf_detr": (
        "RfDetrForInstanceSegmentation",
        lambda: lib.RfDetrConfig(
            backbone_config=lib.RfDetrDinov2Config(
                hidden_size=384, num_attention_heads=6, num_hidden_layers=12, patch_size=12, num_windows=2,
                image_size=432, out_features=["stage3", "stage6", "stage9", "stage12"],
            ),
            num_queries=100, num_labels=91,
        ),
        (432, 432),
    ),
    "videomt": (
        "VideomtForUniversalSegmentation",
        lambda: lib.VideomtConfig(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, num_labels=40),
        (640, 640),
    ),
    "eomt_dinov3": ("EomtDinov3ForUniversalSegmentation", lambda: lib.EomtDinov3Config(**_ADE), (640, 640)),
    "sam3": ("Sam3Model", lib.Sam3Config, (1008, 1008)),
}  # fmt: skip


def main() -> None:
    """Print a line for each family."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    for name in sys.argv[1:] or NETWORKS:
        kind, config, size = NETWORKS[name]
        model = getattr(lib, kind)(config())
        prompts = ("road", "car") if require_family(name, model.config).promptable else ()
        task = torch.ones(2, len(prompts), 32, dtype=torch.int64) if prompts else None
        segmentor = HuggingFaceSegmentor(model, InputRule(multiple=1), task=task, prompts=prompts)
        images = np.random.default_rng(0).integers(0, 256, (1, *size, 3), np.uint8)
        for _ in range(2):
            begin = time.perf_counter(), time.process_time()
            answer = segmentor(images)
        wall, cpu = time.perf_counter() - begin[0], time.process_time() - begin[1]
        grid = getattr(answer, "scores", getattr(answer, "mask_logits", None)).shape[2:]
        millions = sum(each.numel() for each in model.parameters()) / 1e6
        shape = f"{size[0]}x{size[1]}  grid {grid[0]}x{grid[1]}"
        print(f"{name:16} {millions:6.1f} M  {shape}  {wall:.2f} s ({cpu:.2f} of CPU)", flush=True)
        del model, segmentor


if __name__ == "__main__":
    main()
