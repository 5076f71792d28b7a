"""One question to a model: the answer is checked against the pack that was planned before anyone reads a number."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from appliance.domain.errors import InferenceError, InvalidTensorError, ProvenanceError, UnknownModelError
from appliance.domain.findings import ModelProvenance
from appliance.domain.manifest import OperatingPoint, PackManifest, TaskManifest
from appliance.domain.ports import Answer, Inference


@dataclass(frozen=True, eq=False, slots=True)
class Reading:
    """An answer of the planned pack, with the operating point that was measured at its precision."""

    answer: Answer
    point: OperatingPoint

    @property
    def provenance(self) -> ModelProvenance:
        """Which model answered."""
        return self.answer.provenance

    def probability(self, output: str) -> float:
        """A scalar output in [0, 1].

        Raises:
            InferenceError: The output is missing, or is no probability.
        """
        value = self.number(output)
        if not 0.0 <= value <= 1.0:
            raise InferenceError(f"Output {output} of the model is {value}, which is no probability.")
        return value

    def number(self, output: str) -> float:
        """A scalar output.

        Raises:
            InferenceError: The output is missing, has several values, or is not finite.
        """
        values = self._output(output)
        if values.size != 1:
            raise InferenceError(f"Output {output} of the model has {values.size} values instead of one.")
        value = float(values.reshape(-1)[0])
        if not math.isfinite(value):
            raise InferenceError(f"Output {output} of the model is {value}.")
        return value

    def plane(self, output: str) -> NDArray[np.float32]:
        """A map of probabilities, float32 [rows, columns] over the stretched input.

        Raises:
            InferenceError: The output is missing, is no single plane, or holds other values than probabilities.
        """
        values = self._output(output)
        if values.ndim < 2 or values.size == 0 or values.size != values.shape[-2] * values.shape[-1]:  # noqa: PLR2004 - a plane has two axes
            raise InferenceError(f"Output {output} of the model has shape {values.shape} instead of one plane.")
        plane: NDArray[np.float32] = values.reshape(values.shape[-2:])
        if not bool(np.all((plane >= 0.0) & (plane <= 1.0))):
            raise InferenceError(f"Output {output} of the model holds values that are no probabilities.")
        return plane

    def _output(self, output: str) -> NDArray[np.float32]:
        try:
            return self.answer.outputs[output]
        except KeyError:
            raise InferenceError(f"The model gave no output {output}.") from None


def ask(inference: Inference, manifest: PackManifest, task: TaskManifest, picture: NDArray[np.uint8]) -> Reading:
    """Ask one task about one picture.

    Args:
        picture: uint8 [rows, columns], as the pack's `InputSpec` says.

    Raises:
        InferenceUnavailableError: Nobody answers now; asking later may help.
        ProvenanceError: Another pack, base or release answered than `manifest` names.
        InferenceError: The answer can't be used: the model is not served, or no operating point was measured at the
            precision that answered (never a guess).
    """
    answer = inference.infer(manifest.model_name(task.name), picture[np.newaxis, np.newaxis])
    _check_provenance(answer.provenance, manifest)
    point = task.operating_point(answer.provenance.precision)
    if point is None:
        raise InferenceError(
            f"Task {task.name} has no operating point measured at precision {answer.provenance.precision}.",
            "Install a pack that was measured at the precision it is served at.",
        )
    return Reading(answer, point)


def failure_sentence(task: TaskManifest, error: InferenceError) -> str:
    """What a reader is told of a task that could not answer; the error's own words go to the log."""
    if isinstance(error, UnknownModelError):
        return f"The inference daemon does not serve {task.title}."
    if isinstance(error, InvalidTensorError):
        return f"The inference daemon did not accept the picture for {task.title}."
    return f"The model's answer for {task.title} can't be used."


def _check_provenance(given: ModelProvenance, manifest: PackManifest) -> None:
    planned = (manifest.name, manifest.release, manifest.digest, manifest.base_digest)
    answered = (given.pack, given.release, given.pack_digest, given.base_digest)
    if planned != answered:
        raise ProvenanceError(
            f"Pack {given.pack} release {given.release} ({given.pack_digest[:12]}) answered, planned was "
            f"{manifest.name} release {manifest.release} ({manifest.digest[:12]}).",
            "The inference daemon was given another pack; the study is analysed again with that one.",
        )
