"""An exported graph, computed by torch: so that the very graph which is quantised can be fine-tuned.

Only the operators of EfficientNet-Lite, MobileNetV4 and the triage heads are known; any other is refused by name.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor
from torch.nn import functional

from export.operators import refuse_unknown_operators

Through = Callable[[str, Tensor], Tensor]
"""What is done to each tensor, by its name, before a node reads it."""


def as_it_is(_name: str, values: Tensor) -> Tensor:
    """Nothing is done to any tensor."""
    return values


def constants(model: onnx.ModelProto) -> dict[str, Tensor]:
    """The constants of a graph by name, as tensors of their own."""
    return {each.name: torch.from_numpy(np.array(onnx.numpy_helper.to_array(each))) for each in model.graph.initializer}


def refuse_operators(model: onnx.ModelProto) -> None:
    """Refuse a graph that can't be computed here.

    Raises:
        EngineFileError: An operator that is not known here; it is named with its layer.
    """
    refuse_unknown_operators(model, "The fine-tuning for INT8 (quantise.aware_steps)", _OPERATORS.__contains__)


def computed(model: onnx.ModelProto, known: Mapping[str, Tensor], through: Through = as_it_is) -> dict[str, Tensor]:
    """Every tensor of a graph by name.

    Args:
        model: The graph; its nodes stand in the order in which they are computed.
        known: Its inputs and constants.
        through: Applied to each tensor once, when it is known.
    """
    values = {name: through(name, tensor) for name, tensor in known.items()}
    for node in model.graph.node:
        options = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
        result = _OPERATORS[node.op_type]([values[name] for name in node.input if name], options)
        values[node.output[0]] = through(node.output[0], result)
    return values


def _convolved(inputs: list[Tensor], options: Mapping[str, Any]) -> Tensor:
    top, left, bottom, right = options["pads"]
    padded = functional.pad(inputs[0], (left, right, top, bottom))
    bias = inputs[2] if len(inputs) > 2 else None  # noqa: PLR2004 - the bias may be left out
    return functional.conv2d(padded, inputs[1], bias, options["strides"], 0, options["dilations"], options["group"])


def _linear(inputs: list[Tensor], options: Mapping[str, Any]) -> Tensor:
    weight = inputs[1] if options["transB"] else inputs[1].T
    return functional.linear(inputs[0], weight, inputs[2])


_OPERATORS: Mapping[str, Callable[[list[Tensor], Mapping[str, Any]], Tensor]] = {
    "Add": lambda inputs, _: inputs[0] + inputs[1],
    "AveragePool": lambda inputs, options: functional.avg_pool2d(
        inputs[0], options["kernel_shape"], options["strides"]
    ),
    "Cast": lambda inputs, _: inputs[0].float(),
    "Clip": lambda inputs, _: inputs[0].clamp(float(inputs[1]), float(inputs[2])),
    "Conv": _convolved,
    "Div": lambda inputs, _: inputs[0] / inputs[1],
    "Gemm": _linear,
    "ReduceMean": lambda inputs, options: inputs[0].mean(inputs[1].tolist(), keepdim=bool(options["keepdims"])),
    "Relu": lambda inputs, _: inputs[0].relu(),
    "Reshape": lambda inputs, _: inputs[0].reshape(inputs[1].tolist()),
    "Sigmoid": lambda inputs, _: inputs[0].sigmoid(),
    "Sub": lambda inputs, _: inputs[0] - inputs[1],
}
