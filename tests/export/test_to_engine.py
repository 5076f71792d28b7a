"""Engines are really built from the shipped pack, without a GPU; what can't be built says why."""

import shutil
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest

from appliance.domain.engine_file import EngineHost
from appliance.domain.errors import EngineFileError
from appliance.domain.manifest import InputSpec
from appliance.inference.engine_build import SUFFIX, BuildPlan, bindings
from appliance.inference.engine_file import checked_engine, engine_metadata, header_version
from export.artefacts import file_sha256, read_json
from export.fp8 import fp8_from_int8
from export.layout import ENGINE_RECORD, FOR_TENSORRT, FP8_FOR_TENSORRT
from export.phantoms import phantom
from export.quantise import Target, measured_ranges, quantised
from export.speeds import engine_table
from export.to_engine import (
    GPUS,
    TENSORRT_ENGINE,
    TIMING_CACHE,
    TensorRtPlan,
    build_rtx,
    build_tensorrt,
    parsed_network,
    tensorrt_library,
    tensorrt_verdict,
    to_engine,
)
from tests.fakes.fake_tensorrt import GPU, MEASURED, FakeTensorRt
from tests.fakes.tiny_pack import encoder_graph

TINY = encoder_graph().SerializeToString()
SPEC = InputSpec("image", 512, 512, 0.5, 99.5)


