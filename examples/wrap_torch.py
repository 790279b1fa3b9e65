"""A module as torchvision has them, which answers {"out": logits (B, K, H, W)}, run on one frame in ten.

python examples/wrap_torch.py clip.mp4
"""

import sys

import torch
from torchvision.models.segmentation import LRASPP_MobileNet_V3_Large_Weights, lraspp_mobilenet_v3_large

import mpvss

weights = LRASPP_MobileNet_V3_Large_Weights.DEFAULT
model = lraspp_mobilenet_v3_large(weights=weights).eval()


@torch.inference_mode()
def segment(image):
    return model(weights.transforms()(torch.tensor(image).permute(2, 0, 1))[None])["out"][0]


segmenter = mpvss.wrap(segment, classes=weights.meta["categories"], output="logits")
if __name__ == "__main__":
    print(segmenter.process(sys.argv[1], "out", overwrite=True))
