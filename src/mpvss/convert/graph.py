"""A network of torch as an ONNX graph, with its weights in it or in a safetensors file beside it."""

import json
import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mpvss.errors import ModelError
from mpvss.options import LONGEST_SIDE

# The names of the sides of an image, in the graph and in what says that they are free.
_SIDES = ("height", "width")
_SHORTEST = 64  # pixels; less may do as well
_LARGE = 256  # values
_LENGTH_BYTES = 8  # of the header of a safetensors file


class _WeightsOutside(nn.Module):
    """A network that takes its parameters and buffers as inputs: no pass of the exporter folds them into others."""

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self._network, self._names = [network], names  # in a list: not a part of this module

    def forward(self, inputs: list[Tensor], weights: list[Tensor]) -> Any:
        return torch.func.functional_call(self._network[0], dict(zip(self._names, weights, strict=True)), tuple(inputs))


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of a network that are numbers of any precision, by name."""
    return {name: value for name, value in network.state_dict().items() if value.is_floating_point()}


def trace(
    network: nn.Module,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
    *,
    multiple: int | None = None,
    weights_outside: bool = False,
) -> Any:
    """Trace a network to an ``onnx.ModelProto``.

    Args:
        network: In evaluation mode.
        inputs: An example of each input by its name. The number of ``active`` queries stays free.
        outputs: Names of the outputs.
        multiple: Height and width of inputs of four dimensions stay free, at multiples of this; ``None`` fixes them.
        weights_outside: Whether the weights are inputs of the graph too, named as in ``weights_of``.

    Raises:
        ModelError: torch cannot export it.
    """
    shapes = [_free(name, value, multiple) for name, value in inputs.items()]
    named = weights_of(network) if weights_outside else {}
    values = list(inputs.values())
    arguments: tuple[Any, ...] = (values, list(named.values())) if weights_outside else tuple(values)
    dynamic: tuple[Any, ...] = (shapes, [None] * len(named)) if weights_outside else tuple(shapes)
    try:
        with _quiet_exporter(), torch.no_grad():
            program = torch.onnx.export(
                _WeightsOutside(network.eval(), list(named)).eval() if weights_outside else network.eval(),
                arguments,
                input_names=[*inputs, *named],
                output_names=list(outputs),
                dynamic_shapes=dynamic,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # of every kind: the exporter runs the model's own code symbolically
        raise ModelError(f"torch cannot export this network to ONNX: {_reason(error)}") from error
    assert program is not None
    return _bare(program.model_proto)


def _reason(error: Exception) -> str:
    """The line that says what went wrong, which the exporter puts at the end of its advice."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    causes = [line for line in lines if line.startswith("<class ")]
    return ([*causes, *lines] or [type(error).__name__])[0].removeprefix("<class ")[:300]


def _free(name: str, value: Tensor, multiple: int | None) -> dict[int, Any] | None:
    if name == "active" and len(value) > 1:
        return {0: torch.export.Dim(name, min=1, max=len(value))}
    if value.dim() != 4 or multiple is None:
        return None
    least, most = max(2, _SHORTEST // multiple), LONGEST_SIDE // multiple
    return {axis: multiple * torch.export.Dim(side, min=least, max=most) for axis, side in enumerate(_SIDES, 2)}


def _bare(model: Any) -> Any:
    """Leave out what the exporter notes of its work, and give the values between short names: most of a small file."""
    graph = model.graph
    kept = {value.name for value in (*graph.input, *graph.output, *graph.initializer)}
    made = [name for node in graph.node for name in node.output if name and name not in kept]
    short = {name: f"v{number}" for number, name in enumerate(made)}
    for node in graph.node:
        del node.metadata_props[:]
        node.name = node.doc_string = ""
        for values in (node.input, node.output):
            values[:] = [short.get(name, name) for name in values]
    _fill(graph)
    del graph.value_info[:]
    del graph.metadata_props[:]
    del model.metadata_props[:]
    return model


def _fill(graph: Any) -> None:
    """Let the graph make large constants of one value itself."""
    from onnx import helper, numpy_helper

    for tensor in [each for each in graph.initializer if math.prod(each.dims) >= _LARGE]:
        values = numpy_helper.to_array(tensor)
        if (values == values.flat[0]).all():
            shape = numpy_helper.from_array(np.array(values.shape, np.int64), f"{tensor.name}_shape")
            value = numpy_helper.from_array(values.reshape(-1)[:1])
            graph.node.insert(0, helper.make_node("ConstantOfShape", [shape.name], [tensor.name], value=value))
            graph.initializer.remove(tensor)
            graph.initializer.append(shape)


def point_to_weights(model: Any, weights: Mapping[str, Tensor], file: Path) -> None:
    """Let a graph of ``weights_outside`` read its weights from the safetensors file that holds them, in place.

    Each becomes an initializer whose external data is a part of that file, cast to float32 by a node that ONNX
    Runtime folds when it opens the graph. So there is one copy of the weights for torch and for ONNX Runtime.

    Args:
        model: The graph.
        weights: What the network has, by the names of the graph's inputs.
        file: In half precision; the graph is meant to lie beside it.

    Raises:
        ModelError: A weight is not in the file.
    """
    from onnx import TensorProto, helper

    parts, graph = _parts(file), model.graph
    inputs = [value for value in graph.input if value.name not in weights]
    used = {name for node in graph.node for name in node.input}
    casts = []
    for number, (name, weight) in enumerate(each for each in weights.items() if each[0] in used):
        half = weight.half()
        part = parts.get((tuple(half.shape), half.cpu().contiguous().numpy().tobytes()))
        if part is None or not torch.equal(half.to(weight.dtype), weight):
            raise ModelError(f"{file}: expected the weight {name} of this network in half precision, it is not there")
        # Short names: those of the parameters, twice each, would be most of the file.
        stored = f"h{number}"
        tensor = TensorProto(
            name=stored, data_type=TensorProto.FLOAT16, dims=half.shape, data_location=TensorProto.EXTERNAL
        )
        for key, value in (("location", file.name), ("offset", part[0]), ("length", part[1])):
            tensor.external_data.add(key=key, value=str(value))
        graph.initializer.append(tensor)
        casts.append(helper.make_node("Cast", [stored], [f"w{number}"], to=TensorProto.FLOAT))
        for node in graph.node:
            node.input[:] = [f"w{number}" if each == name else each for each in node.input]
    nodes = [*casts, *graph.node]
    del graph.input[:], graph.node[:]
    graph.input.extend(inputs)
    graph.node.extend(nodes)


def _parts(file: Path) -> dict[tuple[tuple[int, ...], bytes], tuple[int, int]]:
    """Offset and length of each tensor of half precision in a safetensors file, by its shape and its bytes."""
    content = file.read_bytes()
    start = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], "little")
    parts: dict[tuple[tuple[int, ...], bytes], tuple[int, int]] = {}
    for _, entry in sorted(json.loads(content[_LENGTH_BYTES:start]).items()):
        if entry.get("dtype") == "F16":
            first, last = (start + offset for offset in entry["data_offsets"])
            parts.setdefault((tuple(entry["shape"]), content[first:last]), (first, last - first))
    return parts


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Without the exporter's advice, which is about its own future and its optimiser."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir", "torch.onnx")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
