"""Every figure of the report's tables has its interval, by patient."""

from pathlib import Path

import numpy as np
import pytest

from export.data import Sample
from export.images import ImageSet
from export.metrics import expected_calibration_error, mean_by_patient
from export.operating import labelled
from export.predictions import Predictions
from export.recipe import Recipe, recipe_from_toml
from export.tables import comparison_table, lung_table, triage_table
from export.tasks import ADULT, PAEDIATRIC

IMAGES = 60
NAN = float("nan")


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
        overlaps[rows], distances[rows], 2 * distances[rows],
    )  # fmt: skip
    return said, drawn


def test_every_figure_of_the_comparison_has_an_interval_by_patient(recipe: Recipe) -> None:
    """AUC, calibration error, Dice and surface distance lie within theirs; ten images a patient make none narrower."""
    for task_column, (once, copied) in enumerate(
        zip(*(comparison_table({"net": said}, data, recipe)["rows"][0][1:] for said, data in map(measured, (1, 10))),
            strict=True)
    ):  # fmt: skip
        value, low, high = figures_of(once)
        assert low < high, task_column
        assert low <= value <= high or task_column in {1, 3}, task_column
        assert figures_of(copied) == pytest.approx((value, low, high), abs=0.011), task_column


def test_a_calibration_errors_interval_is_the_bootstraps(recipe: Recipe) -> None:
    """The note under a triage table gives the error of all images with its interval."""
    said, data = measured(1)
    cases = labelled(ADULT, "val", said, data, recipe.data.adult_min_age_years)
    error = expected_calibration_error(cases.scores, cases.labels)
    assert f"Expected calibration error {error:.3f} [" in triage_table(ADULT, cases, 0.5, 5)["note"]
    assert PAEDIATRIC in triage_table(PAEDIATRIC, cases, 0.5, 5)["title"]


def test_surface_distances_are_of_the_images_that_have_one(recipe: Recipe) -> None:
    """An empty mask has no distance and is left out of it, not of Dice; where no image has one, it is not a number."""
    said, data = measured(1)
    row = lung_table(said, data)["rows"][0]
    value, low, high = figures_of(row[-2])
    assert value == pytest.approx(float(np.nanmean(said.surface_mean)), abs=0.005)
    assert low < value < high
    assert row[1] == IMAGES
    assert np.isnan(mean_by_patient(np.full(3, NAN), list("abc"), 0).value)
