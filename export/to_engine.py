"""Step `to_engine`: engines ahead of time for TensorRT for RTX, which compiles without a GPU; and the way to TensorRT.

Half precision comes from a graph that was exported in half precision, INT8 from Q/DQ nodes with FP32 biases. For a
small net INT8 may come out larger than FP16; its speed can't be measured without a GPU, so an INT8 engine goes along
only where it is also the smaller file. FP8 is built to know that it can be: no gate measures it without a GPU, so its
engine never goes along. TensorRT itself compiles for the GPU that it finds: where both are here, the half-precision
graph is compiled for it; without a GPU the graph is parsed at most.
"""

import hashlib
import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from appliance.domain.engine_file import EngineMetadata
from appliance.domain.errors import EngineFileError
from appliance.inference.engine_build import SUFFIX, BuildPlan, bindings, build_engine
from appliance.inference.engine_file import write_engine
from export.artefacts import write_json
from export.device import compute_capability
from export.disk import write_whole
from export.fp8 import CAPABILITIES as FP8_GPUS
from export.fp8 import is_fp8, refuse_capabilities_without_fp8
from export.layout import ENGINE_RECORD, FOR_TENSORRT, FP8_FOR_TENSORRT
from export.operators import refuse_unknown_operators

SOURCES = {"fp16": "encoder.fp16.onnx", "int8": FOR_TENSORRT}
"""What each precision's engine is built from."""
GPUS = {"": ("8.0", "8.6", "8.9"), ".sm75": ("7.5",)}
"""Part of an engine's name to the compute capabilities in it: Ampere and Ada in one file, Turing in another."""
FP8_ENGINE = f"encoder.fp8{SUFFIX}"
TENSORRT_ENGINE = "encoder.fp16.trt.engine"
TIMING_CACHE = "tensorrt.timing-cache"
"""Beside the steps' folders, for the next build."""
_LONGEST_LOG = 3


@dataclass(frozen=True, slots=True)
class TensorRtPlan:
    """How TensorRT compiles: batches of 1 to `max_batch`, best at `usual_batch`.

    `version_compatible` engines run on later minor versions, at some cost in speed; `timing_cache` remembers measured
    kernels from one build to the next, for one GPU and version: one of another is begun anew.
    """

    usual_batch: int = 4
    max_batch: int = 16
    version_compatible: bool = False
    timing_cache: Path | None = None


def to_engine(graphs: Path, out: Path, say: Callable[[str], None]) -> None:
    """Build every engine that this machine can build, with its description beside it, and `engines.json`.

    Args:
        graphs: The artefact of the step `quantise`.
        out: Folder to write to; engines that are not worth shipping are measured and removed again.
        say: Told about progress.
    """
    plan = TensorRtPlan(timing_cache=out.parent / TIMING_CACHE)
    verdict = with_tensorrt((graphs / SOURCES["fp16"]).read_bytes(), out / TENSORRT_ENGINE, plan, compute_capability())
    record: dict[str, Any] = {"tensorrt-rtx": [], "tensorrt": verdict}
    try:
        bindings()
    except EngineFileError as error:
        record["tensorrt-rtx-missing"] = str(error)
        write_json(out / ENGINE_RECORD, record)
        say(str(error))
        return
    sizes: dict[tuple[str, str], EngineMetadata] = {}
    for precision, source in SOURCES.items():
        for part, capabilities in GPUS.items():
            name = f"encoder.{precision}{part}{SUFFIX}"
            built = build_rtx((graphs / source).read_bytes(), out / name, BuildPlan(precision, capabilities))
            sizes[precision, part] = built
            say(f"{name}: {built.size_bytes / 1e6:.1f} MB in {built.build_seconds:.1f} s")
    for part in GPUS:
        smaller = sizes["int8", part].size_bytes < sizes["fp16", part].size_bytes
        left_out = {"fp16": "", "int8": "" if smaller else "not smaller than FP16"}
        if not smaller:
            _remove(out / f"encoder.int8{part}{SUFFIX}")
        record["tensorrt-rtx"] += [
            _row(f"encoder.{precision}{part}{SUFFIX}", sizes[precision, part], left_out[precision])
            for precision in SOURCES
        ]
    try:
        built = build_rtx((graphs / FP8_FOR_TENSORRT).read_bytes(), out / FP8_ENGINE, BuildPlan("fp8", FP8_GPUS))
        record["tensorrt-rtx"].append(_row(FP8_ENGINE, built, "no gate measures it"))
        _remove(out / FP8_ENGINE)
    except EngineFileError as error:
        record["fp8-missing"] = str(error)
        say(str(error))
    write_json(out / ENGINE_RECORD, record)


def _row(file: str, built: EngineMetadata, left_out: str) -> dict[str, Any]:
    return {
        "file": file,
        "precision": built.precision,
        "compute_capabilities": list(built.compute_capabilities),
        "runtime_version": built.runtime_version,
        "size_bytes": built.size_bytes,
        "build_seconds": built.build_seconds,
        "kept": not left_out,
        "left_out": left_out,
    }


def _remove(engine: Path) -> None:
    for file in engine.parent.glob(f"{engine.name}*"):
        file.unlink()


def build_rtx(graph: bytes, engine: Path, plan: BuildPlan) -> EngineMetadata:
    """Build one engine of TensorRT for RTX.

    Raises:
        EngineFileError: The library is missing, does not know an operator (named with its layer), or fails; or the
            graph is in FP8 and the plan names GPUs without it.
    """
    library = bindings()
    parser = _parser(library)[1]
    model = onnx.load_from_string(graph)
    refuse_unknown_operators(model, "TensorRT for RTX", parser.supports_operator)
    if is_fp8(model):
        refuse_capabilities_without_fp8(plan.compute_capabilities)
    return build_engine(graph, engine, plan)


