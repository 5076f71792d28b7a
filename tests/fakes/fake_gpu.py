"""A GPU that is not there: its memory, its driver's management library, and a TensorRT that computes on the CPU.

What is computed is computed for real, by ONNX Runtime, so that engines of the fake pass the suite of every runtime.
"""

import ctypes
import hashlib
import struct
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime

from appliance.domain.engine_file import EngineHost, EngineMetadata
from appliance.inference.engine_file import write_engine
from appliance.inference.tensors import DTYPES, Array

VERSION = "1.7.1.116"
HOST = EngineHost((("tensorrt", VERSION), ("tensorrt-rtx", VERSION)), "8.9")
_HEADER = struct.Struct("<4s4xQQ4B4s")


class FakeCuda:
    """A device whose memory is this process's own; knows what was not freed."""

    stream = 7

    def __init__(self) -> None:
        self.held: dict[int, Any] = {}

    def allocate(self, size: int) -> int:
        """Reserve bytes."""
        buffer = ctypes.create_string_buffer(max(1, size))
        address = ctypes.addressof(buffer)
        self.held[address] = buffer
        return address

    def free(self, address: int) -> None:
        """Give bytes back; twice is an error, as on a device."""
        del self.held[address]

    def to_device(self, address: int, array: Array) -> None:
        """Copy in."""
        ctypes.memmove(address, array.ctypes.data, array.nbytes)

    def to_host(self, array: Array, address: int) -> None:
        """Copy out."""
        ctypes.memmove(array.ctypes.data, address, array.nbytes)

    def synchronise(self) -> None:
        """Nothing is ever under way."""


def fake_engine(folder: Path, graph: bytes, runtime: str = "tensorrt-rtx") -> Path:
    """An engine file of the fake, with its description: the header of a real one, and the graph itself."""
    parts = [int(part) for part in VERSION.split(".")]
    data = _HEADER.pack(b"vtrt", 2, _HEADER.size + len(graph), *parts, b"vtrt") + graph
    source = hashlib.sha256(graph).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{source[:32]}.trtrtx.engine"
    digest = hashlib.sha256(data).hexdigest()
    metadata = EngineMetadata(runtime, VERSION, ("8.9",), "fp32", 8, source, digest, len(data), 1.0)
    write_engine(file, memoryview(data), metadata)
    return file


_TYPES = {"tensor(uint8)": "UINT8", "tensor(float)": "FLOAT"}
_DTYPES = {"UINT8": DTYPES["UINT8"], "FLOAT": DTYPES["FP32"]}


class _Context:
    def __init__(self, session: Any) -> None:
        self._session = session
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._found: dict[str, Array] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shapes[name] = tuple(shape)
        return shape[0] <= 8

    def set_tensor_address(self, name: str, address: int) -> None:
        self._addresses[name] = address

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        node = next(each for each in self._session.get_outputs() if each.name == name)
        batch = next(iter(self._shapes.values()))[0]
        return (batch, *node.shape[1:])

    def execute_async_v3(self, stream: int) -> bool:
        if stream != FakeCuda.stream:
            return False
        inputs = {}
        for node in self._session.get_inputs():
            shape, dtype = self._shapes[node.name], _DTYPES[_TYPES[node.type]]
            array = np.empty(shape, dtype)
            ctypes.memmove(array.ctypes.data, self._addresses[node.name], array.nbytes)
            inputs[node.name] = array
        names = [node.name for node in self._session.get_outputs()]
        for name, array in zip(names, self._session.run(names, inputs), strict=True):
            whole = np.ascontiguousarray(array)
            ctypes.memmove(self._addresses[name], whole.ctypes.data, whole.nbytes)
        return True


class _Engine:
    def __init__(self, session: Any) -> None:
        self._session = session
        self._nodes = {node.name: node for node in (*session.get_inputs(), *session.get_outputs())}
        self._inputs = {node.name for node in session.get_inputs()}
        self.num_io_tensors = len(self._nodes)

    def get_tensor_name(self, position: int) -> str:
        return list(self._nodes)[position]

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name in self._inputs else "out"

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=_TYPES[self._nodes[name].type])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(each if isinstance(each, int) else -1 for each in self._nodes[name].shape)

    def create_execution_context(self) -> _Context:
        return _Context(self._session)


