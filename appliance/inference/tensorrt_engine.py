"""Engines of TensorRT and of TensorRT for RTX: the two libraries have one interface for running.

A graph is served from an engine file that was built from exactly this graph, for this GPU and this version of the
runtime; without one the pack is served by ONNX Runtime until it is built.
"""

import hashlib
import importlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from threading import Lock
from typing import Any

import numpy as np

from appliance.domain.engine_file import EngineHost, EngineMetadata, EngineRefusal
from appliance.domain.errors import EngineFileError, InferenceError, InvalidTensorError
from appliance.domain.gpu import GpuState
from appliance.domain.manifest import TensorSpec
from appliance.inference.cuda import Cuda, DeviceArray
from appliance.inference.described_engine import DescribedEngine, Description
from appliance.inference.engine_file import checked_engine
from appliance.inference.engine_store import EngineStore
from appliance.inference.sound_gpu import check_sound
from appliance.inference.tensors import DTYPES, Array, Tensor

TENSORRT = "tensorrt"
TENSORRT_RTX = "tensorrt-rtx"
MODULES: Mapping[str, str] = {TENSORRT: "tensorrt", TENSORRT_RTX: "tensorrt_rtx_bindings"}

DISTRIBUTIONS: Mapping[str, tuple[str, ...]] = {
    TENSORRT: ("tensorrt_cu13_bindings", "tensorrt_cu12_bindings", "tensorrt"),
    TENSORRT_RTX: ("tensorrt_rtx_cu13_bindings", "tensorrt_rtx_cu12_bindings", "tensorrt_rtx"),
}
"""The wheels that bring a library; the first that is installed tells its version."""

ENGINE_MEMORY = 2
"""An engine takes its file's size on the device, and as much again while it is read and for its first contexts."""
SPARE_BYTES = 256 * 1024 * 1024
"""Left free beside an engine: CUDA's own context, and the tensors of two batches under way."""

_DATATYPES = {
    "BOOL": "BOOL",
    "UINT8": "UINT8",
    "INT8": "INT8",
    "INT32": "INT32",
    "INT64": "INT64",
    "HALF": "FP16",
    "FLOAT": "FP32",
}


class TensorRt:
    """Makes engines of one of the two libraries.

    Args:
        name: `TENSORRT` or `TENSORRT_RTX`.
        store: Finds an engine file by its source graph.
        host: What this machine can run.
        cuda: Opens the device's memory; called when the first engine that fits is loaded.
        gpu: Its state, for the memory budget; None when it does not answer: nothing is loaded then.
        trial: Loads a file's name and checked bytes in a child process first; raises when it did not survive them.
        library: Stands in for the library in tests.
    """

    def __init__(
        self,
        name: str,
        store: EngineStore,
        host: EngineHost,
        cuda: Callable[[], Cuda],
        *,
        gpu: Callable[[], GpuState | None],
        trial: Callable[[str, bytes], None],
        library: Any = None,
    ) -> None:
        self._name = name
        self._store = store
        self._host = host
        self._cuda = cuda
        self._gpu = gpu
        self._trial = trial
        self._library = library
        self._reader: Any = None

    @property
    def name(self) -> str:
        """The name by which a manifest asks for it."""
        return self._name

    @property
    def version(self) -> str:
        """Of the library."""
        return self._host.version(self._name) or ""

    def load(self, graph: bytes, *, title: str, precision: str) -> "TensorRtEngine":
        """Make an engine of the file that was built from this graph; see `Runtime.load`.

        Raises:
            EngineFileError: There is no such file, it does not fit here, the GPU is not sound, its memory is not free,
                or the file can't be read.
        """
        source = hashlib.sha256(graph).hexdigest()
        file = self._store.find(source, self._name)
        if file is None:
            raise EngineFileError(
                f"No engine of {self._name} was built from {title} yet.", "ONNX Runtime serves until it is built."
            )
        metadata, data = checked_engine(file, source, self._host)
        self._check_gpu(metadata, title)
        self._trial(file.name, data)
        engine = self._opened().deserialize_cuda_engine(data)
        if engine is None:
            raise EngineFileError(
                f"{self._name} can't read the engine of {title}.",
                "Build the engine again on this machine.",
                refusal=EngineRefusal.CRASHED,
            )
        return TensorRtEngine(self._library, engine, self._cuda(), Served(self._name, title, precision))

    def _opened(self) -> Any:
        """The library's reader; the library is loaded only where an engine fits this machine."""
        if self._reader is None:
            self._library = self._library if self._library is not None else library_of(self._name)
            self._logger = self._library.Logger(self._library.Logger.ERROR)
            self._reader = self._library.Runtime(self._logger)
        return self._reader

    def _check_gpu(self, metadata: EngineMetadata, title: str) -> None:
        state = check_sound(self._gpu())
        needed = metadata.size_bytes * ENGINE_MEMORY + SPARE_BYTES
        if state.free_bytes < needed:
            raise EngineFileError(
                f"The engine of {title} needs {needed >> 20} MiB of the GPU's memory; "
                f"{state.free_bytes >> 20} MiB are free.",
                "Free the GPU, or serve fewer packs on it.",
            )


