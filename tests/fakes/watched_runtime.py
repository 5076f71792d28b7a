"""A runtime that lets a test see each run, hold it, or change what comes out; the graphs are computed for real."""

from collections.abc import Callable, Mapping, Sequence

from appliance.domain.manifest import TensorSpec
from appliance.inference.engine import Engine
from appliance.inference.onnxruntime_cpu import OnnxRuntimeCpu
from appliance.inference.tensors import Array

Outputs = Mapping[str, Array]
Watch = Callable[[str, Outputs], Outputs]


class WatchedRuntime:
    """Calls `watch` with a graph's title and outputs after each run; what it returns is the engine's answer."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._inner = OnnxRuntimeCpu(1)

    @property
    def name(self) -> str:
        """Takes the place of ONNX Runtime on the CPU."""
        return self._inner.name

    @property
    def version(self) -> str:
        """Of the library that computes."""
        return self._inner.version

    def load(self, graph: bytes, *, title: str, precision: str) -> Engine:
        """Load for real."""
        return _WatchedEngine(self._inner.load(graph, title=title, precision=precision), title, self._watch)


class _WatchedEngine:
    def __init__(self, inner: Engine, title: str, watch: Watch) -> None:
        self._inner = inner
        self._title = title
        self._watch = watch

    @property
    def runtime(self) -> str:
        return self._inner.runtime

    @property
    def precision(self) -> str:
        return self._inner.precision

    @property
    def inputs(self) -> Sequence[TensorSpec]:
        return self._inner.inputs

    @property
    def outputs(self) -> Sequence[TensorSpec]:
        return self._inner.outputs

    def run(self, inputs: Mapping[str, Array]) -> Outputs:
        return self._watch(self._title, self._inner.run(inputs))

    def run_on_device(self, inputs: Mapping[str, Array]) -> Outputs:
        return self.run(inputs)

    def close(self) -> None:
        self._inner.close()
