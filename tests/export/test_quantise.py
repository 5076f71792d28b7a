"""INT8 graphs: layers by name, layers left alone, nothing that is not a number."""

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from appliance.domain.errors import EngineFileError, InputError, SettingsError
from appliance.domain.manifest import InputSpec
from export.gate import Rule
from export.latency import Ratio
from export.operators import refuse_unknown_operators
from export.phantoms import phantom
from export.quantise import METHODS, Target, layers, measured_ranges, nodes_of, quantised, refuse_nan
from export.quantise_search import Loss, Trial, best_of, fastest, refuse_other_than
from export.runner import Runner
from export.student import ARCHITECTURES, MultiTaskNet
from export.to_onnx import ENCODER_OUTPUTS, export_module

SPEC = InputSpec("image", 512, 512, 0.5, 99.5)
PICTURES = [phantom(SPEC, seed) for seed in range(4)]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a narrow net's encoder graph."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("encoder")
    net = MultiTaskNet(ARCHITECTURES["narrow"]).eval()
    image = torch.zeros((2, 1, 512, 512), dtype=torch.uint8)
    export_module(net.encoder, (image,), ("image",), ENCODER_OUTPUTS, folder / "encoder.onnx")
    return folder


@pytest.fixture(scope="module")
def graph(encoder: Path) -> onnx.ModelProto:
    """The encoder's graph."""
    return onnx.load(encoder / "encoder.onnx")


def test_layers_have_the_names_of_the_training(graph: onnx.ModelProto) -> None:
    """A layer is a convolution with its activation, named as the network names its weight."""
    names = list(layers(graph))
    assert names[0] == "stem"
    assert names[-1] == "head"
    assert sum(len(nodes) for nodes in layers(graph).values()) == len(set(nodes_of(graph, names)))


@pytest.mark.parametrize("method", METHODS)
def test_a_quantised_graph_says_nearly_the_same(encoder: Path, graph: onnx.ModelProto, method: str) -> None:
    """Each way of calibrating gives a graph for the CPU whose features follow the FP32 ones."""
    model = quantised(graph, measured_ranges(graph, PICTURES, method), (), Target.ONNXRUNTIME_CPU)
    (encoder / f"{method}.onnx").write_bytes(model.SerializeToString())
    images = np.stack(PICTURES)[:, None]
    full = np.asarray(Runner(encoder, "encoder.onnx", ()).features(images)["stride8"])
    less = np.asarray(Runner(encoder, f"{method}.onnx", ()).features(images)["stride8"])
    assert np.corrcoef(full.ravel(), less.ravel())[0, 1] > 0.9


def test_a_layer_may_stay_in_full_precision(graph: onnx.ModelProto) -> None:
    """The layers that the search leaves in FP32 read their weights without a dequantisation."""
    ranges = measured_ranges(graph, PICTURES, "minmax")
    model = quantised(graph, ranges, nodes_of(graph, ["stem"]), Target.ONNXRUNTIME_CPU)
    by_name = {node.name: node for node in model.graph.node}
    stem, head = (by_name[layers(graph)[name][0]] for name in ("stem", "head"))
    assert stem.input[1] == "stem.weight"
    assert "Dequantize" in head.input[1]


def test_the_graph_for_tensorrt_has_signed_activations_and_float_biases(graph: onnx.ModelProto) -> None:
    """No zero point but 0, and no INT32 tensor at all: TensorRT takes neither."""
    model = quantised(graph, measured_ranges(graph, PICTURES, "minmax"), (), Target.TENSORRT)
    kinds = {tensor.data_type for tensor in model.graph.initializer}
    assert onnx.TensorProto.INT8 in kinds
    assert not {onnx.TensorProto.INT32, onnx.TensorProto.UINT8} & kinds
    points = {i for node in model.graph.node if node.op_type == "QuantizeLinear" for i in node.input[2:3]}
    values = [onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name in points]
    assert values
    assert not any(value.any() for value in values)


