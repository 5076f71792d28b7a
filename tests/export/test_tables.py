"""Every figure of the report's tables has its interval, by patient."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from export.data import Sample
from export.gate_rules import Accuracy
from export.images import ImageSet
from export.metrics import Interval, expected_calibration_error, mean_by_patient
from export.operating import labelled
from export.predictions import Predictions
from export.recipe import Recipe, recipe_from_toml
from export.tables import aims_table, comparison_table, lung_table, triage_table
from export.tasks import ADULT, PAEDIATRIC

IMAGES = 60
NAN = float("nan")
POINTS = {"net": {ADULT: 0.5, PAEDIATRIC: 0.5}}


def figures_of(cell: str) -> tuple[float, float, float]:
    """Value, low and high of a table's cell."""
    value, low, high = cell.replace("%", "").replace("[", "").replace("]", "").replace(",", "").split()
    return float(value), float(low), float(high)


@pytest.fixture
def recipe(tiny_recipe: Path) -> Recipe:
    """The tiny recipe."""
    return recipe_from_toml(tiny_recipe)


def measured(copies: int) -> tuple[Predictions, ImageSet]:
    """Made-up scores of adults and children of which each patient has so many images, all alike; one mask is empty."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, IMAGES)
    scores = np.clip(0.5 * labels + rng.random(IMAGES) * 0.6, 0.0, 1.0)
    overlaps, distances = 0.8 + 0.2 * rng.random(IMAGES), rng.random(IMAGES)
    overlaps[0], distances[0] = 0.0, NAN
    samples = []
    for number in range(IMAGES):
        adult = number % 2 == 0
        name, label = f"p{number}", int(labels[number])
        samples.append(
            Sample(
                file=f"{number}.png",
                mask="",
                dataset="nih" if adult else "kermany",
                split="val",
                patient=name,
                sex="",
                age=50.0 if adult else 3.0,
                view="",
                adult=label if adult else None,
                paediatric=None if adult else label,
            )
        )
    rows = np.repeat(np.arange(IMAGES), copies)
    drawn = ImageSet(
        tuple(samples[row] for row in rows), np.zeros((0, 1, 1), np.uint8), np.zeros((0, 1, 1), np.uint8), ()
    )
    said = Predictions(
        np.arange(len(rows)), scores[rows], scores[rows], *(np.full(len(rows), NAN) for _ in range(2)),
        overlaps[rows], distances[rows], 2 * distances[rows], np.ones(len(rows)),
    )  # fmt: skip
    return said, drawn


def test_every_figure_of_the_comparison_has_an_interval_by_patient(recipe: Recipe) -> None:
    """AUC, ECE, sensitivity, Dice and surface distance lie within theirs; ten images a patient make none narrower."""
    for task_column, (once, copied) in enumerate(
        zip(*(comparison_table({"net": said}, data, recipe, POINTS)["rows"][0][1:]
              for said, data in map(measured, (1, 10))), strict=True)
    ):  # fmt: skip
        value, low, high = figures_of(once)
        assert low < high, task_column
        assert low <= value <= high or task_column in {1, 4}, task_column
        assert figures_of(copied) == pytest.approx((value, low, high), abs=0.011), task_column


def test_a_calibration_errors_interval_is_the_bootstraps(recipe: Recipe) -> None:
    """The note under a triage table gives the error of all images with its interval."""
    said, data = measured(1)
    cases = labelled(ADULT, "val", said, data, recipe.data.adult_min_age_years)
    error = expected_calibration_error(cases.scores, cases.labels)
    assert f"Expected calibration error {error:.3f} [" in triage_table(ADULT, cases, 0.5, 5)["note"]
    assert PAEDIATRIC in triage_table(PAEDIATRIC, cases, 0.5, 5)["title"]


def test_each_group_has_its_calibration_error_and_each_model_its_sensitivity(recipe: Recipe) -> None:
    """The last column of a triage table is the group's own error; a model's sensitivity is at its own threshold."""
    said, data = measured(1)
    cases = labelled(ADULT, "val", said, data, recipe.data.adult_min_age_years)
    table = triage_table(ADULT, cases, 0.5, 5)
    error = expected_calibration_error(cases.scores, cases.labels)
    assert table["columns"][-1] == "ECE [95 %]"
    assert table["rows"][0][-1].startswith(f"{error:.3f} [")
    points = {"all called": {ADULT: 0.0, PAEDIATRIC: 0.0}, "none called": {ADULT: 1.1, PAEDIATRIC: 1.1}}
    compared = comparison_table(dict.fromkeys(points, said), data, recipe, points)
    column = compared["columns"].index("adult sensitivity")
    assert [row[column][:5] for row in compared["rows"]] == ["1.000", "0.000"]


def test_one_patient_has_no_interval() -> None:
    """Nobody can be drawn in that patient's place: the cell says so, instead of an interval without width."""
    said, data = measured(1)
    alone = Predictions(*(getattr(said, field.name)[2:3] for field in dataclasses.fields(Predictions)))
    row = lung_table(alone, data)["rows"][0]
    overlap, distance = said.dice[2], said.surface_mean[2]
    assert row[2] == row[3] == f"{overlap:.3f} (one patient, no interval)"
    assert row[5] == f"{distance:.2f} % (one patient, no interval)"


def test_the_fifth_percentile_of_dice_has_an_interval() -> None:
    """It is of few images, and the table says how far it can be relied on."""
    said, data = measured(1)
    low = figures_of(lung_table(said, data)["rows"][0][3])
    assert low[1] < low[0] < low[2]
    assert low[0] == pytest.approx(float(np.nanpercentile(said.dice, 5)), abs=0.0006)


def test_aims_beyond_the_bounds_are_shown_and_not_judged(recipe: Recipe) -> None:
    """A figure between bound and aim is met and not reached; without an aim there is no row."""
    figures = Accuracy(Interval(0.906, 0.843, 0.963), 0.1, 1.0, 0.95, 0.9, 0.91, 0.95, 1.0, 1.0, ())
    gate = dataclasses.replace(recipe.gate, adult_auc_min=0.86, adult_auc_aim=0.92)
    assert aims_table(figures, gate)["rows"] == [["within-NIH AUC of adults", "≥ 0.86", "≥ 0.92", "0.906", "no"]]
    assert aims_table(figures, recipe.gate)["rows"] == []


def test_surface_distances_are_of_the_images_that_have_one(recipe: Recipe) -> None:
    """An empty mask has no distance and is left out of it, not of Dice; where no image has one, it is not a number."""
    said, data = measured(1)
    row = lung_table(said, data)["rows"][0]
    value, low, high = figures_of(row[-2])
    assert value == pytest.approx(float(np.nanmean(said.surface_mean)), abs=0.005)
    assert low < value < high
    assert row[1] == IMAGES
    assert np.isnan(mean_by_patient(np.full(3, NAN), list("abc"), 0).value)
