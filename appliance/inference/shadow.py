"""Compares a pack that answers in shadow with the one that serves: how far apart, never anybody's result."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from appliance.domain.ports import Answer

Told = Callable[["Answer | None", "BaseException | None"], None]


@dataclass(slots=True)
class Differences:
    """Of one model since the start: pairs compared, failures of the shadow, the largest and the summed difference."""

    pairs: int = 0
    failures: int = 0
    largest: float = 0.0
    total: float = 0.0


class ShadowComparison:
    """Takes both answers to one question, in either order, and keeps only how far apart they were."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._models: dict[str, Differences] = {}

    def pair(self, model: str, tell: Told) -> tuple[Told, Told]:
        """Two receivers: of the answer that is served (it goes on to `tell`), and of the shadow's."""
        answers: dict[str, Answer | None] = {}

        def keep(side: str, answer: Answer | None) -> None:
            with self._lock:
                answers[side] = answer
                if len(answers) == 2:  # noqa: PLR2004 - both sides
                    self._compare(model, answers["served"], answers["shadow"])

        def served(answer: Answer | None, error: BaseException | None) -> None:
            tell(answer, error)
            keep("served", answer)

        def shadow(answer: Answer | None, error: BaseException | None) -> None:
            del error
            keep("shadow", answer)

        return served, shadow

    def snapshot(self) -> dict[str, Differences]:
        """What was found so far, a copy."""
        with self._lock:
            return {model: replace(found) for model, found in self._models.items()}

    def _compare(self, model: str, served: Answer | None, shadow: Answer | None) -> None:
        found = self._models.setdefault(model, Differences())
        if served is None:
            return
        if shadow is None or served.outputs.keys() != shadow.outputs.keys():
            found.failures += 1
            return
        differences = [
            float(np.abs(served.outputs[name] - shadow.outputs[name]).max())
            if served.outputs[name].shape == shadow.outputs[name].shape
            else np.inf
            for name in served.outputs
        ]
        found.pairs += 1
        found.largest = max([found.largest, *differences])
        found.total += max(differences)
