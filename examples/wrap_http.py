"""A model behind HTTP that takes a JPEG and answers with a PNG of class ids, asked about one frame in ten.

ENDPOINT=http://localhost:8601/ CLASSES=background,person python examples/wrap_http.py clip.mp4
"""

import os
import sys
from urllib.request import Request, urlopen

import cv2
import numpy as np

import mpvss


def segment(image):
    jpeg = cv2.imencode(".jpg", image[..., ::-1])[1].tobytes()
    with urlopen(Request(os.environ["ENDPOINT"], jpeg, {"Content-Type": "image/jpeg"}), timeout=30) as answer:
        return cv2.imdecode(np.frombuffer(answer.read(), np.uint8), cv2.IMREAD_GRAYSCALE)


segmenter = mpvss.wrap(segment, classes=os.environ["CLASSES"].split(","))
if __name__ == "__main__":
    print(segmenter.process(sys.argv[1], "out", overwrite=True))
