"""The engine that every machine has: ONNX Runtime on the CPU."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from threading import Lock
from typing import Any

import onnxruntime

from appliance.domain.errors import InferenceError, PackContentError
from appliance.domain.manifest import TensorSpec
from appliance.inference.described_engine import DescribedEngine, Description
from appliance.inference.tensors import MAX_BATCH, Array, Tensor

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
LARGE_BATCH = 4
HEAD_THREADS = 2
"""Threads of a head's run. Each session has a pool of its own: with the encoder's number, a pack of four tasks would
hold five pools, on sixteen CPUs 75 threads of the 128 tasks that the daemon's unit allows."""
MOST_LANES = MAX_BATCH
"""Batches at once: as many as one request may hold images; each is a thread of the 128 as well."""
UNWANTED_OPTIMISERS = ("WeightBiasQuantization",)
"""What ONNX Runtime must leave alone: it rounds the weights of a layer that a pack keeps in FP32 between two in INT8,
with one scale for all channels. The pack's maker decides what is rounded, and has measured it."""
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


class Crowd:
    """How many batches are worked on at this moment."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._count = 0

    @property
    def alone(self) -> bool:
        """Whether there is one at most."""
        return self._count <= 1

    @contextmanager
    def one_more(self) -> Iterator[None]:
        """Count one from here to the end of the `with`."""
        with self._lock:
            self._count += 1
        try:
            yield
        finally:
            with self._lock:
                self._count -= 1


class OnnxRuntimeCpu:
    """Makes engines that use a number of threads.

    A batch that is worked on alone is computed by all threads together, which answers soonest. Of several at once each
    is computed by one thread: none waits for another after each operator, so that more get done.

    Args:
        threads: Threads of one run, at least 1.
        crowd: Counts the batches that are worked on.
    """

    def __init__(self, threads: int, crowd: Crowd | None = None) -> None:
        self._threads = threads
        self._crowd = crowd or Crowd()

    def for_heads(self) -> "OnnxRuntimeCpu":
        """The same with few threads; see `HoldsThreads`."""
        return OnnxRuntimeCpu(min(self._threads, HEAD_THREADS), self._crowd)

    @property
    def lanes(self) -> int:
        """One a thread; see `SideBySide`."""
        return min(self._threads, MOST_LANES)

    def working(self) -> AbstractContextManager[None]:
        """See `SideBySide`."""
        return self._crowd.one_more()

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
        try:
            together = _session(graph, self._threads)
            apart = _session(graph, 1) if self._threads > 1 else together
            return OnnxRuntimeCpuEngine(together, apart, self._crowd, title=title, precision=precision)
        except FAILURES as error:
            raise PackContentError(
                f"ONNX Runtime can't load {title}: {error}.", "Build the pack again for this software."
            ) from error


def _session(graph: bytes, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = _FATAL_ONLY
    # Threads wait for each other by spinning while a graph runs, and never between runs: the node, the worker and the
    # database live on the same CPUs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(
        graph, options, providers=list(_PROVIDERS), enable_fallback=0, disabled_optimizers=list(UNWANTED_OPTIMISERS)
    )


class OnnxRuntimeCpuEngine(DescribedEngine):
    """One graph in two sessions: of all threads together, and of the one thread that asks.

    Args:
        together, apart: The sessions; one and the same where there is one thread.
        crowd: Says which of them runs.
    """

    def __init__(
        self,
        together: onnxruntime.InferenceSession,
        apart: onnxruntime.InferenceSession,
        crowd: Crowd,
        *,
        title: str,
        precision: str,
    ) -> None:
        inputs, outputs = specs_of(together.get_inputs()), specs_of(together.get_outputs())
        super().__init__(Description(NAME, title, precision, inputs, outputs))
        self._sessions: tuple[onnxruntime.InferenceSession, onnxruntime.InferenceSession] | None = (together, apart)
        self._crowd = crowd
        # A burst of large batches must not keep its memory for good; a small batch would pay for it at each run.
        self._large = onnxruntime.RunOptions()
        self._large.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self._small = onnxruntime.RunOptions()

    def run_on_device(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The host's memory is the device's; see `Engine.run_on_device`."""
        return self.run(inputs)

    def run(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Array]:
        """Compute all outputs; see `Engine.run`."""
        together, apart = self.ready(self._sessions, inputs)
        names = [spec.name for spec in self._is.outputs]
        session = together if self._crowd.alone else apart
        try:
            arrays = session.run(names, dict(inputs), self._large if _is_large(inputs) else self._small)
        except FAILURES as error:
            raise InferenceError(f"ONNX Runtime failed on {self._is.title}: {error}.", "See the log.") from error
        return dict(zip(names, arrays, strict=True))

    def close(self) -> None:
        """Let the session go."""
        self._sessions = None


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
