"""A YOLO segmentation model of Ultralytics (AGPL-3.0), run on one frame in ten.

pip install mpvss ultralytics
python examples/wrap_ultralytics.py clip.mp4
"""

import sys

from ultralytics import YOLO

import mpvss

model = YOLO("yolo11n-seg.pt")


def segment(image):
    result = model(image[..., ::-1].copy(), retina_masks=True, verbose=False)[0]  # which takes BGR
    masks = [] if result.masks is None else result.masks.data
    return list(zip(masks, result.boxes.cls, result.boxes.conf, strict=False))


segmenter = mpvss.wrap(segment, classes=list(model.names.values()), output="masks")
if __name__ == "__main__":
    print(segmenter.process(sys.argv[1], "out", overwrite=True))
