"""Engines are built by the real library, without a GPU, and refused for the right reason where they can't run."""

import hashlib
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from appliance.domain.engine_file import EngineHost, EngineRefusal
from appliance.domain.errors import EngineFileError
from appliance.inference import engine_build
from appliance.inference.engine_build import SUFFIX, BuildPlan, _config, bindings, build_engine
from appliance.inference.engine_file import checked_engine, engine_metadata
from appliance.packs.open import open_pack
from tests.fakes.tiny_pack import encoder_graph

TINY = encoder_graph().SerializeToString()


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """Where an engine goes."""
    return tmp_path / f"encoder{SUFFIX}"


def test_the_signed_encoder_becomes_an_engine_that_waits_for_its_gpu(repository: Path, engine: Path) -> None:
    """The chest pack's encoder is compiled from its signed ONNX, and a machine without GPU says just that."""
    pack = open_pack(
        repository / "engines" / "chest-xray", [repository / "engines/keys/release.pub.pem"], allow_unvalidated=False
    )
    built = build_engine((pack.folder / "encoder.onnx").read_bytes(), engine, BuildPlan("fp32"))
    assert built == engine_metadata(engine)
    assert built.source_sha256 == pack.manifest.files["encoder.onnx"]
    assert built.runtime_version == version("tensorrt_rtx_cu13_bindings")
    assert (built.compute_capabilities, built.size_bytes) == (("8.0", "8.6", "8.9"), engine.stat().st_size)
    assert built.sha256 == hashlib.sha256(engine.read_bytes()).hexdigest()
    here = EngineHost((("tensorrt-rtx", built.runtime_version),), None)
    with pytest.raises(EngineFileError, match="needs an NVIDIA GPU") as refused:
        checked_engine(engine, built.source_sha256, here)
    assert refused.value.refusal is EngineRefusal.NO_GPU


def test_progress_is_told_and_may_stop_the_build(engine: Path) -> None:
    """Each step is told with how many there are; a build that is told to stop leaves no file."""
    told: list[tuple[str, int, int]] = []
    build_engine(TINY, engine, BuildPlan("fp32", ("8.9",)), progress=lambda *step: not told.append(step))
    assert all(1 <= step <= steps for _, step, steps in told)
    assert told
    engine.unlink()
    with pytest.raises(EngineFileError, match="could not build"):
        build_engine(TINY, engine, BuildPlan("fp32", ("8.9",)), progress=lambda *_: False)
    assert not engine.exists()


def test_full_precision_is_computed_in_full_precision() -> None:
    """The library's own default would round FP32 to TF32."""
    trt = bindings()
    builder = trt.Builder(trt.Logger())
    assert builder.create_builder_config().get_flag(trt.BuilderFlag.TF32)
    config = _config(trt, builder, builder.create_network(0), BuildPlan("fp32"))
    assert not config.get_flag(trt.BuilderFlag.TF32)


@pytest.mark.parametrize("graph", [b"", b"no graph", TINY[:-50]], ids=["empty", "foreign", "truncated"])
def test_what_is_no_graph_is_not_built(engine: Path, graph: bytes) -> None:
    """A damaged ONNX file gets a sentence, and no engine file."""
    with pytest.raises(EngineFileError, match=r"can't read the graph|at least one output"):
        build_engine(graph, engine, BuildPlan("fp32"))
    assert list(engine.parent.iterdir()) == []


def test_int32_biases_are_named_as_the_reason(repository: Path, engine: Path) -> None:
    """A graph that was quantised for ONNX Runtime alone says how to quantise it for TensorRT too."""
    graph = (repository / "engines" / "chest-xray" / "encoder.int8.onnx").read_bytes()
    with pytest.raises(EngineFileError, match="QuantizeBias=False"):
        build_engine(graph, engine, BuildPlan("int8"))


def test_an_unknown_gpu_is_refused(engine: Path) -> None:
    """A compute capability that the library does not compile for is named, with those that it does."""
    with pytest.raises(EngineFileError, match=r"capability 6\.1.*7\.5, 8\.0"):
        build_engine(TINY, engine, BuildPlan("fp32", ("6.1",)))


def test_a_missing_library_is_said(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the wheels the sentence names the extra that brings them."""
    monkeypatch.setitem(sys.modules, engine_build._MODULE, None)
    with pytest.raises(EngineFileError, match=r"insite\[gpu\]"):
        build_engine(TINY, engine, BuildPlan("fp32"))
