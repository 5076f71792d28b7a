"""Subgroups that are too small to be judged, and images of which nothing is known, are named in the report."""

from pathlib import Path

import numpy as np
import pytest

from export.artefacts import read_json
from export.card import model_card
from export.data import Sample
from export.gate_rules import Subgroup
from export.images import ImageSet
from export.metrics import ratio, share_of_auc
from export.operating import Labelled
from export.recipe import Recipe, recipe_from_toml
from export.subgroups import limits, subgroup_table, unknown_table


@pytest.fixture(scope="module")
def recipe(repository: Path) -> Recipe:
    """The shipped recipe, whose gate judges groups of 50 images."""
    return recipe_from_toml(repository / "engines" / "chest-xray" / "recipe.toml")


def adults() -> Labelled:
    """100 adults, 60 of them men, nine of whom are positive; ages known of women only."""
    labels = np.array([1.0] * 9 + [0.0] * 51 + [1.0, 0.0] * 20)
    return Labelled(
        scores=labels,
        labels=labels,
        patients=tuple(str(number) for number in range(100)),
        sexes=("M",) * 60 + ("F",) * 40,
        ages=(None,) * 60 + (30.0,) * 40,
        views=("PA",) * 100,
        rows=tuple(range(100)),
    )


def samples() -> tuple[Sample, ...]:
    """Three validation images of two data sets, with and without what can be known, and one of training."""
    known = Sample("a", "", "nih", "val", "1", "F", 0.0, "PA", 1, None)
    bare = Sample("b", "", "kermany", "val", "2", "", None, "", None, 1)
    other = Sample("c", "", "kermany", "val", "3", "", 4.0, "AP", None, 1)
    return known, bare, other, Sample("d", "", "nih", "train", "4", "", None, "", 1, None)


def test_groups_that_are_too_small_are_named(recipe: Recipe) -> None:
    """Too few images, or too few of one class for an AUC: the group is shown with its number, and not judged."""
    groups = [Subgroup("all", 100, 0.9, 0.9), Subgroup("sex F", 40, 0.9, 1.0), Subgroup("age 18 to 39", 40, 0.9, 1.0)]
    table = subgroup_table(groups, adults(), recipe.gate)
    assert [(row[0], row[1], row[2], row[-1]) for row in table["rows"]] == [
        ("all", 100, "0.900", "yes"),
        ("sex F", 40, "0.900", "not judged, too few: 40"),
        ("sex M", 60, "too few", "not judged, too few of one class: 9"),
        ("age 18 to 39", 40, "0.900", "not judged, too few: 40"),
    ]
    assert "from 50 images on" in table["note"]


def test_the_share_of_the_teachers_comes_with_its_interval(recipe: Recipe) -> None:
    """Paired by patient: a student that scores as its teachers keeps all of them, whoever is drawn."""
    cases, rng = adults(), np.random.default_rng(3)
    teachers = cases.labels + rng.normal(size=100)
    same = share_of_auc(teachers, teachers, cases.labels, cases.patients, 1)
    assert (same.value, same.low, same.high) == (1.0, 1.0, 1.0)
    less = share_of_auc(teachers + rng.normal(size=100), teachers, cases.labels, cases.patients, 1)
    assert less.low < less.value < less.high
    assert np.isnan(ratio(0.5, 0.0))
    table = subgroup_table([Subgroup("all", 100, 0.8, 0.9, less)], cases, recipe.gate)
    assert table["rows"][0][4] == str(less)


def test_what_is_not_known_is_counted_by_data_set() -> None:
    """An age of nought is known; an empty sex or view and a missing age are not, and training images do not count."""
    data = ImageSet(samples(), np.zeros((4, 2, 2), np.uint8), np.zeros((0, 2, 2), np.uint8), (-1,) * 4)
    assert unknown_table(data)["rows"] == [["all", 3, 2, 1, 1], ["kermany", 2, 2, 1, 1], ["nih", 1, 0, 0, 0]]


def test_the_card_says_what_was_not_judged(repository: Path, recipe: Recipe) -> None:
    """What the report leaves open stands among what was not measured; a report without it reads as before."""
    report = read_json(repository / "engines" / "chest-xray" / "gate-report.json") | {"limits": []}
    before = model_card(recipe, report, "validated", "0" * 64)
    found = limits(
        {"rows": [["all", 100, "yes"], ["sex F", 40, "not judged, too few: 40"]]}, {"rows": [["all", 3, 2, 1, 1]]}
    )
    after = model_card(recipe, report | {"limits": found}, "validated", "0" * 64)
    added = [line for line in after.splitlines() if line not in before.splitlines()]
    assert added == [
        "- Groups of adults that the gate does not judge by themselves: sex F (not judged, too few: 40).",
        "- Of 3 validation images, not known: sex of 2, age of 1, view of 1.",
    ]
    assert limits({"rows": [["all", 100, "yes"]]}, {"rows": [["all", 3, 0, 0, 0]]}) == [
        "Of 3 validation images, not known: sex of 0, age of 0, view of 0."
    ]
