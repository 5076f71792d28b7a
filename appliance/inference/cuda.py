"""The little of CUDA that TensorRT leaves to its caller: memory on the device, copies, one stream.

Loaded through ctypes from CUDA's runtime library, so that no other binding is needed. Addresses are integers, as
TensorRT takes them.
"""

import ctypes
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from appliance.domain.errors import EngineFileError, InferenceError
from appliance.inference.tensors import Array

LIBRARIES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so")

BESIDE = (
    "libcudart.so.13",
    "libnvrtc.so.13",
    "libcublasLt.so.13",
    "libcublas.so.13",
    "libcurand.so.10",
    "libcufft.so.12",
    "libcudnn.so.9",
)
"""What ONNX Runtime asks the loader for on a GPU; each after those that it needs itself."""

_TO_DEVICE, _TO_HOST = 1, 2


class Cuda(Protocol):
    """One device's memory and one stream on it; one thread uses it at a time."""

    @property
    def stream(self) -> int:
        """The handle of the stream on which everything runs in order."""
        ...

    def allocate(self, size: int) -> int:
        """Reserve bytes on the device and return their address."""
        ...

    def free(self, address: int) -> None:
        """Give bytes back."""
        ...

    def to_device(self, address: int, array: Array) -> None:
        """Copy a contiguous array to the device, in the stream's order."""
        ...

    def to_host(self, array: Array, address: int) -> None:
        """Copy from the device into a contiguous array, once the stream has come so far."""
        ...

    def synchronise(self) -> None:
        """Return when the stream has done all that it was given."""
        ...


class CudaRuntime:
    """The real one.

    Raises:
        EngineFileError: There is no CUDA runtime library, or no device that it can use.
    """

    def __init__(self, names: Sequence[str] = LIBRARIES) -> None:
        self._library = _loaded(names)
        stream = ctypes.c_void_p()
        code = self._library.cudaStreamCreate(ctypes.byref(stream))
        if code != 0:
            raise EngineFileError(f"CUDA finds no device: {self._words(code)}.", "ONNX Runtime serves on the CPU.")
        self._stream = stream

    @property
    def stream(self) -> int:
        """See `Cuda.stream`."""
        return int(self._stream.value or 0)

    def allocate(self, size: int) -> int:
        """See `Cuda.allocate`."""
        address = ctypes.c_void_p()
        self._check(self._library.cudaMalloc(ctypes.byref(address), ctypes.c_size_t(max(1, size))))
        return int(address.value or 0)

    def free(self, address: int) -> None:
        """See `Cuda.free`."""
        self._library.cudaFree(ctypes.c_void_p(address))

    def to_device(self, address: int, array: Array) -> None:
        """See `Cuda.to_device`."""
        self._copy(ctypes.c_void_p(address), array.ctypes.data_as(ctypes.c_void_p), array.nbytes, _TO_DEVICE)

    def to_host(self, array: Array, address: int) -> None:
        """See `Cuda.to_host`."""
        self._copy(array.ctypes.data_as(ctypes.c_void_p), ctypes.c_void_p(address), array.nbytes, _TO_HOST)
        self.synchronise()

    def synchronise(self) -> None:
        """See `Cuda.synchronise`."""
        self._check(self._library.cudaStreamSynchronize(self._stream))

    def _copy(self, to: Any, source: Any, size: int, kind: int) -> None:
        self._check(self._library.cudaMemcpyAsync(to, source, ctypes.c_size_t(size), kind, self._stream))

    def _check(self, code: int) -> None:
        if code != 0:
            raise InferenceError(f"CUDA failed: {self._words(code)}.", "Look at the GPU with `nvidia-smi`.")

    def _words(self, code: int) -> str:
        self._library.cudaGetErrorString.restype = ctypes.c_char_p
        return str(self._library.cudaGetErrorString(code).decode())


class DeviceArray:
    """A tensor in the device's memory; freed with the last reference to it.

    Attributes:
        address: Where it lies on the device.
        shape, dtype: As numpy's.
    """

    def __init__(self, cuda: Cuda, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._cuda = cuda
        self.shape = shape
        self.dtype = dtype
        self.address = cuda.allocate(int(np.prod(shape)) * dtype.itemsize)

    def __del__(self) -> None:
        address = getattr(self, "address", None)
        if address is not None:
            self._cuda.free(address)

    def on_host(self) -> Array:
        """A copy in this process's memory."""
        array = np.empty(self.shape, self.dtype)
        self._cuda.to_host(array, self.address)
        return array


def load_beside(names: Sequence[str] = BESIDE) -> None:
    """Load CUDA's libraries from NVIDIA's wheels, where no loader looks; who asks for one by its name then gets it.

    One that no wheel brings is left to the loader.
    """
    for name in names:
        next(_in_wheels(name), None)


def _loaded(names: Sequence[str]) -> Any:
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            found = next(_in_wheels(name), None)
            if found is not None:
                return found
    raise EngineFileError(f"There is no CUDA runtime library ({', '.join(names)}).", "Install insite[gpu].")


def _in_wheels(name: str) -> Iterator[Any]:
    """A library of this name that can be loaded from NVIDIA's wheels: they share the package `nvidia`."""
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        for file in sorted(Path(folder).glob(f"*/lib/{name}")):
            try:
                yield ctypes.CDLL(str(file))
            except OSError:
                continue
