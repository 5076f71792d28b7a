"""What distillation is worth is said with the uncertainty of patients and of trainings."""

import numpy as np
import pytest

from export.bench_training import compared
from export.operating import Labelled

LABELS = np.tile([0.0, 1.0], 50)


def training(hits: float) -> Labelled:
    """A training whose scores rank this share of the patients as their labels do, the others not at all."""
    told = np.arange(len(LABELS)) < hits * len(LABELS)
    count = len(LABELS)
    unknown = ("",) * count
    patients = tuple(str(number) for number in range(count))
    scores = np.where(told, LABELS, 0.5)
    return Labelled(scores, LABELS, patients, unknown, (None,) * count, unknown, tuple(range(count)))


def test_the_interval_of_the_gain_has_the_trainings_in_it() -> None:
    """Three seeds that disagree widen the interval far beyond three seeds that agree on the same mean gain."""
    direct = [training(0.5)] * 3
    agreeing = compared({"distilled": [training(0.6)] * 3, "direct": direct}, seed=1)
    spread = [training(share) for share in (0.3, 0.6, 0.9)]
    disagreeing = compared({"distilled": spread, "direct": direct}, seed=1)
    assert agreeing["gain"] == pytest.approx(disagreeing["gain"], abs=0.03)
    assert agreeing["gain_95"][0] > 0 > disagreeing["gain_95"][0]
    assert np.ptp(disagreeing["gain_95"]) > 2 * np.ptp(agreeing["gain_95"])
