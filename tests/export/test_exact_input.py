"""A stem that reads the picture's bytes: the same answers, and integers from the first layer on."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from appliance.domain.errors import InputError
from appliance.domain.manifest import InputSpec
from export.exact_input import with_exact_input
from export.phantoms import phantom
from export.quantise import Target, measured_ranges, quantised
from export.student import ARCHITECTURES, MultiTaskNet
from export.to_onnx import ENCODER_OUTPUTS, export_module

SPEC = InputSpec("image", 512, 512, 0.5, 99.5)
PICTURES = np.stack([phantom(SPEC, seed) for seed in range(2)])[:, None]


@pytest.fixture(scope="module", params=["narrow", "efficientnet_lite0", "mobilenetv4_conv_small"])
def graph(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    """An encoder of each family, shrunk by 8 and by 2, padded on one side and on both."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("encoder") / "encoder.onnx"
    net = MultiTaskNet(ARCHITECTURES[request.param]).eval()
    image = torch.zeros((2, 1, 512, 512), dtype=torch.uint8)
    export_module(net.encoder, (image,), ("image",), ENCODER_OUTPUTS, path)
    return onnx.load(path)


def answers(model: onnx.ModelProto) -> dict[str, NDArray[np.float32]]:
    """What a graph says of two phantoms."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip(ENCODER_OUTPUTS, session.run(list(ENCODER_OUTPUTS), {"image": PICTURES}), strict=True))


def test_the_folded_graph_says_the_same(graph: onnx.ModelProto) -> None:
    """Every output agrees to rounding, borders included."""
    before, after = answers(graph), answers(with_exact_input(graph))
    for name in ENCODER_OUTPUTS:
        np.testing.assert_allclose(after[name], before[name], rtol=1e-4, atol=1e-4, err_msg=name)


def test_the_quantised_stem_reads_the_picture(graph: onnx.ModelProto, tmp_path: Path) -> None:
    """ONNX Runtime fuses it into one integer convolution; nothing of the full picture's size is computed in floats."""
    folded = with_exact_input(graph)
    model = quantised(folded, measured_ranges(folded, PICTURES[:, 0], "minmax"), (), Target.ONNXRUNTIME_CPU)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    optimised = onnx.load(tmp_path / "optimised.onnx").graph
    tensors, operators = {"image"}, []
    while not operators or operators[-1] == "Transpose":
        reader = next(node for node in optimised.node if tensors & set(node.input))
        operators.append(reader.op_type)
        tensors = set(reader.output)
    assert operators[-1] == "QLinearConv"
    kinds = {node.op_type for node in optimised.node}
    assert not {"AveragePool", "Cast", "Sub", "Div"} & kinds


def test_a_graph_that_begins_otherwise_is_refused(graph: onnx.ModelProto) -> None:
    """The sentence says how it begins and how a student does."""
    other = onnx.ModelProto()
    other.CopyFrom(graph)
    other.graph.node.pop(0)
    with pytest.raises(InputError, match=r"begins with AveragePool, Sub, .*begins with Cast, AveragePool"):
        with_exact_input(other)