def test_a_weight_that_is_not_a_number_is_named_with_its_layer(graph: onnx.ModelProto) -> None:
    """A diverged weight stops the export at the tensor's name, in the quantised graph and while ranges are read."""
    bad = onnx.ModelProto()
    bad.CopyFrom(graph)
    tensor = next(t for t in bad.graph.initializer if t.name == "head.weight")
    values = np.array(onnx.numpy_helper.to_array(tensor))
    values[0] = np.nan
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, "head.weight"))
    with pytest.raises(InputError, match=r"head\.weight, read by node_"):
        refuse_nan(bad)
    with pytest.raises(InputError, match=r"head\.weight"):
        measured_ranges(bad, PICTURES, "minmax")


def test_a_layer_that_overflows_is_found_while_ranges_are_read(graph: onnx.ModelProto) -> None:
    """Finite weights whose products are not finite are refused by the tensor's name, before a graph is made."""
    bad = onnx.ModelProto()
    bad.CopyFrom(graph)
    tensor = next(t for t in bad.graph.initializer if t.name == "blocks.0.project.weight")
    values = np.array(onnx.numpy_helper.to_array(tensor)) * 0 + np.float32(3e38)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    with pytest.raises(InputError, match="not a number on calibration images"):
        measured_ranges(bad, PICTURES, "minmax")


def test_an_operator_that_the_target_does_not_know_is_named_with_its_layer(graph: onnx.ModelProto) -> None:
    """The sentence holds target, operator and layer."""
    layer = next(node.name for node in graph.graph.node if node.op_type == "Clip")
    with pytest.raises(EngineFileError, match=f"Some runtime does not know the operator Clip of the layer {layer}"):
        refuse_unknown_operators(graph, "Some runtime", lambda name: name != "Clip")


def trial(speed: float, shift: float) -> Trial:
    """A trial with one ratio of times."""
    ratio = Ratio(speed, speed, speed, 1.0, 1.0)
    return Trial("minmax", (), 1, Loss(0.0, 0.0, 0.0, shift), (ratio,), "")


def test_the_fastest_setting_wins_and_noise_is_no_reason() -> None:
    """Of settings that are equally fast within noise, the one that moves the scores least is kept."""
    quick, close, slow = trial(2.05, 0.02), trial(2.0, 0.01), trial(1.2, 0.001)
    assert fastest([slow, quick, close]) is close
    assert fastest([slow, quick]) is quick


def test_the_setting_that_the_recipe_names_is_kept_whatever_the_clock_says() -> None:
    """Named in the words of the search, layers and all; without a name the fastest is kept."""
    quick, named = trial(2.05, 0.02), dataclasses.replace(trial(1.2, 0.001), full_layers=("stem", "blocks.0.depthwise"))
    assert named.setting == "minmax, but for stem, blocks.0.depthwise"
    assert dataclasses.replace(named, aware=True).setting.endswith("depthwise, fine-tuned")
    assert best_of([quick, named]) is quick
    assert best_of([quick, named], named.setting) is named
    refuse_other_than(named.setting, named, [quick, named])
    refuse_other_than("", quick, [quick, named])


def test_a_named_setting_that_does_not_hold_ends_the_run() -> None:
    """Outside its bounds or never tried: the recipe is refused, and what could be named is said."""
    quick, worse = trial(2.05, 0.02), dataclasses.replace(trial(3.0, 0.5), method="entropy", broken="score shift")
    kept = best_of([quick, worse], worse.setting)
    with pytest.raises(SettingsError, match=r"'entropy, every layer', which is outside the bounds \(score shift\)"):
        refuse_other_than(worse.setting, kept, [quick, worse])
    with pytest.raises(SettingsError, match="which the search did not try") as refused:
        refuse_other_than("none", best_of([quick, worse], "none"), [quick, worse])
    assert refused.value.way_forward.endswith("bounds: minmax, every layer.")


def test_a_rule_row_reads_as_the_report_prints_it() -> None:
    """A rule's row holds its name, bound, figure and verdict."""
    assert Rule("INT8 loses Dice", 0.01, 0.003, at_most=True).row() == ["INT8 loses Dice", "≤ 0.003", "0.01", "no"]
