"""MediaPipe's person segmenter (Apache-2.0) for wrap_http.py, in an environment of its own: it wants an older numpy.

python3 -m venv e && e/bin/pip install mediapipe==0.10.21 && e/bin/python examples/serve_mediapipe.py
"""

from http.server import BaseHTTPRequestHandler, HTTPServer

import cv2
import mediapipe
import numpy as np

model = mediapipe.solutions.selfie_segmentation.SelfieSegmentation(model_selection=1)  # landscape


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        jpeg = np.frombuffer(self.rfile.read(int(self.headers["Content-Length"])), np.uint8)
        rgb = cv2.imdecode(jpeg, cv2.IMREAD_COLOR)[..., ::-1].copy()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(cv2.imencode(".png", np.uint8(model.process(rgb).segmentation_mask > 0.5))[1].tobytes())


HTTPServer(("localhost", 8601), Handler).serve_forever()
