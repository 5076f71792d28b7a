"""The gate report's tables: every figure with n and interval, overall and by subgroup."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from export.gate_rules import Accuracy, accuracy_rules
from export.images import ImageSet
from export.metrics import (
    ALONE,
    RATES_BY_PATIENT,
    RESAMPLES,
    Floats,
    auc,
    bootstrap,
    expected_calibration_error,
    mean_by_patient,
    rate_by_patient,
    wilson,
)
from export.operating import Labelled, guard_passes, labelled, rates_at
from export.predictions import Predictions
from export.recipe import GateSection, Recipe
from export.subgroups import is_enough, subgroups
from export.tasks import ADULT, PAEDIATRIC

Table = dict[str, Any]
WITHIN = {ADULT: "NIH, adults", PAEDIATRIC: "Kermany, children of 1 to 5 years"}


def as_text(table: Table) -> str:
    """A table for a terminal: its title, one line a row, its note."""
    lines = [[str(each) for each in row] for row in (table["columns"], *table["rows"])]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = ("  ".join(each.ljust(width) for each, width in zip(row, widths, strict=True)).rstrip() for row in lines)
    return "\n".join([table["title"], *rows, table["note"]])


def triage_table(task: str, cases: Labelled, threshold: float, seed: int) -> Table:
    """AUC, sensitivity, specificity and calibration error of one task overall and by sex, age and view."""
    rows = [_triage_row("all", cases, threshold, seed)]
    for name, chosen in subgroups(cases).items():
        rows.append(_triage_row(name, cases.select(chosen), threshold, seed))
    error = bootstrap(expected_calibration_error, cases.scores, cases.labels, cases.patients, seed)
    return {
        "title": f"{task}: within {WITHIN[task]}",
        "columns": [
            "group",
            "images",
            "patients",
            "positive",
            "AUC [95 %]",
            "sensitivity [95 %]",
            "specificity [95 %]",
            "ECE [95 %]",
        ],
        "rows": rows,
        "note": f"Operating point {threshold:.3f}. Expected calibration error {error} (10 bins, all). "
        f"Intervals: AUC and calibration error by {RESAMPLES:,} bootstrap samples of patients; {RATES_BY_PATIENT}.",
    }


def lung_table(said: Predictions, data: ImageSet) -> Table:
    """Dice by data set."""
    rows = []
    val = _validation(said, data)
    for name in ("all", *sorted({data.samples[said.indices[row]].dataset for row in val})):
        chosen = [row for row in val if name in ("all", data.samples[said.indices[row]].dataset)]
        drawn = [row for row in chosen if not np.isnan(said.dice[row])]
        if drawn:
            values = said.dice[drawn]
            patients = _persons(said, data, drawn)
            interval = mean_by_patient(values, patients, 0)
            surface = (_percent(each[drawn], patients) for each in (said.surface_mean, said.surface_95))
            low = bootstrap(lambda each, _: float(np.percentile(each, 5)), values, values, patients, 0)
            rows.append([name, len(drawn), str(interval), str(low), f"{values.min():.3f}", *surface])
    return {
        "title": "lungs: against drawn masks",
        "columns": [
            "data set",
            "images",
            "Dice, mean [95 %]",
            "5th percentile [95 %]",
            "worst",
            "surface distance [95 %]",
            "its 95th percentile [95 %]",
        ],
        "rows": rows,
        "note": "Surface distances are means over the images, in percent of the picture's height. Intervals: "
        f"{RESAMPLES:,} bootstrap samples of patients. No lungs were drawn for NIH images, so adults are hardly "
        "measured.",
    }


def comparison_table(
    said: Mapping[str, Predictions], data: ImageSet, recipe: Recipe, points: Mapping[str, Mapping[str, float]]
) -> Table:
    """Teachers and every precision of the student on the same images.

    Args:
        said: Predictions by model.
        data, recipe: As everywhere.
        points: Each model's threshold for each triage task.
    """
    rows, seed = [], recipe.pack.seed
    for name, predictions in said.items():
        row: list[Any] = [name]
        for task in (ADULT, PAEDIATRIC):
            cases = labelled(task, "val", predictions, data, recipe.data.adult_min_age_years)
            row += [
                str(bootstrap(statistic, cases.scores, cases.labels, cases.patients, seed))
                for statistic in (auc, expected_calibration_error)
            ]
            row.append(str(rates_at(points[name][task], cases, seed)[0]))
        val = _validation(predictions, data)
        patients = _persons(predictions, data, val)
        row.append(f"{mean_by_patient(predictions.dice[val], patients, seed):.4f}")
        row.append(_percent(predictions.surface_mean[val], patients, seed))
        rows.append(row)
    return {
        "title": "Teachers, student, and the student in lower precision",
        "columns": [
            "model",
            "adult AUC",
            "adult ECE",
            "adult sensitivity",
            "paediatric AUC",
            "paediatric ECE",
            "paediatric sensitivity",
            "lung Dice",
            "surface distance",
        ],
        "rows": rows,
        "note": "Same validation images, ONNX Runtime on the CPU, FP16 too: an engine's own arithmetic needs a GPU, "
        "and the appliance replays the golden cases on it. The teachers' scores are not temperature-scaled. "
        "Sensitivity is at each model's own operating point; the teachers' was chosen for this table, on the tuning "
        f"patients, as the student's are. In brackets: 95 % intervals by {RESAMPLES:,} bootstrap samples of patients; "
        f"{RATES_BY_PATIENT}.",
    }


def _persons(said: Predictions, data: ImageSet, rows: Sequence[int]) -> list[str]:
    return [data.samples[said.indices[row]].person for row in rows]


def _validation(said: Predictions, data: ImageSet) -> list[int]:
    return [row for row, index in enumerate(said.indices) if data.samples[index].split == "val"]


def _percent(values: Floats, patients: Sequence[str], seed: int = 0) -> str:
    """A mean in percent with its interval, of the images in which it could be measured."""
    found = mean_by_patient(values, patients, seed)
    if found.alone:
        return f"{found.value:.2f} % {ALONE}"
    return f"{found.value:.2f} % [{found.low:.2f}, {found.high:.2f}]"


def mean_dice(said: Predictions, data: ImageSet) -> float:
    """Mean Dice over the validation images with drawn lungs."""
    return float(np.nanmean(said.dice[_validation(said, data)]))


def mean_dice_p5(said: Predictions, data: ImageSet) -> float:
    """5th percentile of Dice over the validation images with drawn lungs."""
    return float(np.nanpercentile(said.dice[_validation(said, data)], 5))


def aims_table(figures: Accuracy, gate: GateSection) -> Table:
    """What is aimed at beyond the bounds, and whether it was reached; no rows where the recipe names no aim."""
    aimed = replace(
        gate,
        adult_auc_min=gate.adult_auc_aim or gate.adult_auc_min,
        adult_auc_low_min=gate.adult_auc_low_aim or gate.adult_auc_low_min,
        sex_gap_max=gate.sex_gap_aim or gate.sex_gap_max,
    )
    rows = []
    for rule, aim in zip(accuracy_rules(figures, gate), accuracy_rules(figures, aimed), strict=True):
        if rule.bound != aim.bound:
            rows.append([rule.name, rule.row()[1], aim.row()[1], rule.figure, "yes" if aim.passed else "no"])
    return {
        "title": "Beyond the bounds: what is aimed at",
        "columns": ["figure", "bound", "aim", "measured", "reached"],
        "rows": rows,
        "note": "The gate judges by the bounds alone.",
    }


def guard_tables(
    said: Predictions,
    data: ImageSet,
    wrong: tuple[Floats, Floats],
    kinds: Sequence[str],
    point: Mapping[str, Any],
    *,
    seed: int,
) -> list[Table]:
    """How many radiographs pass, and how many wrong pictures are refused."""
    limits = float(point["threshold"]), float(point["max_distance"])
    val = _validation(said, data)
    passed = guard_passes(*limits, said.guard_score, said.guard_distance)
    rows = []
    for name in ("all", *sorted({data.samples[said.indices[row]].dataset for row in val})):
        chosen = [row for row in val if name in ("all", data.samples[said.indices[row]].dataset)]
        share = rate_by_patient(passed[chosen], _persons(said, data, chosen), seed)
        rows.append([name, len(chosen), str(share)])
    refused = ~guard_passes(*limits, *wrong)
    wrong_rows = []
    for kind in sorted(set(kinds)):
        chosen = [i for i, each in enumerate(kinds) if each == kind]
        wrong_rows.append([kind, len(chosen), str(wilson(float(refused[chosen].mean()), len(chosen)))])
    note = (
        "Intervals by Wilson over the pictures, as if none depended on another: of which patient or series each was "
        "made is not recorded. Laterals, radiographs of other body parts and mirrored images were not measured."
    )
    return [
        {"title": "guard: radiographs that pass", "columns": ["data set", "images", "share [95 %]"], "rows": rows,
         "note": f"Score at least {limits[0]:g} and distance at most {limits[1]:g}. Intervals: {RATES_BY_PATIENT}."},
        {"title": "guard: wrong pictures that are refused", "columns": ["kind", "images", "share [95 %]"],
         "rows": wrong_rows, "note": f"Made of validation radiographs, or DICOM series kept from training. {note}"},
    ]  # fmt: skip


def source_table(sources: Mapping[str, Mapping[str, Any]], unreadable: int) -> Table:
    """What the files held that everything was made of, as `images.source_digests` found them.

    Args:
        sources: By data set.
        unreadable: How many of the images could not be read.
    """
    left_out = f" {unreadable} of these images could not be read and were left out." if unreadable else ""
    return {
        "title": "Data that was read",
        "columns": ["data set", "images", "masks", "SHA-256"],
        "rows": [[name, each["images"], each["masks"], each["sha256"]] for name, each in sources.items()],
        "note": "Files that the labels name. The digest is over the SHA-256 of every file, by name, as JSON."
        + left_out,
    }


def _triage_row(name: str, cases: Labelled, threshold: float, seed: int) -> list[Any]:
    positive, enough = int(cases.labels.sum()), is_enough(cases)
    area = str(bootstrap(auc, cases.scores, cases.labels, cases.patients, seed)) if enough else "too few"
    rates = (str(each) for each in rates_at(threshold, cases, seed))
    error = bootstrap(expected_calibration_error, cases.scores, cases.labels, cases.patients, seed)
    return [name, len(cases.labels), len(set(cases.patients)), positive, area, *rates, str(error)]
