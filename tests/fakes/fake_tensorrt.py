"""A TensorRT that compiles nothing and keeps what it is told, by the contract of NVIDIA's Python API.

A timing cache is bytes that name the GPU it was measured on: `create_timing_cache` makes an empty one of no bytes and
none of bytes that are no cache; `set_timing_cache` refuses one of another GPU unless the mismatch is to be ignored.
"""

from types import SimpleNamespace
from typing import Any

import onnx

GPU = b"gpu 8.6"
MEASURED = b" conv 3 us"


class FakeTensorRt:
    """The module; `configs` are those of all builds, in order."""

    __version__ = "11.0.0.114"
    BuilderFlag = SimpleNamespace(TF32="TF32", VERSION_COMPATIBLE="VERSION_COMPATIBLE")
    NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
    DataType = SimpleNamespace(FP8="FP8")

    def __init__(self, *, has_gpu: bool = True) -> None:
        self.has_gpu = has_gpu
        self.configs: list[Config] = []

    class Logger:
        """Keeps nothing."""

        ERROR = 1

        def __init__(self, _: int) -> None:
            pass

    def Builder(self, _: Any) -> "Builder":  # noqa: N802 - the library's name
        """As the bindings do it, without a GPU the constructor fails with what they make of a null pointer."""
        if not self.has_gpu:
            raise TypeError("pybind11::init(): factory function returned nullptr")
        return Builder(self)

    def OnnxParser(self, network: "Network", _: Any) -> "Parser":  # noqa: N802 - the library's name
        """Fills the network."""
        return Parser(network)


class Network:
    """Inputs and layers of a graph."""

    def __init__(self, flags: int) -> None:
        self.flags = flags
        self.graph = onnx.GraphProto()

    @property
    def num_inputs(self) -> int:
        """How many."""
        return len(self.graph.input)

    @property
    def num_layers(self) -> int:
        """How many."""
        return len(self.graph.node)

    def get_input(self, position: int) -> SimpleNamespace:
        """Name and shape, -1 for the batch."""
        value = self.graph.input[position]
        rest = [each.dim_value for each in value.type.tensor_type.shape.dim[1:]]
        return SimpleNamespace(name=value.name, shape=(-1, *rest))


class Parser:
    """Takes every operator."""

    def __init__(self, network: Network) -> None:
        self._network = network

    def supports_operator(self, _: str) -> bool:
        """Always."""
        return True

    def parse(self, content: bytes) -> bool:
        """Read the graph."""
        self._network.graph = onnx.load_from_string(content).graph
        return True


class Cache:
    """What was measured."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> memoryview:
        """For the next build."""
        return memoryview(self.content)


class Config:
    """What a builder is told; the library rounds to TF32 unless it is told not to."""

    def __init__(self) -> None:
        self.flags = {"TF32"}
        self.shapes: dict[str, tuple[Any, ...]] = {}
        self.begun_with: bytes | None = None
        self._cache: Cache | None = None

    def set_flag(self, flag: str) -> None:
        """Switch on."""
        self.flags.add(flag)

    def clear_flag(self, flag: str) -> None:
        """Switch off."""
        self.flags.discard(flag)

    def add_optimization_profile(self, profile: "Profile") -> None:
        """Shapes that may come."""
        self.shapes = profile.shapes

    def create_timing_cache(self, content: bytes) -> Cache | None:
        """Of what `serialize` gave."""
        return Cache(content or GPU) if not content or content.startswith(b"gpu ") else None

    def set_timing_cache(self, cache: Cache, *, ignore_mismatch: bool) -> bool:
        """Use it."""
        if not cache.content.startswith(GPU) and not ignore_mismatch:
            return False
        self._cache, self.begun_with = cache, cache.content
        return True

    def get_timing_cache(self) -> Cache | None:
        """The one in use."""
        return self._cache

    def measured(self) -> None:
        """A build measures a kernel."""
        if self._cache is not None:
            self._cache.content += MEASURED


class Profile:
    """Shapes by input."""

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[Any, ...]] = {}

    def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
        """Smallest, usual, largest."""
        self.shapes[name] = shapes


class Builder:
    """Builds a plan that says how many layers the network has."""

    def __init__(self, library: FakeTensorRt) -> None:
        self._library = library

    def create_network(self, flags: int) -> Network:
        """An empty one."""
        return Network(flags)

    def create_builder_config(self) -> Config:
        """A new one."""
        return Config()

    def create_optimization_profile(self) -> Profile:
        """A new one."""
        return Profile()

    def build_serialized_network(self, network: Network, config: Config) -> memoryview:
        """The plan; as in the library it is host memory that can be read as a buffer."""
        self._library.configs.append(config)
        config.measured()
        return memoryview(f"plan of {network.num_layers} layers, flags {network.flags}".encode())
