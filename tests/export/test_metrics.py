"""Figures are what their definitions say."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from export.gate import Rule, verdict
from export.metrics import (
    auc,
    bootstrap,
    dice,
    expected_calibration_error,
    rate_by_patient,
    sensitivity_and_specificity,
    threshold_for_sensitivity,
    wilson,
)
from export.shortcuts import matched_auc


def test_auc_equals_the_reference() -> None:
    """The AUC, with ties, is scikit-learn's."""
    rng = np.random.default_rng(0)
    scores, labels = np.round(rng.random(200), 1), (rng.random(200) < 0.3).astype(float)
    assert auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores))
    assert np.isnan(auc(scores, np.zeros(200)))


def test_intervals_resample_patients() -> None:
    """Ten copies of each patient's image do not make the interval narrower."""
    rng = np.random.default_rng(1)
    labels = np.array([0.0, 1.0] * 20)
    scores = labels + rng.normal(0, 1.0, 40)
    patients = [str(i) for i in range(40)]
    once = bootstrap(auc, scores, labels, patients, 0)
    copied = bootstrap(auc, np.tile(scores, 10), np.tile(labels, 10), patients * 10, 0)
    assert copied.high - copied.low == pytest.approx(once.high - once.low, rel=0.2)
    assert once.low < once.value < once.high


def test_rates_stay_within_zero_and_one() -> None:
    """Wilson's interval of 40 of 40 ends at 1 and begins below it."""
    interval = wilson(1.0, 40)
    assert interval.high <= 1.0
    assert 0.9 < interval.low < 1.0


def test_a_rates_interval_resamples_patients() -> None:
    """Ten images of each patient do not make the interval of a rate narrower; ten times the patients do."""
    hits = np.array([True] * 30 + [False] * 10)
    patients = [str(number) for number in range(40)]
    once = rate_by_patient(hits, patients, 0)
    copied = rate_by_patient(np.tile(hits, 10), patients * 10, 0)
    more = rate_by_patient(np.tile(hits, 10), [str(number) for number in range(400)], 0)
    assert once.value == copied.value == more.value == 0.75
    assert copied.high - copied.low == pytest.approx(once.high - once.low, rel=0.1)
    assert more.high - more.low < 0.5 * (once.high - once.low)
    assert once.high - once.low == pytest.approx(wilson(0.75, 40).high - wilson(0.75, 40).low, rel=0.15)


def test_a_rate_without_a_miss_has_the_interval_of_its_patients() -> None:
    """All of 100 images of 20 patients: resampling sees no miss, and Wilson is asked about 20, not about 100."""
    patients = [str(number // 5) for number in range(100)]
    for hits in (np.ones(100, bool), np.zeros(100, bool)):
        assert rate_by_patient(hits, patients, 0) == wilson(float(hits[0]), 20)
    assert rate_by_patient(np.ones(100, bool), patients, 0).low < wilson(1.0, 100).low
    assert np.isnan(rate_by_patient(np.zeros(0, bool), [], 0).value)


def test_sensitivity_is_of_the_positive_and_specificity_of_the_others() -> None:
    """Three of four positive images are called, one of two others is; each rate knows its own patients only."""
    labels = np.array([1.0, 1.0, 1.0, 1.0, 0.0, 0.0])
    called = np.array([True, True, True, False, True, False])
    found, cleared = sensitivity_and_specificity(called, labels, list("aabbcd"), 0)
    assert (found.value, cleared.value) == (0.75, 0.5)
    assert (found.low, found.high) == (0.5, 1.0)
    assert (cleared.low, cleared.high) == (0.0, 1.0)


def test_calibration_error_of_a_perfect_score_is_zero() -> None:
    """A score of 0 or 1 that is always right has no calibration error; one of 0.5 that is always right has 0.5."""
    labels = np.array([0.0, 1.0, 1.0])
    assert expected_calibration_error(labels, labels) == 0.0
    assert expected_calibration_error(np.full(4, 0.5), np.ones(4)) == 0.5


def test_the_threshold_finds_the_wanted_share() -> None:
    """The threshold for a sensitivity of 0.75 finds three of four positives and lies between two scores."""
    scores, labels = np.array([0.9, 0.8, 0.6, 0.5, 0.2, 0.1]), np.array([1.0, 1.0, 0.0, 1.0, 1.0, 0.0])
    threshold = threshold_for_sensitivity(scores, labels, 0.75)
    assert 0.2 < threshold < 0.5


@pytest.mark.parametrize(
    ("edge", "lower"), [(0.99998, 0.99995), (4e-5, 2e-5), (4e-5, None), (np.nextafter(0.5, 1.0), 0.5), (0.8, 0.6)]
)
def test_a_threshold_lies_between_two_scores_however_near(edge: float, lower: float | None) -> None:
    """Rounded to four digits it may not miss the positive that it was chosen for, nor call the next lower score."""
    scores = np.array([edge] if lower is None else [edge, lower])
    threshold = threshold_for_sensitivity(scores, np.array([1.0, 0.0])[: len(scores)], 1.0)
    assert (lower or 0.0) < threshold <= edge


def test_one_patient_has_no_interval() -> None:
    """Every sample of one patient is the same: the ends are not known, and a rule on them is not met."""
    scores, labels = np.array([0.1, 0.2, 0.8, 0.9]), np.array([0.0, 0.0, 1.0, 1.0])
    alone = bootstrap(auc, scores, labels, ["a"] * 4, 0)
    assert alone.value == 1.0
    assert np.isnan([alone.low, alone.high]).all()
    assert not Rule("lower bound", alone.low, 0.5).passed
    assert bootstrap(auc, scores, labels, list("abab"), 0).low == 1.0


def test_dice_of_empty_masks_is_one() -> None:
    """Nothing found where nothing was drawn is right."""
    empty = np.zeros((4, 4), bool)
    assert dice(empty, empty) == 1.0
    assert dice(~empty, empty) == 0.0


def test_a_score_that_is_the_trivial_one_has_nothing_beyond_it() -> None:
    """Within strata of the trivial score, a model that adds real knowledge keeps its AUC; a copy of it loses."""
    rng = np.random.default_rng(2)
    labels = (rng.random(3000) < 0.5).astype(float)
    trivial = labels + rng.normal(0, 0.8, 3000)
    own = labels + rng.normal(0, 0.8, 3000)
    assert matched_auc(own, labels, trivial) > matched_auc(trivial, labels, trivial) + 0.05


def test_a_rule_that_could_not_be_measured_is_broken() -> None:
    """Not a number passes no gate."""
    assert not Rule("x", float("nan"), 0.0).passed
    assert not Rule("x", float("nan"), 0.0, at_most=True).passed
    assert verdict([Rule("x", 1.0, 0.5), Rule("y", 1.0, 0.5, at_most=True)]) == "fail"
    assert Rule("x", 0.7, 0.5).row() == ["x", "≥ 0.5", "0.7", "yes"]
