"""FP8 graphs: the INT8 graph's nodes in other types, nearly the same features, nothing of INT8 left."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from appliance.domain.manifest import InputSpec
from export.fp8 import fp8_from_int8, is_fp8
from export.phantoms import phantom
from export.quantise import Target, measured_ranges, nodes_of, quantised

FULL = ("stem", "blocks.0.depthwise", "blocks.0.project")
"""Layers that stay in FP32: what is lost in the first ones is lost for all that follow."""
SPEC = InputSpec("image", 512, 512, 0.5, 99.5)
PICTURES = [phantom(SPEC, seed) for seed in range(4)]


@pytest.fixture(scope="module")
def graph(repository: Path) -> onnx.ModelProto:
    """The shipped encoder."""
    return onnx.load(repository / "engines" / "chest-xray" / "encoder.onnx")


def said(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """What ONNX Runtime says; one of its optimisations stumbles over FP8, so all are switched off."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"image": np.stack(PICTURES)[:, None]}), strict=True))


@pytest.fixture(scope="module")
def int8(graph: onnx.ModelProto) -> onnx.ModelProto:
    """The shipped encoder in INT8 for TensorRT."""
    ranges = measured_ranges(graph, PICTURES, "minmax")
    return quantised(graph, ranges, nodes_of(graph, FULL), Target.TENSORRT)


def test_an_fp8_graph_follows_the_full_one(graph: onnx.ModelProto, int8: onnx.ModelProto) -> None:
    """Three bits of mantissa cost much, a wrong scale or zero point would cost everything."""
    full, less = said(graph), said(fp8_from_int8(int8, graph))
    for name, values in full.items():
        assert np.corrcoef(values.ravel(), less[name].ravel())[0, 1] > 0.8, name


def test_every_tensor_that_was_int8_is_fp8(graph: onnx.ModelProto, int8: onnx.ModelProto) -> None:
    """The largest value is at 448 instead of at 127, no INT8 is left, and what stayed in FP32 stays there."""
    model = fp8_from_int8(int8, graph)
    before, after = ({tensor.name: tensor for tensor in each.graph.initializer} for each in (int8, model))
    for name, tensor in before.items():
        kind = onnx.TensorProto.FLOAT8E4M3FN if tensor.data_type == onnx.TensorProto.INT8 else tensor.data_type
        assert after[name].data_type == kind, name
    old, new = (onnx.numpy_helper.to_array(each["head.weight_scale"]) for each in (before, after))
    np.testing.assert_allclose(new * 448, old * 127, rtol=1e-6)
    assert after["blocks.0.depthwise.weight"].data_type == onnx.TensorProto.FLOAT
    assert is_fp8(model)
    assert not is_fp8(int8)
