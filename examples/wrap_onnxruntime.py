"""An ONNX file of one's own, from images (1, 3, H, W) to logits (1, K, h, w), run on one frame in ten.

MODEL=model.onnx CLASSES=road,car python examples/wrap_onnxruntime.py clip.mp4
"""

import os
import sys

import numpy as np
import onnxruntime

import mpvss

session = onnxruntime.InferenceSession(os.environ["MODEL"])


def segment(image):
    pixels = (image / np.float32(255) - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])
    return session.run(None, {session.get_inputs()[0].name: pixels.transpose(2, 0, 1)[None]})[0][0]


segmenter = mpvss.wrap(segment, classes=os.environ["CLASSES"].split(","), output="logits")
if __name__ == "__main__":
    print(segmenter.process(sys.argv[1], "out", overwrite=True))
