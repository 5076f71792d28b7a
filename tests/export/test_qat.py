"""Fine-tuning for INT8: torch rounds as the served graph does, it is the last resort, and it leaves no half result."""

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from appliance.domain.errors import EngineFileError
from appliance.domain.manifest import InputSpec
from export.artefacts import read_json
from export.fp8 import is_fp8
from export.graph_in_torch import computed, constants
from export.guard import GUARD_STRIDES, GuardHead
from export.images import image_set, prepare
from export.layout import AWARE, FOR_TENSORRT, FP8_FOR_TENSORRT, SEARCH_RECORD
from export.phantoms import phantom
from export.qat import Lesson, fake_quantisation, fine_tuned
from export.quantise import Target, measured_ranges, quantised
from export.quantise_search import ENCODER, QUANTISED, search_precision
from export.recipe import Recipe, recipe_from_toml
from export.runner import Runner
from export.speeds import search_table
from export.student import ARCHITECTURES, FEATURE_STRIDES, MultiTaskNet
from export.to_onnx import ENCODER_OUTPUTS, export_graphs, export_module, heads

SPEC = InputSpec("image", 512, 512, 0.5, 99.5)
PICTURES = np.stack([phantom(SPEC, seed) for seed in range(24)])
UNSEEN = np.stack([phantom(SPEC, seed) for seed in range(50, 58)])[:, None]
LOUD = 64.0
"""So many times louder than its neighbours is one channel, which the next layer takes back: in FP32 nothing changes."""


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the step `to_onnx` leaves, of a narrow net with one loud channel."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("graphs")
    net = MultiTaskNet(ARCHITECTURES["narrow"]).eval()
    with torch.no_grad():
        net.encoder.blocks[3].project_norm.weight[0] *= LOUD
        net.encoder.blocks[4].expand.weight[:, 0] /= LOUD
    design = net.encoder.architecture
    first, second = (design.feature_widths[FEATURE_STRIDES.index(stride)] for stride in GUARD_STRIDES)
    temperatures = {"adult-triage": 1.0, "paediatric-pneumonia": 1.0}
    tasks = heads(net, GuardHead(design.embedding, (first, second)), temperatures, 64)
    export_graphs(net, tasks, SPEC, folder)
    return folder


@pytest.fixture(scope="module")
def graph(graphs: Path) -> onnx.ModelProto:
    """The encoder's graph."""
    return onnx.load(graphs / ENCODER)


