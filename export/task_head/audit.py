"""The shortcut audit of a task: its scores against a trivial classifier on the same validation images."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from export.data import Sample
from export.gate import Rule
from export.metrics import Floats, Interval, auc, bootstrap
from export.shortcuts import feature_rows, matched_auc, share_ahead, trivial_scores
from export.task_head.features import Pictures
from export.task_head.labels import Case
from export.task_head.recipe import SEGMENTATION, TaskRecipe

NO_MASKS = "No shortcut audit: there is none of masks."
NO_VOLUMES = "No shortcut audit: there is none of volumes."


def without_nan(value: Any) -> Any:
    """Numbers that could not be measured as null: JSON has no NaN."""
    if isinstance(value, dict):
        return {name: without_nan(each) for name, each in value.items()}
    return None if isinstance(value, float) and np.isnan(value) else value


@dataclass(frozen=True, slots=True)
class TaskAudit:
    """One precision's scores and the trivial classifier's.

    Attributes:
        trivial_auc: The trivial classifier's, over all validation images.
        matched, trivial: AUC of the task and of the trivial classifier within thirds of the trivial score.
        ahead: Share of bootstrap samples of patients in which the task is ahead there.
    """

    precision: str
    trivial_auc: Interval
    matched: float
    trivial: float
    ahead: float

    def rules(self, recipe: TaskRecipe) -> list[Rule]:
        """What a task that claims to be validated must show."""
        gate = recipe.gate
        return [
            Rule(
                f"AUC within thirds of the trivial score, above the trivial classifier's there, at {self.precision}",
                self.matched - self.trivial,
                gate.beyond_trivial_min,
            ),
            Rule(
                f"share of resamples in which it is above, at {self.precision}",
                self.ahead,
                gate.beyond_trivial_share_min,
            ),
        ]

    def row(self) -> dict[str, Any]:
        """The figures for the report; JSON has no NaN, which an AUC within thirds is where each has one class."""
        values: dict[str, Any] = without_nan(asdict(self))
        return values


def audited(recipe: TaskRecipe, pictures: Pictures, scores: Mapping[str, Floats], data: Path) -> list[TaskAudit]:
    """Audit the scores of every precision.

    Age and view are not in a task's labels: those two numbers of the trivial classifier are the same for every image.

    Args:
        recipe: For head and seed.
        pictures: The cases that could be read.
        scores: Precision to the scores [n] of the validation cases; of heads that are not in `AUDITED` there are none.
        data: The folder of the images.
    """
    if not scores:
        return []
    seed = recipe.training.seed
    train, val = ([pictures.cases[number] for number in pictures.select(split)] for split in ("train", "val"))
    labels = np.array([float(case.label) for case in val])
    trivial = trivial_scores(_rows(data, train), np.array([float(case.label) for case in train]), _rows(data, val),
                             labels, seed)  # fmt: skip
    patients = [case.patient for case in val]
    area = bootstrap(auc, trivial, labels, patients, seed)
    remaining = matched_auc(trivial, labels, trivial)
    return [
        TaskAudit(
            precision,
            area,
            matched_auc(each, labels, trivial),
            remaining,
            share_ahead(each, labels, trivial, patients, seed),
        )
        for precision, each in scores.items()
    ]


def in_words(recipe: TaskRecipe, audits: Sequence[TaskAudit]) -> str:
    """The audit for summary and card, or why there is none."""
    if not audits:
        return NO_MASKS if recipe.task.head == SEGMENTATION else NO_VOLUMES
    each = "; ".join(
        f"{audit.precision} {audit.matched:.3f} against {audit.trivial:.3f}, ahead in {100 * audit.ahead:.1f} % of "
        "resamples"
        for audit in audits
    )
    return (
        f"Shortcut audit: a classifier on size, brightness and the like of the files has AUC {audits[0].trivial_auc}; "
        f"within thirds of its score, task against classifier: {each}."
    )


def _rows(data: Path, cases: Sequence[Case]) -> Floats:
    return feature_rows(
        data, [Sample(case.files[0], "", "", case.split, case.patient, "", None, "", None, None) for case in cases]
    )
