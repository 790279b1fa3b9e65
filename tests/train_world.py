"""A tiny data set and a tiny segmentor on disk, and the configuration of a tiny run."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

CLASSES = ("sky", "road", "car")
SIZE = (64, 96)


def make_folder(root: Path, clips: int = 2, frames: int = 4, seed: int = 0) -> Path:
    """Textured blocks that move to the left by 3 pixels a frame, with the class of each block as label."""
    random = np.random.default_rng(seed)
    height, width = SIZE
    for clip in range(clips):
        wide = (height // 16, (width + 3 * frames) // 16 + 1)
        ids = np.kron(random.integers(0, 3, wide), np.ones((16, 16), np.int64)).astype(np.uint8)
        colours = random.integers(30, 226, (3, 3))[ids] + random.integers(-20, 21, (*ids.shape, 3))
        for kind in ("images", "labels"):
            (root / kind / f"clip{clip}").mkdir(parents=True)
        for i in range(frames):
            window = np.s_[:, 3 * i : 3 * i + width]
            smooth = cv2.GaussianBlur(colours[window].astype(np.uint8), (0, 0), 1.0)
            Image.fromarray(smooth).save(root / "images" / f"clip{clip}" / f"{i:03}.png")
            Image.fromarray(ids[window]).save(root / "labels" / f"clip{clip}" / f"{i:03}.png")
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return root


def make_segmentor(place: Path, num_labels: int = len(CLASSES)) -> Path:
    """A Mask2Former of a few thousand parameters."""
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, ResNetConfig

    torch.manual_seed(0)
    stages = ["stage1", "stage2", "stage3", "stage4"]
    backbone = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], out_features=stages)
    config = Mask2FormerConfig(
        backbone_config=backbone, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=32,
        encoder_layers=1, decoder_layers=3, num_attention_heads=2, dim_feedforward=32, num_queries=6,
        id2label=dict(enumerate(CLASSES[:num_labels])),
        label2id={name: index for index, name in enumerate(CLASSES[:num_labels])},
    )  # fmt: skip
    Mask2FormerForUniversalSegmentation(config).save_pretrained(place)
    rule = {"do_resize": False, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (place / "preprocessor_config.json").write_text(json.dumps(rule))
    return place


MOTION = {
    "encoder_channels": [8, 8, 8, 8], "encoder_kernels": [3, 3, 3, 3], "encoder_depths": [1, 1, 1, 1],
    "flow_stage": 1, "levels": 2, "upsampled_channels": [8, 8, 8], "layers": 2, "heads": 2, "ffn_width": 16,
    "mlp_width": 8,
}  # fmt: skip


def make_values(world: Path, out: Path, **changes: Any) -> dict[str, Any]:
    """The values of a motion run; ``changes`` are keys with two underscores for a dot."""
    values: dict[str, Any] = {
        "stage": "motion",
        "model": {"segmentor": str(world / "segmentor"), "propagator": "query", "motion": MOTION},
        "data": {
            "sources": [
                {"data": f"folder:{world / 'data'}"},
                {"data": f"folder:{world / 'data'}", "kind": "simulated"},
            ],
            "max_distance": 2,
            "crop": [64, 64],
            "scale": [0.9, 1.2],
        },
        "loss": {"points": 64, "flow": 0.5},
        "optim": {"steps": 6, "batch": 2, "lr": 1e-3, "clip_norm": 1.0},
        "run": {"out": str(out), "device": "cpu", "workers": 0, "log_every": 2, "save_every": 2, "pictures_every": 0},
    }
    for key, value in changes.items():
        *sections, last = key.split("__")
        place = values
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    return values