@pytest.fixture(scope="module")
def graphs(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped encoder in half precision, and in INT8 and FP8 with FP32 biases, calibrated on phantoms."""
    folder = tmp_path_factory.mktemp("graphs")
    shipped = repository / "engines" / "chest-xray"
    (folder / "encoder.fp16.onnx").write_bytes((shipped / "encoder.fp16.onnx").read_bytes())
    encoder = onnx.load(shipped / "encoder.onnx")
    ranges = measured_ranges(encoder, [phantom(SPEC, seed) for seed in range(8)], "minmax")
    int8 = quantised(encoder, ranges, (), Target.TENSORRT)
    (folder / FOR_TENSORRT).write_bytes(int8.SerializeToString())
    (folder / FP8_FOR_TENSORRT).write_bytes(fp8_from_int8(int8, encoder).SerializeToString())
    return folder


def test_engines_for_ampere_ada_and_turing_are_built_without_a_gpu(graphs: Path, tmp_path: Path) -> None:
    """FP16 and INT8 for both groups of GPUs, FP8 for those that have it; what goes along is read without a driver."""
    to_engine(graphs, tmp_path, lambda _: None)
    record = read_json(tmp_path / ENGINE_RECORD)
    assert {(each["precision"], *each["compute_capabilities"]) for each in record["tensorrt-rtx"]} == {
        ("fp16", "8.0", "8.6", "8.9"), ("fp16", "7.5"), ("int8", "8.0", "8.6", "8.9"), ("int8", "7.5"),
        ("fp8", "8.9", "12.0", "12.1"),
    }  # fmt: skip
    for each in record["tensorrt-rtx"]:
        engine = tmp_path / each["file"]
        assert engine.exists() == each["kept"]
        if each["kept"]:
            described = engine_metadata(engine)
            assert described.size_bytes == engine.stat().st_size == each["size_bytes"]
            content = engine.read_bytes()
            assert header_version(content[:64], engine.name, len(content)) == described.runtime_version
            assert described.source_sha256 == file_sha256(graphs / "encoder.fp16.onnx")


def test_an_int8_engine_goes_along_only_where_it_is_smaller(graphs: Path, tmp_path: Path) -> None:
    """An INT8 engine that is larger than the FP16 one, and whose speed nobody measured, is not shipped."""
    to_engine(graphs, tmp_path, lambda _: None)
    sizes = {
        (e["precision"], len(e["compute_capabilities"])): e for e in read_json(tmp_path / ENGINE_RECORD)["tensorrt-rtx"]
    }
    for group in (1, 3):
        smaller = sizes["int8", group]["size_bytes"] < sizes["fp16", group]["size_bytes"]
        assert sizes["int8", group]["kept"] == smaller


def test_an_int8_engine_is_described_whether_it_goes_along_or_not(graphs: Path, tmp_path: Path) -> None:
    """What is said of an INT8 engine, small or not, is read without a driver: its size, precision, GPUs and source."""
    engine = tmp_path / f"encoder.int8{SUFFIX}"
    build_rtx((graphs / FOR_TENSORRT).read_bytes(), engine, BuildPlan("int8", GPUS[".sm75"]))
    described, content = engine_metadata(engine), engine.read_bytes()
    assert (described.precision, tuple(described.compute_capabilities)) == ("int8", ("7.5",))
    assert described.size_bytes == len(content)
    assert described.source_sha256 == file_sha256(graphs / FOR_TENSORRT)
    assert header_version(content[:64], engine.name, len(content)) == described.runtime_version


def test_without_the_library_the_record_says_what_is_missing(
    graphs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where TensorRT for RTX is not installed, no engine is made and the reason is kept for the report."""
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", None)
    to_engine(graphs, tmp_path, lambda _: None)
    record = read_json(tmp_path / ENGINE_RECORD)
    assert record["tensorrt-rtx"] == []
    assert "can't be loaded" in record["tensorrt-rtx-missing"]
    assert list(tmp_path.iterdir()) == [tmp_path / ENGINE_RECORD]


def test_an_fp8_engine_is_built_and_left_out(graphs: Path, tmp_path: Path) -> None:
    """That FP8 compiles is recorded; what no gate measures does not go along."""
    to_engine(graphs, tmp_path, lambda _: None)
    record = read_json(tmp_path / ENGINE_RECORD)
    row = next(each for each in record["tensorrt-rtx"] if each["precision"] == "fp8")
    assert row["size_bytes"] > 0
    assert not row["kept"]
    assert not list(tmp_path.glob("*fp8*"))
    shown = next(each for each in engine_table(record)["rows"] if "fp8" in each[0])
    assert shown[-1] == "left out: no gate measures it"


def test_an_fp8_engine_that_can_not_be_built_is_said_in_the_record(graphs: Path, tmp_path: Path) -> None:
    """The other engines are built all the same, and the table says why there is none in FP8."""
    altered, out = tmp_path / "graphs", tmp_path / "out"
    shutil.copytree(graphs, altered)
    out.mkdir()
    graph = onnx.load(altered / FP8_FOR_TENSORRT)
    graph.graph.node[-1].op_type = "Enchant"
    (altered / FP8_FOR_TENSORRT).write_bytes(graph.SerializeToString())
    to_engine(altered, out, lambda _: None)
    record = read_json(out / ENGINE_RECORD)
    assert {each["precision"] for each in record["tensorrt-rtx"]} == {"fp16", "int8"}
    assert "the operator Enchant" in record["fp8-missing"]
    assert "FP8: TensorRT for RTX does not know the operator Enchant" in engine_table(record)["note"]


def test_fp8_is_refused_for_gpus_that_lack_it(graphs: Path, tmp_path: Path) -> None:
    """Ampere has no FP8: the compute capability is named, before the library fails deep inside."""
    content = (graphs / FP8_FOR_TENSORRT).read_bytes()
    with pytest.raises(EngineFileError, match=r"compute capability 8\.6 have no FP8") as refused:
        build_rtx(content, tmp_path / f"encoder{SUFFIX}", BuildPlan("fp8", ("8.6", "8.9")))
    assert "8.9, 12.0, 12.1" in refused.value.way_forward
    assert list(tmp_path.iterdir()) == []


def test_fp8_is_refused_by_a_tensorrt_without_it(graphs: Path, parser_library: Any) -> None:
    """The type that is missing, and the version that has it, are named."""

    class Older:
        """A library of before FP8."""

        DataType = object()

        def __getattr__(self, name: str) -> Any:
            return getattr(parser_library, name)

    with pytest.raises(EngineFileError, match="has no type FP8"):
        parsed_network((graphs / FP8_FOR_TENSORRT).read_bytes(), Older())
    assert parsed_network((graphs / FOR_TENSORRT).read_bytes(), Older())[1].num_inputs == 1


def test_an_unknown_operator_is_named_with_its_layer(graphs: Path, tmp_path: Path) -> None:
    """A graph with an operator of nobody's is refused before the library meets it."""
    graph = onnx.load(graphs / "encoder.fp16.onnx")
    node = next(node for node in graph.graph.node if node.op_type == "Clip")
    node.op_type = "Enchant"
    with pytest.raises(EngineFileError, match=f"the operator Enchant of the layer {node.name}"):
        build_rtx(graph.SerializeToString(), tmp_path / f"encoder{SUFFIX}", BuildPlan("fp16"))
    assert list(tmp_path.iterdir()) == []


def test_tensorrt_is_missing_in_so_many_words(graphs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where TensorRT is not installed, the sentence says which library can't be loaded and where to build instead."""
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EngineFileError, match="TensorRT can't be loaded") as missing:
        tensorrt_library()
    assert "appliance" in missing.value.way_forward
    assert "TensorRT can't be loaded" in tensorrt_verdict((graphs / "encoder.fp16.onnx").read_bytes())


@pytest.fixture
def parser_library() -> Any:
    """A library with TensorRT's interface: TensorRT itself where it is, else TensorRT for RTX, which shares it."""
    try:
        return tensorrt_library()
    except EngineFileError:
        return bindings()


@pytest.mark.parametrize("source", ["encoder.fp16.onnx", FOR_TENSORRT, FP8_FOR_TENSORRT])
def test_the_way_to_tensorrt_reads_the_same_graphs(graphs: Path, parser_library: Any, source: str) -> None:
    """The network is built strongly typed and the parser reads both graphs; the verdict counts the layers."""
    content = (graphs / source).read_bytes()
    _, network, _ = parsed_network(content, parser_library)
    assert network.num_inputs == 1
    assert f"reads the graph: {network.num_layers} layers" in tensorrt_verdict(content, parser_library)


def test_what_the_parser_refuses_is_said(graphs: Path, parser_library: Any) -> None:
    """A graph with a node that reads what nothing makes is refused in the parser's words."""
    encoder = onnx.load(graphs / "encoder.fp16.onnx")
    encoder.graph.node[0].input[0] = "nowhere"
    with pytest.raises(EngineFileError, match="can't read the graph"):
        parsed_network(encoder.SerializeToString(), parser_library)


def test_the_way_to_tensorrt_compiles_with_a_profile(graphs: Path, parser_library: Any) -> None:
    """With a library that compiles without a GPU, the whole way gives an engine."""
    if parser_library.__name__ == "tensorrt":
        pytest.skip("TensorRT compiles for a GPU only, and its files have another header than those of its sister")
    built = build_tensorrt((graphs / "encoder.fp16.onnx").read_bytes(), TensorRtPlan(max_batch=8), parser_library)
    assert header_version(built[:64], "engine", len(built))


def test_a_plan_decides_shapes_and_flags() -> None:
    """One profile from one image to the largest batch, strongly typed, no TF32, and version-compatible if asked."""
    library = FakeTensorRt()
    plain = build_tensorrt(TINY, TensorRtPlan(usual_batch=2, max_batch=8), library)
    build_tensorrt(TINY, TensorRtPlan(version_compatible=True), library)
    assert plain.startswith(b"plan of ")
    assert plain.endswith(b"flags 2")
    assert [config.flags for config in library.configs] == [set(), {"VERSION_COMPATIBLE"}]
    assert library.configs[0].shapes == {"image": ((1, 1, 512, 512), (2, 1, 512, 512), (8, 1, 512, 512))}
    assert library.configs[0].begun_with is None


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    """The timing cache begins empty, and each build goes on with what the one before wrote."""
    library, file = FakeTensorRt(), tmp_path / "timing-cache"
    for _ in range(2):
        build_tensorrt(TINY, TensorRtPlan(timing_cache=file), library)
    assert [config.begun_with for config in library.configs] == [GPU, GPU + MEASURED]
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [(file.name, GPU + 2 * MEASURED)]


@pytest.mark.parametrize("content", [b"gpu 7.5 conv 9 us", b"damaged"])
def test_measurements_of_another_gpu_are_not_used(content: bytes, tmp_path: Path) -> None:
    """A cache of another GPU, or a damaged one, is no reason not to build: measuring begins anew."""
    library, file = FakeTensorRt(), tmp_path / "timing-cache"
    file.write_bytes(content)
    build_tensorrt(TINY, TensorRtPlan(timing_cache=file), library)
    assert library.configs[0].begun_with == GPU
    assert file.read_bytes() == GPU + MEASURED


def test_tensorrt_without_a_gpu_is_said() -> None:
    """Where the library is installed and no GPU is there, the verdict is a sentence."""
    with pytest.raises(EngineFileError, match="finds no GPU"):
        build_tensorrt(TINY, TensorRtPlan(), FakeTensorRt(has_gpu=False))
    assert "finds no GPU" in tensorrt_verdict(TINY, FakeTensorRt(has_gpu=False))


@pytest.fixture
def half(tmp_path: Path) -> Path:
    """The artefact of `quantise`, as far as TensorRT reads it."""
    folder = tmp_path / "quantise"
    folder.mkdir()
    (folder / "encoder.fp16.onnx").write_bytes(TINY)
    return folder


@pytest.mark.parametrize("capability", ["8.6", None])
def test_the_step_compiles_with_tensorrt_where_it_can(
    capability: str | None, half: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With library and GPU an engine with its description goes along, with the library alone the graph is parsed."""
    library, out = FakeTensorRt(), tmp_path / "to_engine.partial"
    out.mkdir()
    monkeypatch.setitem(sys.modules, "tensorrt", library)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", None)
    monkeypatch.setattr("export.to_engine.compute_capability", lambda: capability)
    to_engine(half, out, lambda _: None)
    record, engine = read_json(out / ENGINE_RECORD), out / TENSORRT_ENGINE
    if capability is None:
        assert "reads the graph" in record["tensorrt"]
        assert (library.configs, engine.exists()) == ([], False)
        return
    assert f"TensorRT 11.0.0.114 built {engine.name} for compute capability 8.6" in record["tensorrt"]
    here = EngineHost((("tensorrt", library.__version__),), capability)
    metadata, data = checked_engine(engine, file_sha256(half / "encoder.fp16.onnx"), here)
    assert data.startswith(b"plan of ")
    assert (metadata.runtime, metadata.precision, metadata.max_batch) == ("tensorrt", "fp16", 16)
    assert (tmp_path / TIMING_CACHE).read_bytes() == GPU + MEASURED