@dataclass(frozen=True, slots=True)
class Served:
    """What an engine is called: its runtime, its title in errors, its precision."""

    runtime: str
    title: str
    precision: str


class TensorRtEngine(DescribedEngine):
    """One engine with one execution context; made by `TensorRt.load`."""

    def __init__(self, library: Any, engine: Any, cuda: Cuda, served: Served) -> None:
        self._library = library
        self._busy = Lock()
        self._engine: Any = engine
        self._context: Any = engine.create_execution_context()
        if self._context is None:
            raise EngineFileError(
                f"{served.runtime} has no room on the GPU to run {served.title}.",
                "Free the GPU, or serve fewer packs on it.",
            )
        self._cuda = cuda
        names = [engine.get_tensor_name(position) for position in range(engine.num_io_tensors)]
        ins = library.TensorIOMode.INPUT
        inputs = tuple(self._spec(name) for name in names if engine.get_tensor_mode(name) == ins)
        outputs = tuple(self._spec(name) for name in names if engine.get_tensor_mode(name) != ins)
        super().__init__(Description(served.runtime, served.title, served.precision, inputs, outputs))

    def run(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Array]:
        """Compute all outputs and bring them to the host; see `Engine.run`."""
        with self._busy:
            return {name: tensor.on_host() for name, tensor in self._computed(inputs).items()}

    def run_on_device(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Compute all outputs and leave them on the device; see `Engine.run_on_device`."""
        with self._busy:
            return dict(self._computed(inputs))

    def close(self) -> None:
        """Free context and engine."""
        self._context = None
        self._engine = None

    def _computed(self, inputs: Mapping[str, Tensor]) -> dict[str, DeviceArray]:
        context = self.ready(self._context, inputs)
        held = {name: self._on_device(tensor) for name, tensor in inputs.items()}
        for name, tensor in held.items():
            if not context.set_input_shape(name, tensor.shape):
                raise InvalidTensorError(
                    f"{self._is.title} takes no {list(tensor.shape)} for {name}.", "Send a smaller batch."
                )
            context.set_tensor_address(name, tensor.address)
        found: dict[str, DeviceArray] = {}
        for spec in self._is.outputs:
            shape = tuple(int(length) for length in context.get_tensor_shape(spec.name))
            found[spec.name] = DeviceArray(self._cuda, shape, DTYPES[spec.datatype])
            context.set_tensor_address(spec.name, found[spec.name].address)
        if not context.execute_async_v3(self._cuda.stream):
            raise InferenceError(f"{self.runtime} failed on {self._is.title}.", "See the log.")
        self._cuda.synchronise()
        return found

    def _on_device(self, tensor: Tensor) -> DeviceArray:
        if isinstance(tensor, DeviceArray):
            return tensor
        array = np.ascontiguousarray(tensor if isinstance(tensor, np.ndarray) else tensor.on_host())
        placed = DeviceArray(self._cuda, array.shape, array.dtype)
        self._cuda.to_device(placed.address, array)
        return placed

    def _spec(self, name: str) -> TensorSpec:
        datatype = self._engine.get_tensor_dtype(name).name
        shape = tuple(int(length) for length in self._engine.get_tensor_shape(name))
        return TensorSpec(name, _DATATYPES.get(datatype, datatype), shape)


def library_of(name: str) -> Any:
    """The Python library behind a runtime's name.

    Raises:
        EngineFileError: It is not installed, or one of the libraries that it needs is missing; says which.
    """
    try:
        return importlib.import_module(MODULES[name])
    except (ImportError, OSError) as error:
        raise EngineFileError(
            f"{name} can't be loaded: {error}.", "Install insite[gpu].", refusal=EngineRefusal.NO_RUNTIME
        ) from error


def host_of(gpu: GpuState | None, names: Sequence[str] = (TENSORRT, TENSORRT_RTX)) -> EngineHost:
    """What this machine can run: the installed libraries with their versions, none of them loaded, and the GPU."""
    versions = []
    for name in names:
        for distribution in DISTRIBUTIONS[name]:
            with suppress(PackageNotFoundError):
                versions.append((name, version(distribution)))
                break
    return EngineHost(tuple(versions), gpu.compute_capability if gpu else None)
