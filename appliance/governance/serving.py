"""Brings a pack up in the best precision that this machine computes right: a rejected one gives way to the next."""

from dataclasses import dataclass

from appliance.domain.errors import GateError
from appliance.domain.manifest import VerifiedPack
from appliance.governance.activation import ActivationReport, activate
from appliance.inference.runner import PackRunner


@dataclass(frozen=True, slots=True)
class Rejection:
    """A precision that did not reproduce the golden cases on this machine, and how it failed."""

    precision: str
    reason: str


@dataclass(frozen=True, slots=True)
class Serving:
    """How a pack is served, and which better precisions had to give way."""

    report: ActivationReport
    rejected: tuple[Rejection, ...]


def serve_best(pack: VerifiedPack, runner: PackRunner) -> Serving:
    """Load a pack into a runner in the first precision of its manifest that passes activation.

    Raises:
        PackContentError: No variant fits this machine, a graph can't be loaded, or the name is taken.
        GateError: Every variant for this machine fails; nothing of the pack stays loaded.
    """
    rejected: list[Rejection] = []
    while True:
        precision = runner.add(pack, without=[each.precision for each in rejected]).precision
        try:
            return Serving(activate(pack, runner), tuple(rejected))
        except GateError as error:
            runner.remove(pack.manifest.name)
            rejected.append(Rejection(precision, str(error)))
            if not runner.can_load(pack, without=[each.precision for each in rejected]):
                raise