def library_versions() -> list[str]:
    """Versions of TensorRT for RTX and of TensorRT, empty where one can't be loaded: with one the step makes more.

    Where TensorRT is, the GPU's compute capability too, for which it compiles.
    """
    versions = []
    for load in (bindings, tensorrt_library):
        try:
            versions.append(str(load().__version__))
        except EngineFileError:
            versions.append("")
    return [*versions, str(compute_capability())] if versions[-1] else versions


def tensorrt_library() -> Any:
    """TensorRT, loaded when it is first asked for.

    Raises:
        EngineFileError: It is not installed, or a library of it is missing; says which.
    """
    try:
        return importlib.import_module("tensorrt")
    except (ImportError, OSError) as error:
        raise EngineFileError(
            f"TensorRT can't be loaded: {error}.",
            "The appliance builds with TensorRT for RTX, from the signed ONNX; or install `tensorrt` with the "
            "libraries of NVIDIA's index.",
        ) from error


def tensorrt_verdict(graph: bytes, library: Any = None) -> str:
    """Whether TensorRT reads a graph, in one sentence; where TensorRT is missing, what is missing."""
    try:
        library = library if library is not None else tensorrt_library()
        network = parsed_network(graph, library)[1]
    except EngineFileError as error:
        return str(error)
    return f"TensorRT {library.__version__} reads the graph: {network.num_layers} layers, strongly typed."


def with_tensorrt(graph: bytes, engine: Path, plan: TensorRtPlan, capability: str | None) -> str:
    """Compile a half-precision graph with TensorRT where it and a GPU are here; what became of it, in one sentence.

    Args:
        graph: The ONNX file's content.
        engine: Where the engine goes, with its description beside it.
        plan: How it is compiled.
        capability: The GPU's compute capability; None where there is no GPU, and the graph is parsed at most.
    """
    try:
        library = tensorrt_library()
        if capability is None:
            return tensorrt_verdict(graph, library)
        started = time.perf_counter()
        data = build_tensorrt(graph, plan, library)
    except EngineFileError as error:
        return str(error)
    built = EngineMetadata(
        runtime="tensorrt",
        runtime_version=str(library.__version__),
        compute_capabilities=(capability,),
        precision="fp16",
        max_batch=plan.max_batch,
        source_sha256=hashlib.sha256(graph).hexdigest(),
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
        build_seconds=round(time.perf_counter() - started, 3),
    )
    write_engine(engine, memoryview(data), built)
    return (
        f"TensorRT {built.runtime_version} built {engine.name} for compute capability {capability}: "
        f"{built.size_bytes / 1e6:.1f} MB in {built.build_seconds:.1f} s."
    )


def parsed_network(graph: bytes, library: Any) -> tuple[Any, Any, Any]:
    """(builder, network, parser) of a graph, strongly typed; the parser owns what the network's weights point to.

    Raises:
        EngineFileError: An operator that the library does not know, named with its layer; FP8, where it has no such
            type; or what its parser says.
    """
    builder, parser, network = _parser(library)
    model = onnx.load_from_string(graph)
    refuse_unknown_operators(model, "TensorRT", parser.supports_operator)
    if is_fp8(model) and not hasattr(library.DataType, "FP8"):
        raise EngineFileError(f"TensorRT {library.__version__} has no type FP8.", "Install tensorrt>=11.")
    if not parser.parse(graph):
        reasons = [parser.get_error(i).desc() for i in range(min(parser.num_errors, _LONGEST_LOG))]
        raise EngineFileError(f"TensorRT can't read the graph: {'; '.join(reasons)}.", "Serve it with ONNX Runtime.")
    return builder, network, parser


def build_tensorrt(graph: bytes, plan: TensorRtPlan, library: Any = None) -> bytes:
    """Compile a graph with TensorRT for the GPU of this machine.

    Raises:
        EngineFileError: TensorRT is missing or fails; there is no GPU to compile for.
    """
    trt = library if library is not None else tensorrt_library()
    builder, network, _parser_kept = parsed_network(graph, trt)
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # it would round to ten bits what the graph has in FP32
    profile = builder.create_optimization_profile()
    for position in range(network.num_inputs):
        tensor = network.get_input(position)
        rest = tuple(tensor.shape)[1:]
        profile.set_shape(tensor.name, (1, *rest), (plan.usual_batch, *rest), (plan.max_batch, *rest))
    config.add_optimization_profile(profile)
    if plan.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if plan.timing_cache is not None:
        _use_timing_cache(config, plan.timing_cache)
    built = builder.build_serialized_network(network, config)
    if built is None:
        raise EngineFileError("TensorRT could not build the engine.", "See its log; serve the graph with ONNX Runtime.")
    if plan.timing_cache is not None:
        write_whole(plan.timing_cache, bytes(config.get_timing_cache().serialize()))
    return bytes(built)


def _use_timing_cache(config: Any, file: Path) -> None:
    """Go on with the kernels that were measured before; a cache that is damaged, or of another GPU, is begun anew."""
    kept = config.create_timing_cache(file.read_bytes() if file.is_file() else b"")
    if kept is None or not config.set_timing_cache(kept, ignore_mismatch=False):
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


def _parser(trt: Any) -> tuple[Any, Any, Any]:
    logger = trt.Logger(trt.Logger.ERROR)
    try:
        builder = trt.Builder(logger)
    except TypeError as error:  # what its bindings make of a builder that was not made
        raise EngineFileError(
            "TensorRT finds no GPU here, or no driver that fits it.", "Build on a machine with a GPU."
        ) from error
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    return builder, trt.OnnxParser(network, logger), network
