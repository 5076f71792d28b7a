"""What cross-validation found: AUCs out of fold, by group and beside the trivial classifier, and paired differences."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from appliance.domain.errors import SettingsError
from export.artefacts import digest_of_values, write_json
from export.folds import (
    AS_IT_IS,
    TEACHERS,
    TRIVIAL,
    asked_out_of_fold,
    changed,
    teachers_out_of_fold,
    trivial_out_of_fold,
)
from export.folds_training import STAGES, Folds, train_all
from export.metrics import Floats, Interval, resampled
from export.operating import Labelled
from export.recipe import Recipe, as_json
from export.shortcuts import auc_within, thirds
from export.subgroups import is_enough, subgroups

RESULT = "folds.json"
WITHIN_FOLDS, WITHIN_THIRDS = "within folds", "within thirds of the trivial score"


Draw = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Rows and trainings of one bootstrap sample."""


@dataclass(frozen=True, eq=False, slots=True)
class Measure:
    """An AUC over some of the images, which compares those of one stratum only: rows [m] and their strata [m]."""

    rows: NDArray[np.int64]
    strata: NDArray[np.int64]


def cross_validate(
    recipe: Recipe, changes: Sequence[str], folds: Folds, radiographs: Path, say: Callable[[str], None]
) -> dict[str, Any]:
    """Try the recipe as it is, and with each of the changes, on the same folds; write and return the figures.

    Args:
        recipe: The reference.
        changes: As `folds.changed` reads them.
        folds: What is trained, and where.
        radiographs: Folder of the files, whose size and looks the trivial classifier reads.
        say: Told about progress.

    Raises:
        SettingsError: An unknown stage, a change or a number of folds that does not fit, or a recipe with foundation
            teachers, which are not tried here.
    """
    if folds.stage not in STAGES:
        raise SettingsError(f"There is no stage {folds.stage!r}.", f"Stages are: {', '.join(STAGES)}.")
    if folds.jobs < 1:
        raise SettingsError(f"{folds.jobs} nets at a time train nothing.", "Give at least 1.")
    if folds.seeds < 1:
        raise SettingsError(f"{folds.seeds} trainings of each fold tell nothing.", "Give at least 1.")
    if recipe.foundation:
        raise SettingsError(
            "A recipe with foundation teachers can't be cross-validated.", "Try it without [[foundation]]."
        )
    recipes = {AS_IT_IS: recipe} | {change: changed(recipe, change) for change in changes}
    asked: dict[str, list[Labelled]] = {}
    train_all(recipes.values(), folds, say)
    for name, each in recipes.items():
        say(f"asking: {name}")
        asked[name] = asked_out_of_fold(each, folds)
        if folds.stage == "student":
            asked[f"{TEACHERS} of {name}"] = teachers_out_of_fold(each, folds)
    cases = asked[AS_IT_IS][0]
    trivial, numbers = trivial_out_of_fold(recipe, folds, radiographs)
    scores = {name: np.stack([one.scores for one in each]) for name, each in asked.items()}
    scores[TRIVIAL] = np.tile(trivial, (folds.seeds, 1))
    result = {
        "stage": folds.stage,
        "folds": folds.count,
        "seed": recipe.pack.seed,
        "trainings": folds.seeds,
        "recipe": digest_of_values(as_json(recipe)),
        "images": len(cases.labels),
        "patients": len(set(cases.patients)),
        "positives": int(cases.labels.sum()),
        "figures": compared(scores, cases, measures(cases, numbers, trivial), recipe.pack.seed),
    }
    write_json(folds.root / RESULT, result)
    return result


def measures(cases: Labelled, folds: NDArray[np.int64], trivial: Floats) -> dict[str, Measure]:
    """All images, within folds, within thirds of the trivial score, and each group with enough images."""
    everyone, alike = np.arange(len(cases.labels)), np.zeros(len(cases.labels), np.int64)
    found = {
        "all": Measure(everyone, alike),
        WITHIN_FOLDS: Measure(everyone, folds),
        WITHIN_THIRDS: Measure(everyone, thirds(trivial)),
    }
    for name, chosen in subgroups(cases).items():
        if is_enough(cases.select(chosen)):
            rows = np.flatnonzero(chosen)
            found[name] = Measure(rows, alike[rows])
    return found


def compared(
    scores: Mapping[str, Floats], cases: Labelled, asked: Mapping[str, Measure], seed: int
) -> list[dict[str, Any]]:
    """The mean AUC of the trainings of each name by each measure, and its difference from the first of them.

    Args:
        scores: By name, [trainings, n] in the order of the cases; equal places are equal seeds.
        cases: Labels and patients.
        asked: What is measured.
        seed: Of the bootstrap, which draws patients and trainings anew, both of a pair always together: few trainings
            make the interval coarse, and one alone says nothing of the noise between trainings.
    """
    figures = []
    first = next(iter(scores))
    trainings = len(scores[first])
    for title, measure in asked.items():
        labels = cases.labels[measure.rows]
        patients = [cases.patients[row] for row in measure.rows]
        rng = np.random.default_rng((seed, trainings))
        draws = [(np.arange(len(labels)), np.arange(trainings))]
        draws += [(rows, rng.integers(0, trainings, size=trainings)) for rows in resampled(patients, seed)]
        areas = {name: _areas(each[:, measure.rows], labels, measure.strata, draws) for name, each in scores.items()}
        figures += [
            {
                "of": name,
                "measure": title,
                "images": len(labels),
                "auc": _interval(each),
                "difference": None if name == first else _interval(each - areas[first]),
            }
            for name, each in areas.items()
        ]
    return figures


def _areas(scores: Floats, labels: Floats, strata: NDArray[np.int64], draws: Sequence[Draw]) -> Floats:
    """The mean AUC [draws] of scores [trainings, m] over the rows and the trainings of each draw."""
    return np.array(
        [
            np.mean([auc_within(scores[one][rows], labels[rows], strata[rows]) for one in trainings])
            for rows, trainings in draws
        ]
    )


def as_text(result: Mapping[str, Any]) -> str:
    """The figures as lines of text."""
    first = (
        f"{result['stage']}, {result['folds']} folds: {result['images']} images of {result['patients']} NIH adults of "
        f"train and tune, {result['positives']} positive; trainings of each fold: {result['trainings']}"
    )
    lines = [first]
    for each in result["figures"]:
        less = each["difference"]
        beside = f"{less[0]:+.3f} [{less[1]:+.3f}, {less[2]:+.3f}]" if less else ""
        area = Interval(*each["auc"])
        lines.append(f"{each['measure']:36}{each['images']:5}  {area!s:22} {beside:24} {each['of']}")
    return "\n".join(lines)


def _interval(values: Floats) -> list[float]:
    """The first value with the 95 % interval of the others."""
    low, high = np.nanpercentile(values[1:], (2.5, 97.5))
    return [round(float(value), 4) for value in (values[0], low, high)]
