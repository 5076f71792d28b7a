"""A task is held against a classifier that sees no more than the numbers of the files."""

import json

import numpy as np
import pytest

from export.gate import verdict
from export.metrics import Interval
from export.task_head.audit import NO_MASKS, NO_VOLUMES, TaskAudit, audited, in_words
from export.task_head.features import Pictures
from export.task_head.labels import cases_from_csv
from export.task_head.recipe import TaskRecipe, task_recipe_from_toml
from tests.export.task_head.conftest import Rows, Site


def audit(site: Site, rows: Rows | None = None) -> tuple[TaskRecipe, list[TaskAudit]]:
    """The audit of a task that is always right."""
    recipe = task_recipe_from_toml(site.recipe())
    cases = cases_from_csv(site.labels(rows), recipe)
    pictures = Pictures(
        cases, tuple((row,) for row in range(len(cases))), np.zeros((0, 1, 1), np.uint8), np.zeros((0, 1, 1), np.uint8)
    )
    right = np.array([float(cases[number].label) for number in pictures.select("val")])
    return recipe, audited(recipe, pictures, {"int8": right, "fp32": right}, site.folder)


def test_a_task_that_the_files_give_away_is_not_validated(site: Site) -> None:
    """Stripes are bright: a task that is always right is no further than the trivial classifier, at any precision."""
    recipe, audits = audit(site)
    assert [each.precision for each in audits] == ["int8", "fp32"]
    assert audits[0].trivial_auc.value > 0.95
    rules = [rule for each in audits for rule in each.rules(recipe)]
    assert verdict(rules) == "fail"
    assert [rule.name for rule in rules if not rule.passed] == [
        f"share of resamples in which it is above, at {name}" for name in ("int8", "fp32")
    ]
    said = in_words(recipe, audits)
    assert "has AUC 1.000" in said
    assert "int8 1.000 against 1.000, ahead in 0.0 % of resamples" in said


def test_a_task_that_the_files_do_not_give_away_passes(site: Site) -> None:
    """Which half is bright is in none of the numbers: a task that is always right is ahead."""
    rows = [row | {"label": str(number % 2)} for number, row in enumerate(site.rows)]
    recipe, audits = audit(site, rows)
    assert verdict([rule for each in audits for rule in each.rules(recipe)]) == "pass"
    assert audits[0].matched == 1.0
    assert audits[0].trivial < 0.9
    assert json.loads(json.dumps([each.row() for each in audits]))[0]["trivial_auc"]["low"] < 0.9


@pytest.mark.parametrize(("head", "said"), [("mil", NO_VOLUMES), ("segmentation", NO_MASKS)])
def test_what_is_not_audited_says_so(site: Site, head: str, said: str) -> None:
    """Volumes and masks have no audit, and their summary says it."""
    assert in_words(task_recipe_from_toml(site.recipe(head=f'"{head}"')), []) == said


def test_thirds_of_one_class_each_are_no_figure(site: Site) -> None:
    """Where nothing can be compared the report holds null, and the rule is not met."""
    nothing = TaskAudit("fp32", Interval(1.0, 1.0, 1.0), float("nan"), float("nan"), 0.0)
    assert nothing.row()["matched"] is None
    assert not any(rule.passed for rule in nothing.rules(task_recipe_from_toml(site.recipe())))
