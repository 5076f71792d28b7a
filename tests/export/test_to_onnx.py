"""The exported graphs say what the networks say."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from appliance.domain.errors import EngineFileError
from appliance.domain.manifest import InputSpec
from export.calibrate import guard_head
from export.exporter_errors import refusal_from_exporter
from export.onnx_parity import refuse_other_answers
from export.runner import Runner
from export.student import ARCHITECTURES, MultiTaskNet
from export.to_onnx import TASK_OUTPUTS, export_graphs, export_module, heads, strip_traces

SPEC = InputSpec("image", 512, 512, 0.5, 99.5)
TEMPERATURES = {"adult-triage": 1.5, "paediatric-pneumonia": 0.7}


def test_onnx_equals_torch(tmp_path: Path) -> None:
    """Encoder and heads agree with torch within 1e-4 on batches of other sizes than they were exported with."""
    torch.manual_seed(0)
    net = MultiTaskNet(ARCHITECTURES["narrow"]).eval()
    guard = guard_head(net).eval()
    tasks = heads(net, guard, TEMPERATURES, 64)
    export_graphs(net, tasks, SPEC, tmp_path)
    runner = Runner(tmp_path, "encoder.onnx", TASK_OUTPUTS)
    images = np.random.default_rng(0).integers(0, 256, size=(3, 1, 512, 512), dtype=np.uint8)
    with torch.no_grad():
        embedding, *features = net.encoder(torch.from_numpy(images))
        expected = {
            ("adult-triage", "score"): torch.sigmoid(net.adult(embedding) / 1.5),
            ("paediatric-pneumonia", "score"): torch.sigmoid(net.paediatric(embedding) / 0.7),
            ("guard", "score"): guard(embedding, features[1], features[2])[0],
            ("lungs", "mask"): tasks["lungs"](*features),
        }
    outputs = runner.run(images)
    for (task, name), values in expected.items():
        assert np.abs(outputs[task][name] - values.numpy()).max() < 1e-4, task
    assert outputs["lungs"]["mask"].shape == (3, 1, 64, 64)


class Calling(nn.Module):
    """A layer that calls a function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, values: Tensor) -> Tensor:
        """Whatever the function makes of the values."""
        return self.function(values)


def exported(function: Callable[[Tensor], Tensor], folder: Path) -> Path:
    """The graph of a net whose layer `0` calls a function."""
    net = nn.Sequential(Calling(function))
    export_module(net.eval(), (torch.zeros(2, 3),), ("values",), ("answer",), folder / "head.onnx")
    return folder / "head.onnx"


def test_an_operator_that_onnx_does_not_know_is_named_with_its_layer(tmp_path: Path) -> None:
    """A graph with an operator of nobody's is refused by name, before the checker meets it; nothing is written."""

    def enchanted(values: Tensor) -> Tensor:
        return torch.onnx.ops.symbolic("Enchant", (values,), dtype=values.dtype, shape=values.shape)

    with pytest.raises(EngineFileError, match="ONNX does not know the operator Enchant of the layer node"):
        exported(enchanted, tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_operator_that_torch_can_not_export_is_named_with_its_layer(tmp_path: Path) -> None:
    """An operator that the exporter has no translation for is a sentence that names it and its layer."""

    @torch.library.custom_op("insite_tests::enchant", mutates_args=())
    def enchant(values: Tensor) -> Tensor:
        return values.clone()

    @enchant.register_fake
    def _(values: Tensor) -> Tensor:
        return torch.empty_like(values)

    with pytest.raises(EngineFileError, match=r"the operator \S*insite_tests\.enchant\S* of the layer 0") as refused:
        exported(enchant, tmp_path)
    assert "\n" not in refused.value.message
    assert not list(tmp_path.iterdir())


def test_a_layer_that_can_not_be_traced_again_is_named_by_its_node() -> None:
    """Where the layer can't be looked up, the exporter's sentence stays, with the name of the node."""
    net = nn.Sequential(Calling(lambda values: values if float(values.sum()) > 0 else -values))
    error = RuntimeError("Error when translating node %enchant : [num_users=1] = call_function[target=its.enchant]")
    refused = refusal_from_exporter(error, net, (torch.zeros(2, 3),), None, "head.onnx")
    assert "the operator its.enchant of the layer enchant" in refused.message


def test_what_torch_can_not_trace_is_said(tmp_path: Path) -> None:
    """A layer that hangs on the values that it is shown is refused with the graph's name."""
    with pytest.raises(EngineFileError, match=r"head\.onnx can't be exported"):
        exported(lambda values: values if float(values.sum()) > 0 else -values, tmp_path)


def test_a_graph_that_was_tampered_with_is_refused(tmp_path: Path) -> None:
    """A bias that is off by a thousandth is found, and output and difference are named; the true graph passes."""
    torch.manual_seed(0)
    net, values = nn.Linear(3, 2).eval(), torch.rand(2, 3)
    path = tmp_path / "head.onnx"
    export_module(net, (values,), ("values",), ("answer",), path)
    refuse_other_answers(net, (values,), ("answer",), path)
    for off in (1e-3, float("nan")):
        shift(path, off)
        with pytest.raises(EngineFileError, match=rf"output answer of .* differs from torch by {off:g}"):
            refuse_other_answers(net, (values,), ("answer",), path)


def test_a_graph_of_another_shape_is_refused(tmp_path: Path) -> None:
    """The same numbers in another shape are another answer; both shapes are named."""
    net, values = nn.Linear(3, 1).eval(), torch.ones(2, 3)
    path = tmp_path / "head.onnx"
    export_module(net, (values,), ("values",), ("answer",), path)
    with pytest.raises(EngineFileError, match=r"output answer of .* has the shape \[2, 1\], in torch \[2\]"):
        refuse_other_answers(nn.Sequential(net, nn.Flatten(0)), (values,), ("answer",), path)


def shift(path: Path, off: float) -> None:
    """Add something to the bias of a graph."""
    graph = onnx.load(path)
    bias = next(each for each in graph.graph.initializer if len(each.dims) == 1)
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(off), bias.name))
    onnx.save(graph, path)


def test_a_pack_is_not_made_of_a_graph_that_says_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step holds every FP32 graph against torch on phantoms: a head that was altered on its way ends it."""
    torch.manual_seed(0)
    net = MultiTaskNet(ARCHITECTURES["narrow"]).eval()

    def altered(model: onnx.ModelProto) -> None:
        strip_traces(model)
        if model.graph.output[0].name == "score":
            for each in model.graph.initializer:
                each.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(each) + np.float32(0.1), each.name))

    monkeypatch.setattr("export.to_onnx.strip_traces", altered)
    adult = {"adult-triage": heads(net, guard_head(net), TEMPERATURES, 64)["adult-triage"]}
    with pytest.raises(EngineFileError, match=r"output score of \S*adult-triage/head\.onnx differs from torch by 0"):
        export_graphs(net, adult, SPEC, tmp_path)
