"""Builds engines of TensorRT for RTX from ONNX, on machines with a GPU and without one.

The types come from the graph: half precision from an ONNX file of FP16, INT8 from its Q/DQ nodes. One file holds code
for several generations of GPUs, and runs only under the version of the runtime that built it.
"""

import hashlib
import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from appliance.domain.engine_file import EngineMetadata
from appliance.domain.errors import EngineFileError
from appliance.inference.engine_file import write_engine
from appliance.inference.tensors import MAX_BATCH

RUNTIME = "tensorrt-rtx"
SUFFIX = ".trtrtx.engine"
PORTABLE = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
"""Compute capabilities that TensorRT for RTX 1.7 compiles for."""

_MODULE = "tensorrt_rtx_bindings"
_WORST_FIRST = ("INTERNAL_ERROR", "ERROR")

Progress = Callable[[str, int, int], bool]
"""Told (phase, step, steps) as a build goes on; what it returns says whether to go on."""


@dataclass(frozen=True, slots=True)
class BuildPlan:
    """What to build.

    Attributes:
        precision: What the graph computes in, for the description.
        compute_capabilities: GPUs to compile for, of `PORTABLE`.
        usual_batch: Images for which kernels are chosen; between 1 and `max_batch` may come.
        optimisation_level: 0 (builds at once) to 5 (searches longest).
    """

    precision: str
    compute_capabilities: tuple[str, ...] = ("8.0", "8.6", "8.9")
    usual_batch: int = 4
    max_batch: int = MAX_BATCH
    optimisation_level: int = 3


def bindings() -> ModuleType:
    """The library, loaded when it is first needed: two hundred megabytes that a machine without GPU has no use for.

    Raises:
        EngineFileError: It is not installed, or a library that it needs is missing; says which.
    """
    try:
        return importlib.import_module(_MODULE)
    except (ImportError, OSError) as error:
        raise EngineFileError(
            f"TensorRT for RTX can't be loaded: {error}.",
            "Install insite[gpu], or insite[export] to build without a GPU.",
        ) from error


def build_engine(
    graph: bytes, engine: Path, plan: BuildPlan, *, progress: Progress | None = None, library: Any = None
) -> EngineMetadata:
    """Compile a graph and put the engine and its description in place.

    Args:
        graph: An ONNX file's content, all weights inside; the description names its SHA-256.
        engine: Where the engine goes; its name should end with `SUFFIX`. Its folder must be there.
        library: Stands in for the library in tests.

    Raises:
        EngineFileError: The graph can't be compiled (the sentence names the node), `progress` stopped it, or a
            compute capability is none that the library knows.
    """
    trt = library if library is not None else bindings()
    started = time.perf_counter()
    heard = _logger(trt)
    builder = trt.Builder(heard)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, heard)
    if not parser.parse(graph):
        raise _unparsed(engine.name, parser)
    config = _config(trt, builder, network, plan)
    if progress is not None:
        config.progress_monitor = _monitor(trt, progress)
    built = builder.build_serialized_network(network, config)
    if built is None:
        reason = heard.last or "it gave no reason"
        raise EngineFileError(
            f"TensorRT for RTX could not build {engine.name}: {reason}.", "Serve the graph with ONNX Runtime."
        )
    data = memoryview(built)
    metadata = EngineMetadata(
        runtime=RUNTIME,
        runtime_version=str(trt.__version__),
        compute_capabilities=plan.compute_capabilities,
        precision=plan.precision,
        max_batch=plan.max_batch,
        source_sha256=hashlib.sha256(graph).hexdigest(),
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=data.nbytes,
        build_seconds=round(time.perf_counter() - started, 3),
    )
    write_engine(engine, data, metadata)
    return metadata


def _config(trt: Any, builder: Any, network: Any, plan: BuildPlan) -> Any:
    config = builder.create_builder_config()
    config.builder_optimization_level = plan.optimisation_level
    config.clear_flag(trt.BuilderFlag.TF32)  # it would round to ten bits what a pack says is computed in FP32
    config.num_compute_capabilities = len(plan.compute_capabilities)
    for position, capability in enumerate(plan.compute_capabilities):
        name = f"SM{capability.replace('.', '')}"
        known = getattr(trt.ComputeCapability, name, None)
        if known is None or not config.set_compute_capability(known, position):
            raise EngineFileError(
                f"TensorRT for RTX does not compile for compute capability {capability}.",
                f"It does for {', '.join(PORTABLE)}.",
            )
    profile = builder.create_optimization_profile()
    for position in range(network.num_inputs):
        tensor = network.get_input(position)
        rest = tuple(tensor.shape)[1:]
        profile.set_shape(tensor.name, (1, *rest), (plan.usual_batch, *rest), (plan.max_batch, *rest))
    config.add_optimization_profile(profile)
    return config


def _unparsed(name: str, parser: Any) -> EngineFileError:
    first = parser.get_error(0).desc().splitlines() if parser.num_errors else ["it gave no reason"]
    way_forward = "Serve the graph with ONNX Runtime."
    if any("Int32" in line and "Dequantize" in line for line in first):
        way_forward = "Quantise with QuantizeBias=False: TensorRT takes no INT32 biases."
    return EngineFileError(f"TensorRT for RTX can't read the graph of {name}: {' '.join(first[:2])}.", way_forward)


def _logger(trt: Any) -> Any:
    class Heard(trt.ILogger):  # type: ignore[misc]
        """Keeps the last error: the library says why in its log only."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last = ""

        def log(self, severity: Any, message: str) -> None:
            if severity.name in _WORST_FIRST:
                self.last = message

    return Heard()


def _monitor(trt: Any, progress: Progress) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Hands on each step; the library calls it from threads of its own."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            del parent_phase
            self._steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            return progress(phase_name, step + 1, self._steps.get(phase_name, 0))

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

    return Monitor()
