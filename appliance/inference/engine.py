"""The contract of every runtime: load a graph, run it on named tensors, let it go."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

from appliance.domain.manifest import TensorSpec
from appliance.inference.tensors import Array, Tensor


class Engine(Protocol):
    """One loaded graph. `run` may be called by several threads; `close` may be called twice.

    Attributes:
        runtime: The runtime's name, as manifests write it (`onnxruntime-cpu`).
        precision: What the graph computes in (`fp32`, `int8`).
        inputs, outputs: The graph's own tensors; -1 for each length that it leaves open.
    """

    @property
    def runtime(self) -> str: ...  # noqa: D102 - described above
    @property
    def precision(self) -> str: ...  # noqa: D102 - described above
    @property
    def inputs(self) -> Sequence[TensorSpec]: ...  # noqa: D102 - described above
    @property
    def outputs(self) -> Sequence[TensorSpec]: ...  # noqa: D102 - described above

    def run(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Array]:
        """Compute all outputs from all inputs, and bring them to the host.

        Raises:
            InvalidTensorError: A name, datatype or shape that the graph does not take.
            InferenceUnavailableError: The engine is closed.
            InferenceError: The runtime failed.
        """
        ...

    def run_on_device(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """As `run`, but outputs stay where they were computed, for another engine of the same runtime."""
        ...

    def close(self) -> None:
        """Free what the engine holds; a run in progress ends normally."""
        ...


class Runtime(Protocol):
    """Somebody who makes engines on one kind of device."""

    @property
    def name(self) -> str:
        """The name by which a manifest asks for it."""
        ...

    @property
    def version(self) -> str:
        """Of the library behind it: what was measured with another one is measured again."""
        ...

    def load(self, graph: bytes, *, title: str, precision: str) -> Engine:
        """Make an engine of a verified ONNX graph.

        Args:
            graph: The file's content; it was read once, when its digest was checked.
            title: How to name it in errors.

        Raises:
            PackContentError: The runtime can't load it.
        """
        ...


@runtime_checkable
class HoldsThreads(Protocol):
    """A runtime whose every engine keeps threads of its own, so that engines with little to compute get few."""

    def for_heads(self) -> Runtime:
        """The same runtime, for the small graphs that follow an encoder."""
        ...


@runtime_checkable
class SharesMemory(Protocol):
    """A runtime that lays a limit on the device's memory for each engine, so that a pack's engines must share one."""

    def shared_by(self, heads: int) -> tuple[Runtime, Runtime]:
        """The same runtime twice: for a pack's encoder, with most of the memory, and for each of so many heads."""
        ...


@runtime_checkable
class SideBySide(Protocol):
    """A runtime whose engines compute several batches at once in the time of one: on a CPU, one on each core."""

    @property
    def lanes(self) -> int:
        """How many batches."""
        ...

    def working(self) -> AbstractContextManager[None]:
        """Entered for as long as a batch is worked on: who works alone takes the whole device, others a lane each."""
        ...