@pytest.fixture(scope="module")
def prepared(tiny_data: Path, tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artefact of the step `data`."""
    folder = tmp_path_factory.mktemp("prepared")
    prepare(recipe_from_toml(tiny_recipe), tiny_data, folder)
    return folder


def int8(graph: onnx.ModelProto) -> onnx.ModelProto:
    """All of a graph in INT8."""
    return quantised(graph, measured_ranges(graph, PICTURES[:8], "minmax"), (), Target.ONNXRUNTIME_CPU)


def served(model: onnx.ModelProto, folder: Path, images: np.ndarray = UNSEEN) -> dict[str, np.ndarray]:
    """What the appliance's own engine says."""
    (folder / "served.onnx").write_bytes(model.SerializeToString())
    return {name: np.asarray(each) for name, each in Runner(folder, "served.onnx", ()).features(images).items()}


def lost(said: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> float:
    """Squared differences of all features as shares of their variance."""
    return float(sum(np.square(said[name] - wanted[name]).mean() / wanted[name].var() for name in ENCODER_OUTPUTS))


@pytest.mark.parametrize("architecture", ["narrow", "mobilenetv4_conv_small"])
def test_torch_says_what_the_served_graph_says(architecture: str, tmp_path: Path) -> None:
    """For both families that it knows: FP32 but for rounding, and what the served INT8 graph rounds."""
    torch.manual_seed(1)
    net = MultiTaskNet(ARCHITECTURES[architecture]).eval()
    image = torch.zeros((2, 1, 512, 512), dtype=torch.uint8)
    export_module(net.encoder, (image,), ("image",), ENCODER_OUTPUTS, tmp_path / ENCODER)
    graph = onnx.load(tmp_path / ENCODER)
    rounded = int8(graph)
    known = {**constants(graph), "image": torch.from_numpy(UNSEEN)}
    full, less = served(graph, tmp_path), served(rounded, tmp_path)
    with torch.no_grad():
        in_torch = {name: each.numpy() for name, each in computed(graph, known).items()}
        faked = {name: each.numpy() for name, each in computed(graph, known, fake_quantisation(rounded)).items()}
    assert lost(in_torch, full) < 1e-6
    assert lost(faked, less) < lost(less, full) / 3


def test_fine_tuning_wins_back_some_of_what_a_loud_channel_costs(graph: onnx.ModelProto, tmp_path: Path) -> None:
    """On pictures that it did not see, the served INT8 graph is nearer to FP32 by a quarter and more."""
    full = served(graph, tmp_path)
    before = lost(served(int8(graph), tmp_path), full)
    told: list[str] = []
    tuned = fine_tuned(graph, int8(graph), Lesson(PICTURES, range(24), (), 40, 1), told.append)
    assert lost(served(int8(tuned), tmp_path), full) < 0.75 * before
    assert [line.split(",")[0] for line in told] == [f"INT8 fine-tuning: step {step}/40" for step in (10, 20, 30, 40)]


def test_fine_tuning_is_the_same_each_time(graph: onnx.ModelProto, graphs: Path) -> None:
    """Seed and step alone decide what is seen; heads take part; the graph that came in is left as it was."""
    before = graph.SerializeToString(deterministic=True)
    heads = [onnx.load(graphs / "tasks" / "adult-triage" / "head.onnx")]
    lesson = Lesson(PICTURES, (1, 4, 9), heads, 3, 2)
    first, second = (fine_tuned(graph, int8(graph), lesson, lambda _: None) for _ in range(2))
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True) != before
    assert graph.SerializeToString(deterministic=True) == before


@pytest.fixture
def search(
    prepared: Path, graphs: Path, tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[str]]:
    """Runs the step into a folder with other bounds; returns what was told."""
    monkeypatch.setattr("export.quantise_search.ROUNDS", 1)
    monkeypatch.setattr("export.quantise_search.FULL_LAYERS", (0, 1, 2))
    recipe = recipe_from_toml(tiny_recipe)

    def run(out: Path, shift: float, steps: int, interrupt: str = "") -> list[str]:
        told: list[str] = []

        def say(text: str) -> None:
            told.append(text)
            if interrupt and interrupt in text:
                raise KeyboardInterrupt

        section = dataclasses.replace(recipe.quantise, score_shift_max=shift, aware_steps=steps)
        bounded: Recipe = dataclasses.replace(recipe, quantise=section)
        search_precision(bounded, image_set(prepared), graphs, out=out, say=say)
        return told

    return run


def test_inside_the_bounds_nothing_is_fine_tuned(search: Callable[..., list[str]], tmp_path: Path) -> None:
    """A recipe that allows it does without where a setting is inside; one that does not allow it always does."""
    told = search(tmp_path / "inside", 1.0, 10) + search(tmp_path / "off", -1.0, 0)
    for folder in ("inside", "off"):
        record = read_json(tmp_path / folder / SEARCH_RECORD)
        assert record["aware_steps"] == 0
        assert not any(trial["aware"] for trial in record["trials"])
        assert not (tmp_path / folder / AWARE).exists()
        assert "fine-tuned" not in str(search_table(record))
    assert not any("fine-tun" in line for line in told)


def test_outside_the_bounds_the_encoder_is_fine_tuned_and_brought_inside(
    search: Callable[..., list[str]], graphs: Path, tmp_path: Path
) -> None:
    """Only both INT8 graphs change; record and table say so; with a bound between, the fine-tuned setting is kept."""
    search(tmp_path / "never", -1.0, 20)
    trials = read_json(tmp_path / "never" / SEARCH_RECORD)["trials"]
    plain, aware = (min(t["loss"]["shift"] for t in trials if t["aware"] is each) for each in (False, True))
    assert aware < plain
    search(tmp_path / "once", (plain + aware) / 2, 20)
    record = read_json(tmp_path / "once" / SEARCH_RECORD)
    chosen = record["trials"][record["chosen"]]
    assert (record["aware_steps"], chosen["aware"], chosen["broken"]) == (20, True, "")
    table = search_table(record)
    assert table["rows"][record["chosen"]][0].endswith(", fine-tuned")
    assert table["rows"][record["chosen"]][-1] == "kept"
    assert "fine-tuned for 20 steps" in table["note"]
    worst = max(record["sensitivities"].items(), key=lambda item: item[1])[0]
    assert f"moves the scores most: `{worst}`" in table["note"]
    for name in (ENCODER, "encoder.fp16.onnx", "tasks/guard/head.onnx", "tasks/lungs/head.onnx"):
        assert (tmp_path / "once" / name).read_bytes() == (graphs / name).read_bytes()
    assert is_fp8(onnx.load(tmp_path / "once" / FP8_FOR_TENSORRT))
    search(tmp_path / "plain", 1.0, 0)
    for name in (QUANTISED, FOR_TENSORRT):
        assert (tmp_path / "once" / name).read_bytes() != (tmp_path / "plain" / name).read_bytes()


def test_an_operator_that_torch_is_not_told_of_is_named_before_anything_is_searched(
    prepared: Path, graph: onnx.ModelProto, tiny_recipe: Path, tmp_path: Path
) -> None:
    """A recipe that allows the fine-tuning of an encoder that can't be is refused with operator, layer and key."""
    other = copy.deepcopy(graph)
    node = next(node for node in other.graph.node if node.op_type == "Clip")
    node.op_type = "Enchant"
    (tmp_path / "graphs").mkdir()
    (tmp_path / "graphs" / ENCODER).write_bytes(other.SerializeToString())
    recipe = recipe_from_toml(tiny_recipe)
    recipe = dataclasses.replace(recipe, quantise=dataclasses.replace(recipe.quantise, aware_steps=1))
    told: list[str] = []
    with pytest.raises(EngineFileError, match=rf"aware_steps.* the operator Enchant of the layer {node.name}"):
        search_precision(recipe, image_set(prepared), tmp_path / "graphs", out=tmp_path / "out", say=told.append)
    assert told == []


def test_an_interrupted_fine_tuning_leaves_nothing_and_a_finished_one_is_taken_up(
    search: Callable[..., list[str]], tmp_path: Path
) -> None:
    """Stopped while it learns, it begins anew; stopped after it, while the second search runs, it is not done again."""
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, -1.0, 10, "fine-tuning: step 10/10")
    assert not list(tmp_path.glob("encoder.aware*"))
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, -1.0, 10, "fine-tuned INT8 but for 1 layers")
    whole = (tmp_path / AWARE).read_bytes()
    assert not (tmp_path / SEARCH_RECORD).exists()
    told = search(tmp_path, -1.0, 10)
    assert not any("fine-tuning: step" in line for line in told)
    assert (tmp_path / AWARE).read_bytes() == whole
    assert any(trial["aware"] for trial in read_json(tmp_path / SEARCH_RECORD)["trials"])
