"""Decides whether a verified pack may serve on this machine: its golden cases must come out as they were measured.

A processor without the instructions that an INT8 graph was measured with, a runtime with a broken kernel: the golden
cases show it in scores and masks, before a patient's image does.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from appliance.domain.errors import GateError, InferenceError
from appliance.domain.findings import ModelProvenance
from appliance.domain.manifest import TaskManifest, VerifiedPack
from appliance.domain.ports import Inference
from appliance.governance.golden import GoldenCases, Tolerance, golden_cases

MASK_LEVEL = 0.5
"""The probability from which a pixel counts as inside, for comparing two masks."""
DISTANCE_REL = 0.05
"""The largest relative difference of a guard's distance; its scale is the pack's own, so no absolute one fits."""

_WAY_FORWARD = "Serve another precision of this pack, or another machine; tell the pack's maker what differs."


@dataclass(frozen=True, slots=True)
class ActivationReport:
    """What the replay found: how close this machine comes to where the pack was measured.

    Attributes:
        cases: How many golden cases were replayed, each by every task.
        worst_score_difference: Largest absolute difference of any score.
        worst_mask_dice: Least Dice of any mask; 1 where the pack has no segmentation.
    """

    provenance: ModelProvenance
    cases: int
    worst_score_difference: float
    worst_mask_dice: float


def activate(pack: VerifiedPack, inference: Inference) -> ActivationReport:
    """Replay a pack's golden cases through whoever will serve it.

    Raises:
        GateError: An output differs by more than the pack's own tolerance, can't be computed, or comes from another
            pack than this one.
    """
    golden = golden_cases(pack)
    differences = [0.0]
    dices = [1.0]
    provenance: ModelProvenance | None = None
    for task in pack.manifest.tasks:
        for case, name in enumerate(golden.names):
            replayed = _replay(pack, task, golden, case, inference)
            provenance = replayed.provenance
            for output, (expected, actual) in replayed.pairs.items():
                where = f"{pack.manifest.model_name(task.name)} at {provenance.precision} on the case {name!r}"
                if output == "mask":
                    dices.append(_mask(where, expected, actual, golden.tolerance))
                elif output == "distance":
                    _distance(where, expected, actual)
                else:
                    differences.append(_score(where, output, expected, actual, golden.tolerance))
    if provenance is None:
        raise GateError(f"The pack {pack.manifest.name} has no task.", "Build it with at least its guard.")
    return ActivationReport(provenance, len(golden.names), max(differences), min(dices))


def dice_of(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Dice coefficient of two masks; 1 for two empty ones."""
    total = int(one.sum()) + int(other.sum())
    return 1.0 if total == 0 else 2.0 * int((one & other).sum()) / total


@dataclass(frozen=True, eq=False, slots=True)
class _Replayed:
    provenance: ModelProvenance
    pairs: dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]


def _replay(pack: VerifiedPack, task: TaskManifest, golden: GoldenCases, case: int, inference: Inference) -> _Replayed:
    model = pack.manifest.model_name(task.name)
    try:
        answer = inference.infer(model, golden.inputs[case : case + 1])
    except InferenceError as error:
        raise GateError(f"The golden cases can't be replayed: {error.message}", _WAY_FORWARD) from error
    if answer.provenance.pack_digest != pack.manifest.digest:
        raise GateError(
            f"{model} was answered by the pack {answer.provenance.pack_digest[:12]}, not {pack.manifest.digest[:12]}.",
            "Stop whoever else serves a pack of this name.",
        )
    pairs = {}
    for spec in task.outputs:
        expected = golden.expected(answer.provenance.precision, task.name, spec.name)[case]
        actual = answer.outputs[spec.name][0]
        if expected.shape != actual.shape:
            raise GateError(
                f"{model} gives {spec.name} of shape {list(actual.shape)}, recorded was {list(expected.shape)}.",
                "Build the pack again with `insite-export`.",
            )
        pairs[spec.name] = (expected.astype(np.float32), actual)
    return _Replayed(answer.provenance, pairs)


def _score(
    where: str, output: str, expected: NDArray[np.float32], actual: NDArray[np.float32], tolerance: Tolerance
) -> float:
    difference = float(np.abs(expected - actual).max())
    if not difference <= tolerance.score_abs:
        raise GateError(
            f"{where}: {output} differs by {difference:.3f}, allowed is {tolerance.score_abs:g}.", _WAY_FORWARD
        )
    return difference


def _mask(where: str, expected: NDArray[np.float32], actual: NDArray[np.float32], tolerance: Tolerance) -> float:
    dice = dice_of(expected >= MASK_LEVEL, actual >= MASK_LEVEL)
    if not dice >= tolerance.mask_dice:
        raise GateError(f"{where}: the mask has Dice {dice:.3f}, needed is {tolerance.mask_dice:g}.", _WAY_FORWARD)
    return dice


def _distance(where: str, expected: NDArray[np.float32], actual: NDArray[np.float32]) -> None:
    if not np.allclose(actual, expected, rtol=DISTANCE_REL, atol=0):
        raise GateError(
            f"{where}: distance is {float(actual.flat[0]):.3g}, recorded was {float(expected.flat[0]):.3g}.",
            _WAY_FORWARD,
        )
