"""The engine that every machine has: ONNX Runtime on the CPU."""

from collections.abc import Mapping, Sequence
from typing import Any

import onnxruntime

from appliance.domain.errors import InferenceError, InferenceUnavailableError, PackContentError
from appliance.domain.manifest import TensorSpec
from appliance.inference.tensors import Array, Tensor, check_inputs

NAME = "onnxruntime-cpu"

_PROVIDERS = ("CPUExecutionProvider",)
_DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
}
DYNAMIC_BLOCKS = 4
LARGE_BATCH = 4
HEAD_THREADS = 2
"""Threads of a head's run. Each session has a pool of its own: with the encoder's number, a pack of four tasks would
hold five pools, on sixteen CPUs 75 threads of the 128 tasks that the daemon's unit allows."""
_FATAL_ONLY = 4
"""ONNX Runtime's severity level; its errors reach us as exceptions, and our log from there."""

_native = onnxruntime.capi.onnxruntime_pybind11_state
FAILURES = (
    _native.Fail,
    _native.InvalidArgument,
    _native.InvalidGraph,
    _native.InvalidProtobuf,
    _native.NotImplemented,
    _native.RuntimeException,
    _native.EngineError,
    _native.EPFail,
    RuntimeError,
    UnicodeDecodeError,
)
"""The library's errors have no common root of their own; RuntimeError is what its C++ exceptions become, and
UnicodeDecodeError what a message becomes that quotes a damaged name."""


class OnnxRuntimeCpu:
    """Makes engines that share a number of threads among the operators of one graph.

    Args:
        threads: Threads of one run, at least 1.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads

    def for_heads(self) -> "OnnxRuntimeCpu":
        """The same with few threads; see `HoldsThreads`."""
        return OnnxRuntimeCpu(min(self._threads, HEAD_THREADS))

    @property
    def name(self) -> str:
        """The name by which a manifest asks for it."""
        return NAME

    @property
    def version(self) -> str:
        """Of ONNX Runtime."""
        return str(onnxruntime.__version__)

    def load(self, graph: bytes, *, title: str, precision: str) -> "OnnxRuntimeCpuEngine":
        """Make an engine; see `Runtime.load`."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = _FATAL_ONLY
        # Idle threads must not spin: the node, the worker and the database live on the same CPUs.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Operators are cut into blocks that threads take as they come: one that is held up does not hold up the others.
        options.add_session_config_entry("session.dynamic_block_base", str(DYNAMIC_BLOCKS))
        try:
            session = onnxruntime.InferenceSession(graph, options, providers=list(_PROVIDERS), enable_fallback=0)
            return OnnxRuntimeCpuEngine(session, title, precision)
        except FAILURES as error:
            raise PackContentError(
                f"ONNX Runtime can't load {title}: {error}.", "Build the pack again for this software."
            ) from error


class OnnxRuntimeCpuEngine:
    """One ONNX Runtime session."""

    def __init__(self, session: onnxruntime.InferenceSession, title: str, precision: str) -> None:
        self._session: onnxruntime.InferenceSession | None = session
        self._title = title
        self._precision = precision
        self._inputs = specs_of(session.get_inputs())
        self._outputs = specs_of(session.get_outputs())
        # A burst of large batches must not keep its memory for good; a small batch would pay for it at each run.
        self._large = onnxruntime.RunOptions()
        self._large.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self._small = onnxruntime.RunOptions()

    @property
    def runtime(self) -> str:
        """The runtime's name."""
        return NAME

    @property
    def precision(self) -> str:
        """What the graph computes in."""
        return self._precision

    @property
    def inputs(self) -> Sequence[TensorSpec]:
        """The graph's inputs."""
        return self._inputs

    @property
    def outputs(self) -> Sequence[TensorSpec]:
        """The graph's outputs."""
        return self._outputs

    def run_on_device(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The host's memory is the device's; see `Engine.run_on_device`."""
        return self.run(inputs)

    def run(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Array]:
        """Compute all outputs; see `Engine.run`."""
        session = self._session
        if session is None:
            raise InferenceUnavailableError(f"{self._title} is closed.", "Ask again when the pack is loaded.")
        check_inputs(self._inputs, inputs, self._title)
        names = [spec.name for spec in self._outputs]
        try:
            arrays = session.run(names, dict(inputs), self._large if _is_large(inputs) else self._small)
        except FAILURES as error:
            raise InferenceError(f"ONNX Runtime failed on {self._title}: {error}.", "See the log.") from error
        return dict(zip(names, arrays, strict=True))

    def close(self) -> None:
        """Let the session go."""
        self._session = None


def _is_large(inputs: Mapping[str, Tensor]) -> bool:
    return max((tensor.shape[0] for tensor in inputs.values() if tensor.shape), default=0) > LARGE_BATCH


def specs_of(nodes: Sequence[Any]) -> tuple[TensorSpec, ...]:
    """What ONNX Runtime says of a graph's inputs or outputs; -1 for each length that is open."""
    return tuple(
        TensorSpec(
            node.name,
            _DATATYPES.get(node.type, node.type),
            tuple(length if isinstance(length, int) else -1 for length in node.shape),
        )
        for node in nodes
    )
