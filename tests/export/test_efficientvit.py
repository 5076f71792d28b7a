"""EfficientViT: its attention keeps in lower precisions what they could not hold."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from appliance.domain.manifest import InputSpec
from export.phantoms import phantom
from export.quantise import Target, layers, measured_ranges, quantised
from export.runner import Runner
from export.to_onnx import ENCODER, HALF, export_graphs
from tests.export.students import SMALL, seasoned

SPEC = InputSpec("image", 512, 512, 0.5, 99.5)
PICTURES = [phantom(SPEC, seed) for seed in range(2)]
INT8 = "encoder.int8.onnx"
LARGEST_HALF = 65504.0
LOUD = 500.0


@pytest.fixture(scope="module")
def loud(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graphs of a net whose queries and keys are so large that no half precision holds their products."""
    net, folder = seasoned(SMALL["efficientvit"]), tmp_path_factory.mktemp("loud")
    with torch.no_grad():
        for name, weight in net.encoder.named_parameters():
            if name.endswith("qkv.conv.weight"):
                weight.mul_(LOUD)
    export_graphs(net, {}, SPEC, folder)
    return folder


def features(folder: Path, graph: str) -> dict[str, NDArray[np.float32]]:
    """What a graph says of the pictures."""
    outputs = Runner(folder, graph, ()).features(np.stack(PICTURES)[:, None])
    return {name: np.asarray(values, np.float32) for name, values in outputs.items()}


def test_attention_is_finite_in_half_precision(loud: Path) -> None:
    """Sums over all places, beyond the largest half, are taken in FP32: the graph says what the FP32 one says."""
    graph = onnx.load(loud / ENCODER)
    products = [node.output[0] for node in graph.graph.node if node.op_type == "MatMul"]
    ranges = measured_ranges(graph, PICTURES, "minmax").tensors
    assert max(float(np.abs(ranges[name].range_value).max()) for name in products) > LARGEST_HALF
    full, half = features(loud, ENCODER), features(loud, HALF)
    for name, values in full.items():
        assert np.corrcoef(values.ravel(), half[name].ravel())[0, 1] > 0.999, name


@pytest.mark.parametrize("target", Target)
def test_attention_stays_in_full_precision_in_int8(loud: Path, target: Target) -> None:
    """Neither products of activations nor the number that keeps a denominator from zero are rounded to 8 bits."""
    graph = onnx.load(loud / ENCODER)
    model = quantised(graph, measured_ranges(graph, PICTURES, "minmax"), (), target)
    made_by = {name: node.op_type for node in model.graph.node for name in node.output}
    numbers = {tensor.name for tensor in model.graph.initializer if not tensor.dims}
    sums = [node for node in model.graph.node if node.op_type == "Add" and numbers & set(node.input)]
    products = [node for node in model.graph.node if node.op_type == "MatMul"]
    assert len(products) == 2 * len(sums) == 4
    for node in (*products, *sums):
        assert "DequantizeLinear" not in {made_by.get(name) for name in node.input}, node.name
    assert not {node.name for node in products} & set(layers(graph))


def test_a_quantised_net_with_loud_attention_says_nearly_the_same(loud: Path) -> None:
    """INT8 around attention in FP32 is finite and follows the FP32 features."""
    graph = onnx.load(loud / ENCODER)
    model = quantised(graph, measured_ranges(graph, PICTURES, "minmax"), (), Target.ONNXRUNTIME_CPU)
    (loud / INT8).write_bytes(model.SerializeToString())
    full, less = features(loud, ENCODER), features(loud, INT8)
    for name, values in full.items():
        assert np.corrcoef(values.ravel(), less[name].ravel())[0, 1] > 0.97, name
