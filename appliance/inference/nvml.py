"""Reads the GPU's state through NVIDIA's management library (`nvidia-ml-py`), which comes with the driver."""

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any, Self, TypeVar

from appliance.domain.gpu import GpuState

_MODULE = "pynvml"
_REASONS = (
    ("thermal", ("nvmlClocksEventReasonSwThermalSlowdown", "nvmlClocksThrottleReasonHwThermalSlowdown")),
    ("power", ("nvmlClocksEventReasonSwPowerCap",)),
    ("hardware", ("nvmlClocksThrottleReasonHwSlowdown",)),
)
_MILLI = 1e-3
_PERCENT = 100

T = TypeVar("T")


class GpuMonitor:
    """Watches one GPU from `with` to the end of it; without a GPU, driver or library there is nothing to see.

    Args:
        index: Which GPU.
        library: Stands in for `pynvml` in tests.
    """

    def __init__(self, index: int = 0, library: Any = None) -> None:
        self._index = index
        self._library: Any = library
        self._handle: Any = None
        self._events: Any = None
        self._xids: list[int] = []
        self.problem = ""

    def __enter__(self) -> Self:
        try:
            self._library = self._library if self._library is not None else _library()
            self._library.nvmlInit()
        except ImportError as error:
            self._library, self.problem = None, f"nvidia-ml-py is not installed: {error}"
            return self
        except self._library.NVMLError as error:
            self._library, self.problem = None, f"no NVIDIA driver answers: {error}"
            return self
        nvml = self._library
        try:
            if self._index >= nvml.nvmlDeviceGetCount():
                self.problem = f"the driver knows no GPU {self._index}"
                return self
            self._handle = nvml.nvmlDeviceGetHandleByIndex(self._index)
        except nvml.NVMLError as error:  # one that fell off the bus is still counted
            self.problem = f"the GPU does not answer: {error}"
            return self
        self._events = self._readable(nvml.nvmlEventSetCreate)
        if self._events is not None:
            self._readable(
                lambda: nvml.nvmlDeviceRegisterEvents(self._handle, nvml.nvmlEventTypeXidCriticalError, self._events)
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._library is not None:
            if self._events is not None:
                self._readable(lambda: self._library.nvmlEventSetFree(self._events))
            self._library.nvmlShutdown()
        self._library = self._handle = self._events = None

    def state(self) -> GpuState | None:
        """What the GPU says now; None without one, or when it has stopped answering (`problem` says why)."""
        if self._handle is None:
            return None
        nvml, handle = self._library, self._handle
        try:
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
            major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
            name, uuid = nvml.nvmlDeviceGetName(handle), nvml.nvmlDeviceGetUUID(handle)
            driver = nvml.nvmlSystemGetDriverVersion()
        except nvml.NVMLError as error:
            self.problem = f"the GPU does not answer: {error}"
            return None
        self._hear_xids()
        utilisation = self._readable(lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
        power = self._readable(lambda: nvml.nvmlDeviceGetPowerUsage(handle))
        return GpuState(
            name=_text(name),
            uuid=_text(uuid),
            compute_capability=f"{major}.{minor}",
            driver=_text(driver),
            total_bytes=int(memory.total),
            free_bytes=int(memory.free),
            temperature=self._readable(lambda: int(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))),
            utilisation=None if utilisation is None else utilisation / _PERCENT,
            power_watts=None if power is None else power * _MILLI,
            throttled=self._throttled(),
            ecc_errors=self._readable(
                lambda: int(
                    nvml.nvmlDeviceGetTotalEccErrors(
                        handle, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
                    )
                )
            ),
            xid_errors=tuple(self._xids),
        )

    def _throttled(self) -> tuple[str, ...]:
        held = self._readable(lambda: int(self._library.nvmlDeviceGetCurrentClocksEventReasons(self._handle))) or 0
        return tuple(
            word for word, names in _REASONS if any(held & int(getattr(self._library, name)) for name in names)
        )

    def _hear_xids(self) -> None:
        while self._events is not None:
            event = self._readable(lambda: self._library.nvmlEventSetWait_v2(self._events, 0))
            if event is None:
                return
            self._xids.append(int(event.eventData))

    def _readable(self, read: Callable[[], T]) -> T | None:
        """What a GPU can't say (a laptop's has no ECC) is None."""
        try:
            return read()
        except self._library.NVMLError:
            return None


def _library() -> ModuleType:
    return importlib.import_module(_MODULE)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
