"""Simulated models that see no picture at all, to ask what the shortcut audit says of them.

`python -m tests.export.pure_shortcuts` prints the table that docs/ml-engineer.md quotes. Nothing here is of a patient.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier

from export.metrics import Floats, auc
from export.shortcuts import FEATURES, matched_auc, share_ahead, trivial_scores

TRAIN, VALIDATION = 650, 110
"""As many images as the adult task has, about."""
STRENGTH = 3.0
"""How plainly the numbers tell the label: a trivial classifier reaches an AUC near 0.85."""
MARKER_NOISE = 0.7


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Site:
    """Images of one hospital whose files give the label away.

    Attributes:
        numbers: The audit's numbers, float [n, features].
        marker: Something else on the picture that goes with the label, and that no number shows: float [n].
        labels: 0 and 1, float [n].
    """

    numbers: Floats
    marker: Floats
    labels: Floats


@dataclasses.dataclass(frozen=True, slots=True)
class Said:
    """What the audit found: the figures of `Shortcut` that hold the model against the trivial classifier."""

    model_auc: float
    trivial_auc: float
    matched: float
    trivial: float
    ahead: float

    def passes(self, beyond_min: float, share_min: float) -> bool:
        """Whether both rules on the trivial classifier let the model pass."""
        return self.matched - self.trivial >= beyond_min and self.ahead >= share_min


Model = Callable[[Site, Site], Floats]


def same_numbers(train: Site, test: Site) -> Floats:
    """A model that learned the audit's own numbers, with another algorithm than the audit's."""
    model = HistGradientBoostingClassifier(max_iter=60, max_leaf_nodes=7, random_state=0)
    scores: Floats = model.fit(train.numbers, train.labels).predict_proba(test.numbers)[:, 1]
    return scores


def unlisted_marker(_: Site, test: Site) -> Floats:
    """A model that reads a marker which the audit has no number for."""
    return test.marker


MODELS: dict[str, Model] = {
    "the audit's own numbers": same_numbers,
    "a marker that it has no number for": unlisted_marker,
}


def sites(seed: int) -> tuple[Site, Site]:
    """Training and validation images of a simulated hospital."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=len(FEATURES)) / np.sqrt(len(FEATURES))

    def images(count: int) -> Site:
        numbers = rng.normal(size=(count, len(FEATURES)))
        logits = STRENGTH * (numbers @ weights + 0.6 * np.sin(2 * numbers[:, 0]) * numbers[:, 1])
        labels = (rng.random(count) < 1 / (1 + np.exp(-logits))).astype(np.float64)
        return Site(numbers, labels + MARKER_NOISE * rng.normal(size=count), labels)

    return images(TRAIN), images(VALIDATION)


def audited(model: Model, seed: int) -> Said:
    """Ask the audit's own functions about a model on a simulated hospital, one image for each patient."""
    train, test = sites(seed)
    trivial = trivial_scores(train.numbers, train.labels, test.numbers, test.labels, seed)
    scores = model(train, test)
    patients = [str(number) for number in range(len(test.labels))]
    return Said(
        auc(scores, test.labels),
        auc(trivial, test.labels),
        matched_auc(scores, test.labels, trivial),
        matched_auc(trivial, test.labels, trivial),
        share_ahead(scores, test.labels, trivial, patients, seed),
    )


def table(seeds: range) -> str:
    """Means over the seeds, and how many of them each pair of bounds lets pass."""
    lines = []
    for name, model in MODELS.items():
        found = [audited(model, seed) for seed in seeds]
        means = [float(np.mean([getattr(each, key.name) for each in found])) for key in dataclasses.fields(Said)]
        passed = [sum(each.passes(0.03, share) for each in found) for share in (0.8, 0.9)]
        figures = " ".join(f"{value:.3f}" for value in means)
        lines.append(f"{name}: {figures}; passes in {passed[0]} (0.8) and {passed[1]} (0.9) of {len(seeds)}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(range(50)))  # noqa: T201 - a table for the docs
