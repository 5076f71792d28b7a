"""The shortcut audit of `verify`: trivial classifier, matched strata, disturbances and attribution, task by task."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from export.attribution import CONTROLS, Attribution, attribution, of_runner
from export.gate_rules import Shortcut
from export.images import ImageSet
from export.metrics import RESAMPLES, auc, bootstrap
from export.operating import Labelled, labelled
from export.predictions import Predictions, predict
from export.recipe import Recipe
from export.runner import Grey, Outputs, Runner
from export.shortcuts import (
    FEATURES,
    STRATA,
    disturbances,
    feature_rows,
    matched_auc,
    share_ahead,
    trivial_scores,
)
from export.tables import Table
from export.tasks import ADULT, LUNGS, PAEDIATRIC

TASKS = (ADULT, PAEDIATRIC)


@dataclass(frozen=True, eq=False, slots=True)
class Audit:
    """The audit's figures by task for the gate, its tables, and the maps for the report."""

    figures: list[Shortcut]
    tables: list[Table]
    maps: dict[str, dict[str, Any]]


@dataclass(frozen=True, eq=False, slots=True)
class Audited:
    """What is audited: the validation predictions of the encoder that serves first, and a way to ask it again."""

    recipe: Recipe
    data: ImageSet
    said: Predictions
    runner: Runner
    radiographs: Path

    def cases(self, task: str, said: Predictions | None = None) -> Labelled:
        """The labelled validation images of a task, with the given scores or the undisturbed ones."""
        return labelled(task, "val", said or self.said, self.data, self.recipe.data.adult_min_age_years)


def audit(subject: Audited) -> Audit:
    """Audit both triage tasks."""
    plain = {task: _area(subject.cases(task)) for task in TASKS}
    disturbed = _disturbed(subject)
    worst = {task: max(plain[task] - areas[task] for areas in disturbed.values()) for task in TASKS}
    seen = {task: _attribution(subject, task) for task in TASKS}
    figures, rows = [], []
    for task in TASKS:
        figure, row = _matched(subject, task, worst[task], seen[task])
        figures.append(figure)
        rows.append(row)
    tables = [_trivial_table(rows), _disturbed_table({"undisturbed": plain} | disturbed), attribution_table(seen)]
    maps = {
        task: {
            "influence": np.round(each.influence, 4).tolist(),
            "lungs": np.round(each.lungs, 3).tolist(),
            "images": len(each.patients),
        }
        for task, each in seen.items()
    }
    return Audit(figures, tables, maps)


def _matched(subject: Audited, task: str, worst: float, seen: Attribution) -> tuple[Shortcut, list[Any]]:
    field = "adult" if task == ADULT else "paediatric"
    data, seed = subject.data, subject.recipe.pack.seed
    cases = subject.cases(task)
    train = [data.samples[i] for i in data.select(split="train") if getattr(data.samples[i], field) is not None]
    tests = [data.samples[int(subject.said.indices[row])] for row in cases.rows]
    trivial = trivial_scores(
        feature_rows(subject.radiographs, train),
        np.array([float(getattr(sample, field)) for sample in train]),
        feature_rows(subject.radiographs, tests),
        cases.labels,
        seed,
    )
    own = bootstrap(auc, cases.scores, cases.labels, cases.patients, seed)
    theirs = bootstrap(auc, trivial, cases.labels, cases.patients, seed)
    matched = matched_auc(cases.scores, cases.labels, trivial)
    remaining = matched_auc(trivial, cases.labels, trivial)
    ahead = share_ahead(cases.scores, cases.labels, trivial, cases.patients, seed)
    row = [task, len(tests), str(own), str(theirs), f"{matched:.3f}", f"{remaining:.3f}", f"{100 * ahead:.1f} %"]
    controls = seen.controls
    figure = Shortcut(
        task, matched, remaining, ahead, worst, seen.density, float(np.mean(controls)), float(np.max(controls))
    )
    return figure, row


def _disturbed(subject: Audited) -> dict[str, dict[str, float]]:
    val = subject.data.select(split="val")
    result = {}
    for name, change in disturbances(subject.recipe.input, subject.recipe.pack.seed).items():

        def says(images: Iterable[Grey], change: Callable[[Grey], Grey] = change) -> Iterable[Outputs]:
            return subject.runner.each(change(image) for image in images)

        said = predict(says, subject.data, val)
        result[name] = {task: _area(subject.cases(task, said)) for task in TASKS}
    return result


def _attribution(subject: Audited, task: str) -> Attribution:
    cases = subject.cases(task)
    images = [subject.data.images[subject.said.indices[row]] for row in cases.rows]
    return attribution(of_runner(subject.runner, task), images, cases.patients, subject.recipe.pack.seed)


def _area(cases: Labelled) -> float:
    return auc(cases.scores, cases.labels)


def _trivial_table(rows: list[list[Any]]) -> Table:
    return {
        "title": "Shortcut audit: the model against a classifier on what should not matter",
        "columns": [
            "task",
            "images",
            "model AUC [95 %]",
            "trivial AUC [95 %]",
            "model within thirds",
            "trivial within thirds",
            "model ahead there",
        ],
        "rows": rows,
        "note": "The trivial classifier is the better of logistic regression and random forest, picked on these images "
        f"in the shortcut's favour, on {len(FEATURES)} numbers of the delivered file ({', '.join(FEATURES)}), and "
        "trained on the same patients as the model. Where it comes near the model, most of the model's figure may be "
        "read off the file as well. View and age come from labels.csv: PNG and JPEG files carry no acquisition tags "
        "(device, exposure, station), so none is among the numbers. "
        f"'Within thirds' compares both on images of like trivial score ({STRATA} strata, "
        "AUCs weighted by pairs); 'ahead' is the share of 1,000 bootstrap samples of patients.",
    }


def _disturbed_table(areas: dict[str, dict[str, float]]) -> Table:
    return {
        "title": "AUC on disturbed images",
        "columns": ["disturbance", *TASKS],
        "rows": [[name, *(f"{each[task]:.3f}" for task in TASKS)] for name, each in areas.items()],
        "note": "Validation images, same model, same scores' order asked for.",
    }


def attribution_table(seen: dict[str, Attribution]) -> Table:
    """Where the decisions of each task, or of each named net, come from."""
    return {
        "title": "Where decisions come from",
        "columns": [
            "task",
            "images",
            "influence inside the lungs",
            "lungs' share of the picture",
            "density",
            "density of untrained heads, mean",
            "beyond their mean [95 %]",
            "their highest",
        ],
        "rows": [
            [
                task,
                len(each.patients),
                f"{100 * each.inside:.1f} %",
                f"{100 * each.area:.1f} %",
                f"{each.density:.2f}",
                f"{np.mean(each.controls):.2f}",
                str(each.beyond()),
                f"{np.max(each.controls):.2f}",
            ]
            for task, each in seen.items()
        ],
        "note": "Each of 8 x 8 pieces of a picture is blanked with the picture's median; its influence is the absolute "
        "change of the logit. Lungs are those that the model itself outlines (none were drawn for adults). Density 1 "
        "would mean that lung counts like any other place, and "
        f"an encoder may look at lungs whatever its head learned: so {CONTROLS} untrained heads, linear with normally "
        "distributed weights on the same embedding, are asked as well, and the trained head must be above their mean; "
        f"the interval is over {RESAMPLES:,} bootstrap samples of patients and of untrained heads. "
        f"Asked through the head of the task and `{LUNGS}`.",
    }
