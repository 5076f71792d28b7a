"""Every family out of timm takes a recipe's way: it learns, is exported, and is quantised."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file

from appliance.domain.errors import InputError
from appliance.domain.manifest import InputSpec
from appliance.inference.engine_build import SUFFIX, BuildPlan
from export import efficientvit, mobilenet, repvit
from export.images import image_set, prepare
from export.learning import Batch, Training, supervised_loss, train
from export.phantoms import phantom
from export.quantise import Target, layers, measured_ranges, quantised
from export.recipe import recipe_from_toml
from export.runner import Runner
from export.student import MultiTaskNet, architecture_named
from export.to_engine import build_rtx
from export.to_onnx import ENCODER, HALF, export_graphs
from tests.export.students import SMALL, seasoned

SPEC = InputSpec("image", 512, 512, 0.5, 99.5)
PICTURES = [phantom(SPEC, seed) for seed in range(3)]
QUANTISED = {Target.ONNXRUNTIME_CPU: "int8.onnx", Target.TENSORRT: "tensorrt.onnx"}
Exported = tuple[MultiTaskNet, Path]


@pytest.fixture(scope="module", params=sorted(SMALL))
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A small net of one family and the folder of its graphs, in INT8 too."""
    net, folder = seasoned(SMALL[request.param]), tmp_path_factory.mktemp(request.param)
    export_graphs(net, {}, SPEC, folder)
    graph = onnx.load(folder / ENCODER)
    ranges = measured_ranges(graph, PICTURES, "minmax")
    for target, name in QUANTISED.items():
        (folder / name).write_bytes(quantised(graph, ranges, (), target).SerializeToString())
    return net, folder


def features(folder: Path, graph: str) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    """What a graph says of the pictures."""
    outputs = Runner(folder, graph, ()).features(np.stack(PICTURES)[:, None])
    return {name: np.asarray(values, np.float32) for name, values in outputs.items()}


def test_the_graph_says_what_the_net_says(exported: Exported) -> None:
    """Embedding and maps agree with torch to 1e-4, on another batch than the graph was exported with."""
    net, folder = exported
    with torch.no_grad():
        expected = net.encoder(torch.from_numpy(np.stack(PICTURES)[:, None]))
    for (name, ours), theirs in zip(features(folder, ENCODER).items(), expected, strict=True):
        assert np.abs(ours - theirs.numpy()).max() < 1e-4, name


def test_lower_precisions_say_nearly_the_same(exported: Exported) -> None:
    """Half precision and INT8 are finite, and follow the FP32 features."""
    _, folder = exported
    full = features(folder, ENCODER)
    for graph, likeness in ((HALF, 0.9999), (QUANTISED[Target.ONNXRUNTIME_CPU], 0.98)):
        for name, less in features(folder, graph).items():
            assert np.isfinite(less).all()
            assert np.corrcoef(full[name].ravel(), less.ravel())[0, 1] > likeness, (graph, name)


def test_layers_have_the_names_of_the_training(exported: Exported) -> None:
    """What the search may leave in FP32 is named as the fused encoder's weights are; half precision has as many."""
    net, folder = exported
    full, half = (layers(onnx.load(folder / graph)) for graph in (ENCODER, HALF))
    assert set(full) <= {name.removesuffix(".weight") for name in net.encoder.fused().state_dict()}
    assert len(half) == len(full)


@pytest.mark.parametrize(("precision", "graph"), [("fp16", HALF), ("int8", QUANTISED[Target.TENSORRT])])
def test_an_engine_is_built_from_the_graph(exported: Exported, precision: str, graph: str) -> None:
    """TensorRT for RTX knows every operator, and compiles both precisions without a GPU."""
    _, folder = exported
    plan = BuildPlan(precision, ("8.6",))
    assert build_rtx((folder / graph).read_bytes(), folder / f"{precision}{SUFFIX}", plan).size_bytes > 0


@pytest.mark.parametrize("name", sorted({**mobilenet.DESIGNS, **repvit.DESIGNS, **efficientvit.DESIGNS}))
def test_a_recipe_names_a_student_that_learns(tiny_data: Path, tiny_recipe: Path, tmp_path: Path, name: str) -> None:
    """A step changes the net and its average, but for the stem and the blocks that the recipe freezes."""
    before, student = tiny_recipe.read_text().split("[student]")
    changes = {'"narrow"': f'"{name}"', "steps = 2": "steps = 1", "batch = 8": "batch = 2",
               "frozen_blocks = 0": "frozen_blocks = 2", "settling_steps = 1": "settling_steps = 0",
               "finishing_steps = 1": "finishing_steps = 0"}  # fmt: skip
    for old, new in changes.items():
        student = student.replace(old, new, 1)
    path = tmp_path / "recipe.toml"
    path.write_text(f"{before}[student]{student}")
    recipe = recipe_from_toml(path)
    prepare(recipe, tiny_data, tmp_path)
    torch.manual_seed(0)
    net = MultiTaskNet(architecture_named(recipe.student.architecture))
    first = {key: value.clone() for key, value in net.state_dict().items()}
    front = {id(module) for module in net.encoder.front(2)}
    frozen = tuple(f"encoder.{name}." for name, module in net.encoder.named_modules() if id(module) in front)

    def loss_of(batch: Batch) -> torch.Tensor:
        return supervised_loss(net(batch.image), batch)

    run = Training(image_set(tmp_path), recipe.input, recipe.student, 0, tmp_path, lambda _: None, "student")
    train(net, net, run, loss_of, tmp_path / "student.safetensors")
    learned = load_file(tmp_path / "student.safetensors")
    assert all(torch.isfinite(value).all() for value in learned.values())
    moved = {key for key, value in learned.items() if not torch.equal(value, first[key])}
    assert len(moved) > len(learned) / 2
    assert not [key for key in moved if key.startswith(frozen)]
    assert {each for each in frozen if any(key.startswith(each) for key in learned)} == set(frozen)


def test_an_unknown_student_is_refused_with_all_that_are_known() -> None:
    """The sentence lists every family."""
    with pytest.raises(InputError, match=r"(?s)repvit_m0_8.*repvit_m0_9.*efficientvit_b1"):
        architecture_named("repvit_m0_8")
