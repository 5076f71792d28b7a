"""Brings a pack up in the fastest way that this machine computes right; what is wrong or slower gives way.

Every way to serve a pack (a precision on a runtime) first reproduces the golden cases. Among those that do the fastest
serves: a quantised encoder that is not faster than the less quantised one has no reason to be there.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from appliance.domain.errors import (
    CrashedLoadError,
    EngineFileError,
    GateError,
    InferenceError,
    PackContentError,
    PackError,
)
from appliance.domain.manifest import VerifiedPack
from appliance.governance.activation import ActivationReport, activate
from appliance.governance.load_marks import LoadMarks
from appliance.governance.measured import Measured
from appliance.inference.runner import Choice, PackRunner
from appliance.inference.scheduler import Batching

SLOWER = 1.03
"""A later choice must beat an earlier one by this factor: within it the manifest's order decides, not noise."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """A precision that does not serve on this machine, and why: wrong golden cases, an engine refused, or slower.

    Attributes:
        crashed: It was not tried: a process died of it before, and its mark still lay there.
    """

    precision: str
    reason: str
    runtime: str = ""
    crashed: bool = False


@dataclass(frozen=True, slots=True)
class Serving:
    """How a pack is served, and which better precisions had to give way."""

    report: ActivationReport
    rejected: tuple[Rejection, ...]


@dataclass(frozen=True, slots=True)
class _Passed:
    choice: Choice
    report: ActivationReport
    batching: Batching


def serve_best(
    pack: VerifiedPack, runner: PackRunner, measured: Measured | None = None, marks: LoadMarks | None = None
) -> Serving:
    """Load a pack into a runner in the fastest way that passes activation.

    Args:
        measured: Where measurements are remembered; without it nothing is measured, and the first way of the manifest
            that passes serves.
        marks: Where it is marked what is being loaded; a way that brought a process down is left out.

    Raises:
        PackContentError: No variant fits this machine, a graph can't be loaded, or the name is taken.
        EngineFileError: No engine may be loaded, and there is no other way.
        GateError: Every way fails; nothing of the pack stays loaded.
    """
    choices = runner.choices(pack)
    if len(choices) < 2 or measured is None:  # noqa: PLR2004 - nothing to choose from
        return _first_that_passes(pack, runner, choices, measured, marks)
    rejected: list[Rejection] = []
    passed: list[_Passed] = []
    problems: list[GateError | EngineFileError | PackContentError] = []
    for choice in choices:
        try:
            with _marked(marks, pack, choice):
                passed.append(_tried(pack, runner, choice, measured))
        except (GateError, EngineFileError, PackContentError) as error:
            problems.append(error)
            rejected.append(_rejection(choice, error))
        finally:
            runner.remove(pack.manifest.name)
    if not passed:
        raise problems[-1]
    best = _fastest(passed)
    rejected += [
        Rejection(each.choice.precision, _slower(each, best), each.choice.runtime)
        for each in passed[: passed.index(best)]
    ]
    with _marked(marks, pack, best.choice):
        runner.add(pack, best.choice)
    runner.set_batching(pack.manifest.name, best.batching)
    return Serving(best.report, tuple(rejected))


def _first_that_passes(
    pack: VerifiedPack,
    runner: PackRunner,
    choices: Sequence[Choice],
    measured: Measured | None,
    marks: LoadMarks | None,
) -> Serving:
    rejected: list[Rejection] = []
    for choice in choices or (None,):
        try:
            with _marked(marks, pack, choice):
                runner.add(pack, choice)
                report = activate(pack, runner)
                if measured is not None and choice is not None:
                    runner.set_batching(pack.manifest.name, _batching(pack, runner, choice, measured))
        except (GateError, EngineFileError) as error:
            runner.remove(pack.manifest.name)
            if choice is None or choice is choices[-1]:
                raise
            rejected.append(_rejection(choice, error))
            continue
        return Serving(report, tuple(rejected))
    raise AssertionError("the last choice serves or raises")


def _rejection(choice: Choice, error: PackError) -> Rejection:
    return Rejection(choice.precision, str(error), choice.runtime, crashed=isinstance(error, CrashedLoadError))


def _marked(marks: LoadMarks | None, pack: VerifiedPack, choice: Choice | None) -> AbstractContextManager[None]:
    return nullcontext() if marks is None or choice is None else marks.during(pack.manifest, choice)


def _tried(pack: VerifiedPack, runner: PackRunner, choice: Choice, measured: Measured) -> _Passed:
    runner.add(pack, choice)
    report = activate(pack, runner)
    return _Passed(choice, report, _batching(pack, runner, choice, measured))


def _batching(pack: VerifiedPack, runner: PackRunner, choice: Choice, measured: Measured) -> Batching:
    known = measured.find(pack.manifest.digest, choice)
    if known is not None:
        return known
    undisturbed = measured.traffic.from_here()
    try:
        batching = runner.measure(pack.manifest.name)
    except InferenceError as error:  # the golden cases are replayed one by one: a batch may need more than there is
        raise GateError(
            f"{pack.manifest.name} in {choice.precision} on {choice.runtime} can't compute the batches that it is "
            f"measured with: {error.message}",
            "Free memory on the device, or serve another precision of this pack.",
        ) from error
    if undisturbed():
        measured.keep(pack.manifest.digest, choice, batching)
    return batching


def _fastest(passed: Sequence[_Passed]) -> _Passed:
    best = passed[0]
    for each in passed[1:]:
        if each.batching.image_seconds * SLOWER < best.batching.image_seconds:
            best = each
    return best


def _slower(one: _Passed, best: _Passed) -> str:
    return (
        f"{one.choice.precision} on {one.choice.runtime} takes {one.batching.image_seconds * 1000:.1f} ms an image, "
        f"{best.choice.precision} on {best.choice.runtime} takes {best.batching.image_seconds * 1000:.1f} ms."
    )
