"""The learned propagators ``query`` and ``flow``: a motion module as a ``Propagator``."""

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8
from torch import Tensor

from mpvss.errors import ModelError
from mpvss.motion.network.query_flow import PixelFlow, QueryFlow
from mpvss.motion.warp import fit_flow


class LearnedFlow:
    """A motion module as a propagator, on its own device.

    Attributes:
        name: ``query`` for a QueryFlow, ``flow`` for a PixelFlow.
        per_query: Whether it is a QueryFlow.
        module: The motion module, in evaluation mode.
    """

    def __init__(self, module: QueryFlow | PixelFlow) -> None:
        """Wrap a module that is on its device already; on a CPU it becomes float32, of mixed types anywhere."""
        weights = list(module.parameters())
        if weights[0].device.type == "cpu" or len({weight.dtype for weight in weights}) > 1:
            module = module.float()
        self.per_query = isinstance(module, QueryFlow)
        self.name = "query" if self.per_query else "flow"
        self.module = module.eval().requires_grad_(False)

    def estimate_flow(
        self,
        current: UInt8[np.ndarray, "B H W 3"],
        other: UInt8[np.ndarray, "Bo H W 3"],
        queries: Float32[np.ndarray, "1 Q D"] | None,
        padded: tuple[int, int],
        grid: tuple[int, int],
        active: Int64[np.ndarray, " A"] | None = None,
    ) -> Float32[np.ndarray, "B G 2 h w"]:
        """Return one flow per query, or one for all; see ``Propagator.estimate_flow`` and ``predict``."""
        now, then = (torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2) for images in (current, other))
        embeddings, kept = (None if each is None else torch.from_numpy(each) for each in (queries, active))
        flow = self.predict(now, then, embeddings, padded, grid, kept)
        return np.asarray(flow.cpu().numpy())

    def predict(
        self,
        current: UInt8[Tensor, "B 3 H W"],
        other: UInt8[Tensor, "Bo 3 H W"],
        queries: Float[Tensor, "1 Q D"] | None,
        padded: tuple[int, int],
        grid: tuple[int, int],
        active: Int64[Tensor, " A"] | None = None,
    ) -> Float[Tensor, "B G 2 h w"]:
        """Do the same with tensors, which stay on the module's device.

        Raises:
            ValueError: The grid covers more than the module's flow does, the image padded to multiples of 32; or
                queries are missing.
            ModelError: The flow is not finite.
        """
        weight = next(self.module.parameters())
        now, then = (images.to(weight.device, weight.dtype) for images in (current, other))
        with torch.inference_mode():
            if isinstance(self.module, PixelFlow):
                flow = self.module(now, then)
            else:
                if queries is None:
                    raise ValueError("the query propagator expects the key frame's queries, got none")
                active = None if active is None else active.to(weight.device)
                flow = self.module(now, then, queries.to(weight.device, weight.dtype), active=active)
            if not flow.isfinite().all():
                raise ModelError("the motion module's flow is not finite; its weights are damaged")
            stride = self.module.config.stride
            covered = (flow.shape[-2] * stride, flow.shape[-1] * stride)
            resized = fit_flow(flow.flatten(0, 1), covered, padded, grid).reshape(*flow.shape[:3], *grid)
        return resized.to(torch.float32)
