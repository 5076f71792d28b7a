"""Figures with their uncertainty: AUC, sensitivity, calibration error, Dice, with intervals by patient."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Floats = NDArray[np.float64]
RESAMPLES = 1000
CALIBRATION_BINS = 10
NORMAL_95 = 1.959964


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with the 2.5th and 97.5th percentile of its bootstrap distribution."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def auc(scores: Floats, labels: Floats) -> float:
    """Area under the ROC curve, ties counted half; NaN where a class is missing."""
    positives = labels > 0
    count, others = int(positives.sum()), int((~positives).sum())
    if not count or not others:
        return float("nan")
    ranks = rankdata(scores)
    return float((ranks[positives].sum() - count * (count + 1) / 2) / (count * others))


def bootstrap(
    statistic: Callable[[Floats, Floats], float], scores: Floats, labels: Floats, patients: Sequence[str], seed: int
) -> Interval:
    """A statistic of scores and labels [n] with its 95 % interval, resampling patients, not images."""
    names = sorted(set(patients))
    rows = {name: [] for name in names}  # type: dict[str, list[int]]
    for index, name in enumerate(patients):
        rows[name].append(index)
    groups = [np.array(rows[name]) for name in names]
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(RESAMPLES):
        chosen = np.concatenate([groups[i] for i in rng.integers(0, len(groups), size=len(groups))])
        values.append(statistic(scores[chosen], labels[chosen]))
    low, high = np.nanpercentile(values, (2.5, 97.5))
    return Interval(statistic(scores, labels), float(low), float(high))


def rate(hits: int, total: int) -> Interval:
    """A proportion with Wilson's 95 % interval."""
    if not total:
        return Interval(float("nan"), float("nan"), float("nan"))
    share = hits / total
    spread = NORMAL_95**2 / total
    centre = (share + spread / 2) / (1 + spread)
    half = NORMAL_95 * np.sqrt(share * (1 - share) / total + spread / (4 * total)) / (1 + spread)
    return Interval(share, max(0.0, float(centre - half)), min(1.0, float(centre + half)))


def expected_calibration_error(scores: Floats, labels: Floats) -> float:
    """Mean gap between score and frequency over ten equally wide bins, weighted by their size."""
    bins = np.minimum((scores * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    total = 0.0
    for number in range(CALIBRATION_BINS):
        inside = bins == number
        if inside.any():
            total += float(inside.mean()) * abs(float(scores[inside].mean() - labels[inside].mean()))
    return total


def threshold_for_sensitivity(scores: Floats, labels: Floats, sensitivity: float) -> float:
    """The highest threshold that finds this share of the positives, half-way to the next lower score."""
    positives = np.sort(scores[labels > 0])[::-1]
    needed = int(np.ceil(sensitivity * len(positives)))
    edge = positives[needed - 1]
    below = scores[scores < edge]
    lower = float(below.max()) if len(below) else 0.0
    return round(float((edge + lower) / 2), 4)


def dice(mask: NDArray[np.bool_], target: NDArray[np.bool_]) -> float:
    """Twice the overlap over the sum of both areas; 1 where both are empty."""
    total = int(mask.sum()) + int(target.sum())
    return 2.0 * int((mask & target).sum()) / total if total else 1.0
