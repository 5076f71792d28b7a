"""EfficientViT: its attention keeps in lower precisions what they could not hold."""

import copy

import onnx
import pytest
import torch

from appliance.domain.manifest import InputSpec
from export.phantoms import phantom
from export.quantise import Target, layers, measured_ranges, quantised
from export.to_onnx import ENCODER, export_features
from tests.export.students import SMALL, seasoned

SPEC = InputSpec("image", 512, 512, 0.5, 99.5)
LARGEST_HALF = 65504.0
LOUD = 500.0


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    """A small encoder's graph."""
    path = tmp_path_factory.mktemp("efficientvit") / ENCODER
    export_features(seasoned(SMALL["efficientvit"]).encoder, SPEC, path)
    return onnx.load(path)


@torch.no_grad()
def test_attention_is_finite_in_half_precision() -> None:
    """Sums over all places, beyond the largest half, are taken in FP32: half precision says what FP32 says."""
    encoder = seasoned(SMALL["efficientvit"]).encoder
    loudest = []
    for name, module in encoder.named_modules():
        if name.endswith("qkv.conv"):
            module.get_parameter("weight").mul_(LOUD)
            module.register_forward_hook(lambda *says: loudest.append(float(says[-1].abs().max())))
    image = torch.from_numpy(phantom(SPEC, 0))[None, None]
    full = encoder(image)
    assert max(loudest) < LARGEST_HALF < max(loudest) ** 2
    for ours, theirs in zip(copy.deepcopy(encoder).half()(image), full, strict=True):
        assert torch.nn.functional.cosine_similarity(ours.float().flatten(), theirs.flatten(), dim=0) > 0.999


@pytest.mark.parametrize("target", Target)
def test_attention_stays_in_full_precision_in_int8(graph: onnx.ModelProto, target: Target) -> None:
    """Neither products of activations nor the number that keeps a denominator from zero are rounded to 8 bits."""
    model = quantised(graph, measured_ranges(graph, [phantom(SPEC, 0)], "minmax"), (), target)
    made_by = {name: node.op_type for node in model.graph.node for name in node.output}
    numbers = {tensor.name for tensor in model.graph.initializer if not tensor.dims}
    sums = [node for node in model.graph.node if node.op_type == "Add" and numbers & set(node.input)]
    products = [node for node in model.graph.node if node.op_type == "MatMul"]
    assert len(products) == 2 * len(sums) == 4
    for node in (*products, *sums):
        assert "DequantizeLinear" not in {made_by.get(name) for name in node.input}, node.name
    assert not {node.name for node in products} & set(layers(graph))
