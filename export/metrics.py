"""Figures with their uncertainty: AUC, sensitivity, calibration error, Dice, with intervals by patient."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt
from scipy.stats import rankdata

Floats = NDArray[np.float64]
RESAMPLES = 1000
CALIBRATION_BINS = 10
FEWEST_PATIENTS = 2
"""Of fewer no bootstrap sample differs."""
ALONE = "(one patient, no interval)"
NORMAL_95 = 1.959964
RATES_BY_PATIENT = (
    f"rates by {RESAMPLES:,} bootstrap samples of patients, and by Wilson over the number of patients where every "
    "sample says the same, as it does when all images are right"
)
"""How `rate_by_patient` makes its interval, for a table's note."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with its 95 % interval, which is NaN where there is none."""

    value: float
    low: float
    high: float

    @property
    def alone(self) -> bool:
        """Whether the figure is of one patient, in whose place nobody can be drawn."""
        return bool(np.isfinite(self.value) and not np.isfinite(self.low))

    def __str__(self) -> str:
        return format(self, ".3f")

    def __format__(self, spec: str) -> str:
        """All three numbers as the format of one says; three digits without one."""
        spec = spec or ".3f"
        if self.alone:
            return f"{self.value:{spec}} {ALONE}"
        return f"{self.value:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"


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
    """A statistic of scores and labels [n] with its 95 % interval, resampling patients, not images.

    Of one patient there is only one sample, which says nothing about others: the interval is NaN, and passes no gate.
    """
    if len(set(patients)) < FEWEST_PATIENTS:
        return Interval(statistic(scores, labels), float("nan"), float("nan"))
    values = [statistic(scores[chosen], labels[chosen]) for chosen in resampled(patients, seed)]
    low, high = np.nanpercentile(values, (2.5, 97.5))
    return Interval(statistic(scores, labels), float(low), float(high))


def share_of_auc(scores: Floats, others: Floats, labels: Floats, patients: Sequence[str], seed: int) -> Interval:
    """The AUC of scores [n] divided by that of other scores of the same images, with its 95 % interval.

    Paired: each sample of patients is drawn for both.
    """

    def share(rows: NDArray[np.int64]) -> float:
        return ratio(auc(scores[rows], labels[rows]), auc(others[rows], labels[rows]))

    whole = share(np.arange(len(labels)))
    if len(set(patients)) < FEWEST_PATIENTS:
        return Interval(whole, float("nan"), float("nan"))
    values = [share(chosen) for chosen in resampled(patients, seed)]
    low, high = np.nanpercentile(values, (2.5, 97.5))
    return Interval(whole, float(low), float(high))


def ratio(value: float, reference: float) -> float:
    """A figure divided by another; NaN where that is 0."""
    return value / reference if reference else float("nan")


def mean_by_patient(values: Floats, patients: Sequence[str], seed: int) -> Interval:
    """The mean of those values [n] that are finite with its 95 % interval, resampling patients; NaN without any."""
    known = np.flatnonzero(np.isfinite(values))
    if not len(known):
        return Interval(float("nan"), float("nan"), float("nan"))
    finite = values[known]
    return bootstrap(
        lambda each, _: float(each.mean()), finite, finite, [patients[row] for row in known.tolist()], seed
    )


def resampled(patients: Sequence[str], seed: int) -> Iterator[NDArray[np.int64]]:
    """`RESAMPLES` bootstrap samples of patients, each as the rows of all their images."""
    rows: dict[str, list[int]] = {name: [] for name in sorted(set(patients))}
    for index, name in enumerate(patients):
        rows[name].append(index)
    groups = [np.array(each) for each in rows.values()]
    rng = np.random.default_rng(seed)
    for _ in range(RESAMPLES):
        yield np.concatenate([groups[i] for i in rng.integers(0, len(groups), size=len(groups))])


def rate_by_patient(hits: NDArray[np.bool_], patients: Sequence[str], seed: int) -> Interval:
    """The share of hits among images [n] with its 95 % interval, resampling patients, not images.

    Where no resample differs, as when every image is a hit, resampling tells nothing about what it did not see: then
    Wilson's interval is given, as if each patient had one image. NaN without images.
    """
    if not len(hits):
        return Interval(float("nan"), float("nan"), float("nan"))
    share = float(hits.mean())
    shares = [float(hits[rows].mean()) for rows in resampled(patients, seed)]
    if min(shares) == max(shares):
        return wilson(share, len(set(patients)))
    low, high = np.percentile(shares, (2.5, 97.5))
    return Interval(share, float(low), float(high))


def sensitivity_and_specificity(
    called: NDArray[np.bool_], labels: Floats, patients: Sequence[str], seed: int
) -> tuple[Interval, Interval]:
    """Both rates of calls on images with labels [n], with their 95 % intervals by patient."""
    ill = labels > 0
    rows = {value: np.flatnonzero(ill == value).tolist() for value in (True, False)}
    found, cleared = (
        rate_by_patient(called[each] == value, [patients[row] for row in each], seed) for value, each in rows.items()
    )
    return found, cleared


def wilson(share: float, total: int) -> Interval:
    """A share of `total` independent trials with Wilson's 95 % interval."""
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
    """The highest threshold that finds this share of the positives, half-way to the next lower score.

    It has four digits where such a one calls the same images.
    """
    positives = np.sort(scores[labels > 0])[::-1]
    needed = int(np.ceil(sensitivity * len(positives)))
    edge = positives[needed - 1]
    below = scores[scores < edge]
    lower = float(below.max()) if len(below) else 0.0
    middle = (float(edge) + lower) / 2
    return next((value for value in (round(middle, 4), middle) if lower < value <= edge), float(edge))


def dice(mask: NDArray[np.bool_], target: NDArray[np.bool_]) -> float:
    """Twice the overlap over the sum of both areas; 1 where both are empty."""
    total = int(mask.sum()) + int(target.sum())
    return 2.0 * int((mask & target).sum()) / total if total else 1.0


def surface_distances(mask: NDArray[np.bool_], target: NDArray[np.bool_]) -> tuple[float, float]:
    """Symmetric distances between two outlines: their mean and 95th percentile, in percent of the picture's height.

    The picture is stretched to a square, so that no figure in millimetres follows. NaN where either mask is empty.
    """
    if not mask.any() or not target.any():
        return float("nan"), float("nan")
    first, second = (area & ~binary_erosion(area) for area in (mask, target))
    both = np.concatenate([distance_transform_edt(~second)[first], distance_transform_edt(~first)[second]])
    scale = 100.0 / mask.shape[0]
    return float(both.mean() * scale), float(np.percentile(both, 95) * scale)


def roc_points(scores: Floats, labels: Floats) -> list[tuple[float, float]]:
    """(1 - specificity, sensitivity) at every threshold, from (0, 0) to (1, 1)."""
    positives, negatives = np.sort(scores[labels > 0]), np.sort(scores[labels <= 0])
    thresholds = np.unique(scores)[::-1]
    called = [(len(each) - np.searchsorted(each, thresholds)) / len(each) for each in (negatives, positives)]
    points = [(0.0, 0.0), *zip(*called, strict=True)]
    return [(round(float(x), 4), round(float(y), 4)) for x, y in points]


def calibration_points(scores: Floats, labels: Floats) -> list[tuple[float, float, int]]:
    """(mean score, share of positives, images) of each bin of the calibration error that holds an image."""
    bins = np.minimum((scores * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    chosen = [bins == number for number in range(CALIBRATION_BINS)]
    return [
        (round(float(scores[each].mean()), 4), round(float(labels[each].mean()), 4), int(each.sum()))
        for each in chosen
        if each.any()
    ]
