"""Lets a quantised stem read the picture's own bytes: shrinking and normalising become part of its weights.

A student averages k x k pixels, takes the centre off, divides by the scale, and convolves. All of that is linear, so
that one convolution with every weight repeated k x k times, k^2 times as small and k times as far apart, gives the same
from the full picture. Its input (x - 127) / 128 is what UINT8 with the scale 1 / 128 and the zero point 127 stands for:
the stem is quantised without any error of its input, and the largest float tensors of the graph are gone.
"""

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from appliance.domain.errors import InputError

_SCALE, _ZERO_POINT = "input_scale", "input_zero_point"
_BEFORE_STEM = ("Cast", "AveragePool", "Sub", "Div", "Conv")


def with_exact_input(model: onnx.ModelProto) -> onnx.ModelProto:
    """A graph that gives the same from the same picture, whose stem reads the dequantised picture itself.

    The names of the stem and of the tensor that it reads stay. The stem pads with zeros, which the centre stands for:
    borders come out the same too.

    Raises:
        InputError: The graph does not begin as the students' do.
    """
    folded = onnx.ModelProto()
    folded.CopyFrom(model)
    graph = folded.graph
    begin, picture = list(graph.node[: len(_BEFORE_STEM)]), graph.input[0].name
    if tuple(node.op_type for node in begin) != _BEFORE_STEM or begin[0].input[0] != picture:
        found = ", ".join(node.op_type for node in begin)
        raise InputError(f"The graph begins with {found}.", f"A student begins with {', '.join(_BEFORE_STEM)}.")
    _, pool, centre, divide, stem = begin
    constants = {tensor.name: tensor for tensor in graph.initializer}
    scale = 1.0 / float(numpy_helper.to_array(constants[divide.input[1]]))
    zero_point = int(numpy_helper.to_array(constants[centre.input[1]]))
    shrink = next(int(each.ints[0]) for each in pool.attribute if each.name == "kernel_shape")
    weight = constants[stem.input[1]]
    weight.CopyFrom(numpy_helper.from_array(_spread(numpy_helper.to_array(weight), shrink), weight.name))
    for attribute in stem.attribute:
        if attribute.name in {"kernel_shape", "strides", "pads"}:
            attribute.ints[:] = [length * shrink for length in attribute.ints]
    graph.initializer.append(numpy_helper.from_array(np.array(scale, np.float32), _SCALE))
    graph.initializer.append(numpy_helper.from_array(np.array(zero_point, np.uint8), _ZERO_POINT))
    read = helper.make_node("DequantizeLinear", [picture, _SCALE, _ZERO_POINT], [stem.input[0]], "picture")
    rest = list(graph.node[len(_BEFORE_STEM) - 1 :])
    del graph.node[:]
    graph.node.extend([read, *rest])
    wanted = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in wanted]:
        graph.initializer.remove(tensor)
    onnx.checker.check_model(folded, full_check=True)
    return folded


def _spread(weight: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
    """Weights [O, I, h, w] as [O, I, h x factor, w x factor]: each repeated, with the same sum."""
    repeated: NDArray[np.float32] = weight.repeat(factor, axis=2).repeat(factor, axis=3) / np.float32(factor * factor)
    return repeated
