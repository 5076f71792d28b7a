"""What the engines of all runtimes have in common: they say what they are, and refuse what their graph can't take."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from appliance.domain.errors import InferenceUnavailableError
from appliance.domain.manifest import TensorSpec
from appliance.inference.tensors import Tensor, check_inputs

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Description:
    """What an engine is; `title` names it in errors, the rest is described at `Engine`."""

    runtime: str
    title: str
    precision: str
    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]


class DescribedEngine:
    """The part of an `Engine` that no runtime does in its own way."""

    def __init__(self, description: Description) -> None:
        self._is = description

    @property
    def runtime(self) -> str:
        """The runtime's name."""
        return self._is.runtime

    @property
    def precision(self) -> str:
        """What the graph computes in."""
        return self._is.precision

    @property
    def inputs(self) -> Sequence[TensorSpec]:
        """The graph's inputs."""
        return self._is.inputs

    @property
    def outputs(self) -> Sequence[TensorSpec]:
        """The graph's outputs."""
        return self._is.outputs

    def ready(self, held: T | None, inputs: Mapping[str, Tensor]) -> T:
        """What runs the graph, once the inputs are found to fit.

        Args:
            held: What the engine lets go when it is closed.

        Raises:
            InferenceUnavailableError: It is closed.
            InvalidTensorError: A name, datatype or shape that the graph does not take.
        """
        if held is None:
            raise InferenceUnavailableError(f"{self._is.title} is closed.", "Ask again when the pack is loaded.")
        check_inputs(self._is.inputs, inputs, self._is.title)
        return held
