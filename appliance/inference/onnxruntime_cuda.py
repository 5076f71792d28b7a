"""ONNX Runtime on the GPU, its tensors bound where they lie: features never leave the device between two graphs."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnxruntime

from appliance.domain.errors import InferenceError, PackContentError
from appliance.inference.cuda import load_beside
from appliance.inference.described_engine import DescribedEngine, Description
from appliance.inference.onnxruntime_cpu import FAILURES, specs_of
from appliance.inference.tensors import DTYPES, Array, Tensor

NAME = "onnxruntime-cuda"
PROVIDER = "CUDAExecutionProvider"
SETTINGS = {
    "arena_extend_strategy": "kSameAsRequested",
    "use_tf32": 0,
    "cudnn_conv_algo_search": "HEURISTIC",
}
"""TF32 would round to ten bits what a pack says is computed in FP32. Trying every algorithm of cuDNN, as is the
default, holds a request up for a second or more whenever a batch is of a new size (ADR 21)."""

LEAST_PARTS = 8
"""A head takes an eighth of a pack's memory at most: it works on features, the encoder on whole images."""


class OrtTensor:
    """A tensor that ONNX Runtime owns, on its device."""

    def __init__(self, value: Any, dtype: np.dtype[Any]) -> None:
        self.value = value
        self.dtype = dtype
        self.shape = tuple(int(length) for length in value.shape())

    def on_host(self) -> Array:
        """A copy in this process's memory."""
        array: Array = self.value.numpy()
        return array


class OnnxRuntimeCuda:
    """Makes engines on one GPU.

    Args:
        budget_bytes: How much of the GPU's memory the arena of an engine may take.
        check: Called before each load; raises when nothing may be computed on the GPU.
        provider, device: Others in tests: the binding is the same on every device.
    """

    def __init__(
        self,
        budget_bytes: int,
        *,
        check: Callable[[], object] = lambda: None,
        provider: str = PROVIDER,
        device: str = "cuda",
        name: str = NAME,
    ) -> None:
        self._budget = budget_bytes
        self._check = check
        self._provider = provider
        self._device = device
        self._name = name

    def shared_by(self, heads: int) -> "tuple[OnnxRuntimeCuda, OnnxRuntimeCuda]":
        """See `SharesMemory`: the encoder gets at least half."""
        each = min(self._budget // LEAST_PARTS, self._budget // (2 * max(1, heads)))
        return self._with(self._budget - heads * each), self._with(each)

    def _with(self, budget_bytes: int) -> "OnnxRuntimeCuda":
        return OnnxRuntimeCuda(
            budget_bytes,
            check=self._check,
            provider=self._provider,
            device=self._device,
            name=self._name,
        )

    @property
    def name(self) -> str:
        """The name by which a manifest asks for it."""
        return self._name

    @property
    def version(self) -> str:
        """Of ONNX Runtime."""
        return str(onnxruntime.__version__)

    def load(self, graph: bytes, *, title: str, precision: str) -> "OnnxRuntimeCudaEngine":
        """Make an engine; see `Runtime.load`.

        Raises:
            EngineFileError: The GPU is not sound.
        """
        self._check()
        if self._provider not in onnxruntime.get_available_providers():
            raise PackContentError(
                f"ONNX Runtime has no {self._provider} to load {title}.", "Install insite[gpu] on a machine with a GPU."
            )
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        settings: dict[str, Any] = {}
        if self._provider == PROVIDER:
            load_beside()
            settings = {"gpu_mem_limit": self._budget, **SETTINGS}
        try:
            session = onnxruntime.InferenceSession(
                graph, options, providers=[(self._provider, settings)], enable_fallback=0
            )
            engine = OnnxRuntimeCudaEngine(session, title, precision, self._name, self._device)
        except FAILURES as error:
            raise PackContentError(
                f"ONNX Runtime can't load {title}: {error}.", "Build the pack again for this software."
            ) from error
        # Where a library is missing it goes to the CPU, and says so in its log only.
        if self._provider not in session.get_providers():
            raise PackContentError(
                f"ONNX Runtime can't use {self._provider} for {title}: a library or the driver does not answer.",
                "Install insite[gpu] on a machine with a GPU, and look at it with `nvidia-smi`.",
            )
        return engine


class OnnxRuntimeCudaEngine(DescribedEngine):
    """One session whose inputs and outputs are bound."""

    def __init__(self, session: Any, title: str, precision: str, runtime: str, device: str) -> None:
        inputs, outputs = specs_of(session.get_inputs()), specs_of(session.get_outputs())
        super().__init__(Description(runtime, title, precision, inputs, outputs))
        self._session: Any = session
        self._device = device

    def run(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Array]:
        """Compute all outputs and bring them to the host; see `Engine.run`."""
        return {name: tensor.on_host() for name, tensor in self._computed(inputs).items()}

    def run_on_device(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Compute all outputs and leave them on the device; see `Engine.run_on_device`."""
        return dict(self._computed(inputs))

    def close(self) -> None:
        """Let the session go."""
        self._session = None

    def _computed(self, inputs: Mapping[str, Tensor]) -> dict[str, OrtTensor]:
        session = self.ready(self._session, inputs)
        binding = session.io_binding()
        for name, tensor in inputs.items():
            if isinstance(tensor, OrtTensor):
                binding.bind_ortvalue_input(name, tensor.value)
            else:
                array = tensor if isinstance(tensor, np.ndarray) else tensor.on_host()
                binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for spec in self._is.outputs:
            binding.bind_output(spec.name, self._device)
        try:
            session.run_with_iobinding(binding)
            binding.synchronize_outputs()
        except FAILURES as error:
            raise InferenceError(f"ONNX Runtime failed on {self._is.title}: {error}.", "See the log.") from error
        values = binding.get_outputs()
        return {
            spec.name: OrtTensor(value, DTYPES[spec.datatype])
            for spec, value in zip(self._is.outputs, values, strict=True)
        }
