"""What a run says about itself: metrics as JSON lines, TensorBoard, and images of what is being learned."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from mpvss.datasets.pairs import Batch
from mpvss.labels import palette_for
from mpvss.training.checkpoints import METRICS_NAME, writing
from mpvss.training.losses import shown_flow, shown_share
from mpvss.training.tasks import MotionTask, Task, pixels, predict_layers


class Journal:
    """Writes scalars and images of one run.

    Args:
        out: Directory of the run.
        step: The step that the run goes on from; what TensorBoard knows of later ones is dropped.

    Raises:
        OutputError: The directory cannot be written.
    """

    def __init__(self, out: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._out = out
        with writing(out):
            self._lines = (out / METRICS_NAME).open("a", encoding="utf-8")
            self._board = SummaryWriter(str(out / "tensorboard"), purge_step=step)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Write one line of metrics; numbers and lists of numbers become scalars as well.

        Raises:
            OutputError: The disk is full.
        """
        with writing(self._out / METRICS_NAME):
            self._lines.write(json.dumps({"step": step} | values) + "\n")
            self._lines.flush()
            for name, value in _scalars(values):
                self._board.add_scalar(name, value, step)
            self._board.flush()

    def draw(self, step: int, image: UInt8[np.ndarray, "H W 3"]) -> None:
        """Show an image in TensorBoard."""
        with writing(self._out / "tensorboard"):
            self._board.add_image("sample", image, step, dataformats="HWC")

    def close(self) -> None:
        """Finish both files."""
        with writing(self._out):
            self._lines.close()
            self._board.close()


def _scalars(values: dict[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    scalars: list[tuple[str, float]] = []
    for name, value in values.items():
        if isinstance(value, dict):
            scalars += _scalars(value, f"{prefix}{name}/")
        elif isinstance(value, list):
            scalars += _scalars({f"{i:02}": item for i, item in enumerate(value)}, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            scalars.append((f"{prefix}{name}", float(value)))
    return scalars


def draw_flow(flow: Float[Tensor, "2 h w"], largest: float | None = None) -> UInt8[np.ndarray, "h w 3"]:
    """Direction as hue, length as saturation; white is no motion.

    Args:
        flow: In pixels of any grid.
        largest: Length at full saturation; the 99th percentile of the lengths, and at least 1, by default.
    """
    x, y = flow.float().cpu().numpy()
    length, angle = cv2.cartToPolar(np.ascontiguousarray(x), np.ascontiguousarray(y), angleInDegrees=True)
    largest = max(1.0, float(np.percentile(length, 99))) if largest is None else largest
    hsv = np.stack([angle / 2, np.clip(length / largest, 0, 1) * 255, np.full_like(length, 255)], -1)
    return np.asarray(cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB))


@torch.no_grad()
def draw_sample(task: Task, batch: Batch) -> UInt8[np.ndarray, "H W 3"]:
    """The first sample of a batch as one strip: images, predicted and true labels, and the flow if there is one."""
    names = task.segmentor.class_names
    height, width = batch.current.shape[-2:]
    strip = [batch.current[0]]
    flow = None
    if isinstance(task, MotionTask):
        layers, flows = task.propagate(batch)
        classes, masks = layers[-1]
        flow = shown_flow(flows, shown_share(classes, masks))[0]
        strip.insert(0, batch.key[0])
    else:
        layers, _ = predict_layers(task.model, pixels(task.segmentor.rule, batch.current), every_layer=False)
        classes, masks = layers[-1]
    scores = torch.einsum("qk,qhw->khw", classes[0].float().softmax(1)[:, :-1], masks[0].float().sigmoid())
    padded = tuple(side + -side % task.segmentor.rule.multiple for side in (height, width))
    full = F.interpolate(scores[None], size=padded, mode="bilinear", align_corners=False)[0, :, :height, :width]
    colours = np.vstack([palette_for(names), np.zeros((256, 3), np.uint8)])
    images = [image.permute(1, 2, 0).cpu().numpy().astype(np.uint8) for image in strip]
    images.append(colours[full.argmax(0).cpu().numpy()])
    if batch.current_label is not None:
        images.append(colours[batch.current_label[0].clamp(max=255).cpu().numpy()])
    if flow is not None:
        drawn = cv2.resize(draw_flow(flow), (padded[1], padded[0]), interpolation=cv2.INTER_NEAREST)
        images.append(drawn[:height, :width])
        if batch.flow is not None and batch.visible is not None:
            drawn = draw_flow(batch.flow[0])
            drawn[~batch.visible[0].cpu().numpy()] = 0
            images.append(drawn)
    return np.ascontiguousarray(np.concatenate([np.asarray(image, np.uint8) for image in images], 1))
