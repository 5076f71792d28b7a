"""Operating points: thresholds chosen on the tuning patients, for each precision anew, and what they give."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from export.images import ImageSet
from export.metrics import (
    Floats,
    Interval,
    rate_by_patient,
    sensitivity_and_specificity,
    threshold_for_sensitivity,
)
from export.predictions import MASK_THRESHOLD, Predictions
from export.recipe import Recipe
from export.tasks import ADULT, GUARD, LUNGS, PAEDIATRIC

DISTANCE_MARGIN = 1.1
"""New hospitals lie a little further out than held-out patients of known ones."""
HIGHEST_GUARD_THRESHOLD = 0.5


@dataclass(frozen=True, eq=False, slots=True)
class Labelled:
    """Scores and labels [n] of one task on one split, with what subgroups need."""

    scores: Floats
    labels: Floats
    patients: tuple[str, ...]
    sexes: tuple[str, ...]
    ages: tuple[float | None, ...]
    views: tuple[str, ...]
    rows: tuple[int, ...]

    def select(self, chosen: list[bool]) -> "Labelled":
        """The rows that are chosen."""
        keep = [i for i, wanted in enumerate(chosen) if wanted]
        return Labelled(
            self.scores[keep],
            self.labels[keep],
            tuple(self.patients[i] for i in keep),
            tuple(self.sexes[i] for i in keep),
            tuple(self.ages[i] for i in keep),
            tuple(self.views[i] for i in keep),
            tuple(self.rows[i] for i in keep),
        )


def labelled(task: str, split: str, said: Predictions, data: ImageSet, adult_from: float) -> Labelled:
    """The labelled images of a task and split; for the adult task adults only."""
    field, scores = ("adult", said.adult) if task == ADULT else ("paediatric", said.paediatric)
    rows = []
    for position, index in enumerate(said.indices):
        sample = data.samples[index]
        grown = task != ADULT or (sample.age or 0.0) >= adult_from
        if sample.split == split and getattr(sample, field) is not None and grown:
            rows.append(position)
    samples = [data.samples[said.indices[row]] for row in rows]
    return Labelled(
        scores[rows],
        np.array([float(getattr(sample, field)) for sample in samples]),
        tuple(sample.patient for sample in samples),
        tuple(sample.sex for sample in samples),
        tuple(sample.age for sample in samples),
        tuple(sample.view for sample in samples),
        tuple(rows),
    )


def rates_at(threshold: float, cases: Labelled, seed: int) -> tuple[Interval, Interval]:
    """Sensitivity and specificity, their intervals by patient."""
    return sensitivity_and_specificity(cases.scores >= threshold, cases.labels, cases.patients, seed)


def operating_points(
    recipe: Recipe, data: ImageSet, said: Predictions, varied: tuple[Floats, Floats]
) -> dict[str, dict[str, Any]]:
    """The operating point of every task for one precision, as the manifest holds it.

    Args:
        recipe: What thresholds are chosen for.
        data: The images.
        said: Predictions of this precision on tuning and validation images.
        varied: Guard score and distance of augmented tuning images, which widen what the guard accepts.
    """
    points = {
        ADULT: _triage(
            ADULT,
            "NIH images of adults",
            recipe.operating.adult_sensitivity,
            recipe=recipe,
            data=data,
            said=said,
        ),
        PAEDIATRIC: _triage(
            PAEDIATRIC,
            "Kermany images of children",
            recipe.operating.paediatric_sensitivity,
            recipe=recipe,
            data=data,
            said=said,
        ),
        GUARD: _guard(recipe, data, said, varied),
        LUNGS: _lungs(data, said),
    }
    return {task: {"threshold": t, "max_distance": d, "meaning": m} for task, (t, d, m) in points.items()}


Point = tuple[float, float | None, str]


def _triage(task: str, what: str, wanted: float, *, recipe: Recipe, data: ImageSet, said: Predictions) -> Point:
    adult_from = recipe.data.adult_min_age_years
    tune = labelled(task, "tune", said, data, adult_from)
    val = labelled(task, "val", said, data, adult_from)
    threshold = threshold_for_sensitivity(tune.scores, tune.labels, wanted)
    sensitivity, specificity = rates_at(threshold, val, recipe.pack.seed)
    meaning = (
        f"On {len(val.labels)} public validation {what}: sensitivity {sensitivity}, specificity {specificity} "
        f"(95 % intervals by patient); threshold chosen on {len(tune.labels)} others. Not validated at this site."
    )
    return threshold, None, meaning


def _guard(recipe: Recipe, data: ImageSet, said: Predictions, varied: tuple[Floats, Floats]) -> Point:
    tune = [row for row, index in enumerate(said.indices) if data.samples[index].split == "tune"]
    val = [row for row, index in enumerate(said.indices) if data.samples[index].split == "val"]
    left_out = 1.0 - recipe.operating.guard_pass_share
    scores = np.concatenate([said.guard_score[tune], varied[0]])
    distances = np.concatenate([said.guard_distance[tune], varied[1]])
    threshold = round(min(float(np.quantile(scores, left_out)), HIGHEST_GUARD_THRESHOLD), 4)
    furthest = round(float(np.quantile(distances, 1.0 - left_out)) * DISTANCE_MARGIN, 3)
    passed = guard_passes(threshold, furthest, said.guard_score[val], said.guard_distance[val])
    share = rate_by_patient(passed, [data.samples[said.indices[row]].person for row in val], recipe.pack.seed)
    meaning = (
        f"Of {len(val)} public validation chest radiographs {share} pass (95 % interval by patient); "
        f"threshold and distance chosen on {len(tune)} others and variants of them."
    )
    return threshold, furthest, meaning


def thresholds(recipe: Recipe, data: ImageSet, said: Predictions) -> dict[str, float]:
    """The triage thresholds of anything that scores, the teachers too, chosen on `tune` as the student's are."""
    wanted = {ADULT: recipe.operating.adult_sensitivity, PAEDIATRIC: recipe.operating.paediatric_sensitivity}
    result = {}
    for task, sensitivity in wanted.items():
        tune = labelled(task, "tune", said, data, recipe.data.adult_min_age_years)
        result[task] = threshold_for_sensitivity(tune.scores, tune.labels, sensitivity)
    return result


def guard_passes(threshold: float, furthest: float, scores: Floats, distances: Floats) -> Any:
    """Which pictures the guard lets pass: bool [n]."""
    return (scores >= threshold) & (distances <= furthest)


def _lungs(data: ImageSet, said: Predictions) -> Point:
    val = [row for row, index in enumerate(said.indices) if data.samples[index].split == "val"]
    values = said.dice[val][~np.isnan(said.dice[val])]
    meaning = (
        f"Mean Dice {values.mean():.3f}, 5th percentile {np.percentile(values, 5):.3f} on {len(values)} public "
        "validation images with drawn lungs, nearly all of children; a pixel counts as lung from probability 0.5."
    )
    return MASK_THRESHOLD, None, meaning
