"""The shortcut audit: how far a classifier gets on numbers that should not matter, to hold a model's figure against."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from appliance.domain.manifest import InputSpec
from export.augment import stretched_intensities
from export.data import Sample
from export.metrics import Floats, auc, resampled

FEATURES = (
    "file size", "width", "height", "mean", "spread", "border brightness", "corner brightness",
    "dark share", "bright share", "high-frequency energy", "view", "age",
)  # fmt: skip
DARK, BRIGHT = 8, 247
UNKNOWN_AGE = -1.0
STRATA = 3
VIEWS = ("", "PA", "AP")


def trivial_features(root: Path, sample: Sample) -> list[float]:
    """The numbers named in `FEATURES`, of one image file as it was delivered and of what came with it."""
    path = root / sample.file
    with Image.open(path) as picture:
        grey = np.asarray(picture.convert("L"), np.float32)
    rows, columns = grey.shape
    edge, corner = max(1, min(rows, columns) // 32), max(1, min(rows, columns) // 12)
    border = np.concatenate(
        [grey[:edge].ravel(), grey[-edge:].ravel(), grey[:, :edge].ravel(), grey[:, -edge:].ravel()]
    )
    corners = [grey[:corner, :corner], grey[:corner, -corner:], grey[-corner:, :corner], grey[-corner:, -corner:]]
    detail = np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean()
    return [
        float(path.stat().st_size), float(columns), float(rows), float(grey.mean()), float(grey.std()),
        float(border.mean()), float(np.mean([c.mean() for c in corners])),
        float((grey < DARK).mean()), float((grey > BRIGHT).mean()), float(detail),
        float(VIEWS.index(sample.view) if sample.view in VIEWS else len(VIEWS)),
        UNKNOWN_AGE if sample.age is None else sample.age,
    ]  # fmt: skip


def trivial_scores(train: Floats, labels: Floats, test: Floats, test_labels: Floats, seed: int) -> Floats:
    """Scores [n] of the better of two trivial classifiers on the test rows: the audit takes the shortcut's side."""
    models = (
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
        RandomForestClassifier(300, min_samples_leaf=3, random_state=seed),
    )
    scores = [model.fit(train, labels).predict_proba(test)[:, 1] for model in models]
    best: Floats = max(scores, key=lambda each: auc(each, test_labels))
    return best


def matched_auc(scores: Floats, labels: Floats, trivial: Floats, strata: int = STRATA) -> float:
    """The mean AUC within strata of the trivial score, weighted by the number of pairs that each compares."""
    return auc_within(scores, labels, thirds(trivial, strata))


def thirds(trivial: Floats, strata: int = STRATA) -> NDArray[np.int64]:
    """The stratum [n] of each image, from 0: as many images in each, by rising trivial score."""
    order: NDArray[np.int64] = np.argsort(np.argsort(trivial, kind="stable"), kind="stable") * strata // len(trivial)
    return order


def auc_within(scores: Floats, labels: Floats, strata: NDArray[np.int64]) -> float:
    """The mean AUC within strata [n], weighted by the number of pairs that each compares; NaN where there is none."""
    total, weight = 0.0, 0
    for number in np.unique(strata):
        inside = strata == number
        pairs = int(labels[inside].sum() * (1 - labels[inside]).sum())
        if pairs:
            total += pairs * auc(scores[inside], labels[inside])
            weight += pairs
    return total / weight if weight else float("nan")


def share_ahead(scores: Floats, labels: Floats, trivial: Floats, patients: Sequence[str], seed: int) -> float:
    """Share of bootstrap samples of patients in which the scores are ahead of the trivial ones within strata."""
    wins = [
        matched_auc(scores[rows], labels[rows], trivial[rows]) > matched_auc(trivial[rows], labels[rows], trivial[rows])
        for rows in resampled(patients, seed)
    ]
    return float(np.mean(wins))


Disturbance = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]


def disturbances(spec: InputSpec, seed: int) -> dict[str, Disturbance]:
    """Changes that a good model shrugs off: each takes and gives uint8 [rows, columns]."""
    rng = np.random.default_rng(seed)

    def cropped(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        margin = image.shape[0] // 16
        inner = Image.fromarray(np.ascontiguousarray(image[margin:-margin, margin:-margin]))
        return np.asarray(inner.resize(image.shape[::-1], Image.Resampling.BILINEAR))

    def brightened(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.rint(255 * (image / 255.0) ** 0.7).astype(np.uint8)

    def noisy(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.clip(image + rng.normal(0, 8, image.shape), 0, 255).astype(np.uint8)

    def recompressed(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        stream = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(image)).save(stream, "JPEG", quality=50)
        return np.asarray(Image.open(stream))

    changes: dict[str, Disturbance] = {
        "cropped by 6 % a side": cropped, "gamma 0.7": brightened, "noise of 8 grey levels": noisy,
        "JPEG quality 50": recompressed,
    }  # fmt: skip

    def restretched(change: Disturbance) -> Disturbance:
        return lambda image: stretched_intensities(change(image), spec)

    return {name: restretched(change) for name, change in changes.items()}


def feature_rows(root: Path, samples: Sequence[Sample]) -> Floats:
    """`trivial_features` of many samples: float [n, features]."""
    return np.array([trivial_features(root, sample) for sample in samples], np.float64)