class _Runtime:
    def __init__(self, logger: object) -> None:
        del logger

    def deserialize_cuda_engine(self, data: bytes) -> _Engine | None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        try:
            return _Engine(onnxruntime.InferenceSession(data[_HEADER.size :], options))
        except Exception:  # noqa: BLE001 - the library gives nothing where it can't read
            return None


class _Logger:
    ERROR = 1

    def __init__(self, severity: int) -> None:
        del severity


FAKE_TENSORRT = SimpleNamespace(
    __version__=VERSION, Logger=_Logger, Runtime=_Runtime, TensorIOMode=SimpleNamespace(INPUT="in", OUTPUT="out")
)
"""The part of TensorRT's module that runs engines."""


class NVMLError(Exception):
    """As the library raises it."""


@dataclass
class FakeNvml:
    """`pynvml` with one GPU whose state a test sets; `silent` names functions that the GPU can't answer."""

    count: int = 1
    driver_missing: bool = False
    free: int = 6 << 30
    temperature: int = 61
    reasons: int = 0
    ecc: int = 0
    xids: tuple[int, ...] = ()
    silent: frozenset[str] = frozenset()

    NVMLError = NVMLError
    NVML_TEMPERATURE_GPU = 0
    NVML_MEMORY_ERROR_TYPE_UNCORRECTED = 1
    NVML_VOLATILE_ECC = 0
    nvmlEventTypeXidCriticalError = 8  # noqa: N815 - the library's name
    nvmlClocksEventReasonSwThermalSlowdown = 32  # noqa: N815 - the library's name
    nvmlClocksThrottleReasonHwThermalSlowdown = 64  # noqa: N815 - the library's name
    nvmlClocksEventReasonSwPowerCap = 4  # noqa: N815 - the library's name
    nvmlClocksThrottleReasonHwSlowdown = 8  # noqa: N815 - the library's name

    def __getattribute__(self, name: str) -> Any:
        if name in object.__getattribute__(self, "silent"):

            def refuse(*_: object) -> None:
                raise NVMLError("Not Supported")

            return refuse
        return object.__getattribute__(self, name)

    def nvmlInit(self) -> None:  # noqa: N802 - the library's name
        """Refused without a driver."""
        if self.driver_missing:
            raise NVMLError("NVML Shared Library Not Found")

    def nvmlShutdown(self) -> None:  # noqa: N802 - the library's name
        """The end."""

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802 - the library's name
        """How many."""
        return self.count

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802 - the library's name
        """A handle."""
        return index

    def nvmlDeviceGetName(self, handle: int) -> bytes:  # noqa: N802 - the library's name
        """Bytes, as older versions gave."""
        return b"NVIDIA L4"

    def nvmlDeviceGetUUID(self, handle: int) -> str:  # noqa: N802 - the library's name
        """Text, as newer versions give."""
        return "GPU-1234"

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802 - the library's name
        """The driver's."""
        return "580.65.06"

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:  # noqa: N802 - the library's name
        """Bytes."""
        return SimpleNamespace(total=24 << 30, free=self.free, used=(24 << 30) - self.free)

    def nvmlDeviceGetCudaComputeCapability(self, handle: int) -> tuple[int, int]:  # noqa: N802 - the library's name
        """Ada."""
        return 8, 9

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:  # noqa: N802 - the library's name
        """Degrees."""
        return self.temperature

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:  # noqa: N802 - the library's name
        """Percent."""
        return SimpleNamespace(gpu=40, memory=10)

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:  # noqa: N802 - the library's name
        """Milliwatts."""
        return 35_500

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: int) -> int:  # noqa: N802 - the library's name
        """A bit mask."""
        return self.reasons

    def nvmlDeviceGetTotalEccErrors(self, handle: int, kind: int, counter: int) -> int:  # noqa: N802 - the library's name
        """A count."""
        return self.ecc

    def nvmlEventSetCreate(self) -> list[int]:  # noqa: N802 - the library's name
        """The events that wait."""
        return list(self.xids)

    def nvmlDeviceRegisterEvents(self, handle: int, kind: int, events: list[int]) -> None:  # noqa: N802 - the library's name
        """Listens."""

    def nvmlEventSetWait_v2(self, events: list[int], timeout: int) -> Any:  # noqa: N802 - the library's name
        """The next event, or the library's error for a timeout."""
        if not events:
            raise NVMLError("Timeout")
        return SimpleNamespace(eventData=events.pop(0))

    def nvmlEventSetFree(self, events: list[int]) -> None:  # noqa: N802 - the library's name
        """The end of listening."""
