"""What a model says of the tuning and validation images: scores, guard outputs and Dice, one row each."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from export.ensemble import Ensemble
from export.images import ImageSet
from export.metrics import Floats, dice, surface_distances
from export.runner import BATCH, Grey, Outputs, batched
from export.student import MultiTaskNet
from export.tasks import ADULT, GUARD, LUNGS, PAEDIATRIC

MASK_THRESHOLD = 0.5
UNKNOWN = (float("nan"), float("nan"), float("nan"))
Say = Callable[[Iterable[Grey]], Iterable[Outputs]]
"""Images, uint8 [rows, columns] each, to the outputs of one batch after the other."""


@dataclass(frozen=True, eq=False, slots=True)
class Predictions:
    """One row an image of `indices`.

    Attributes:
        indices: Rows of the image set.
        adult, paediatric: Scores [n].
        guard_score, guard_distance: [n]; NaN for a model without a guard.
        dice: [n]; NaN where no mask was drawn.
        surface_mean, surface_95: Distances of the outlines [n], in percent of the height; NaN as for `dice`.
        mask_sum: Sum of the mask's probabilities [n]; not finite where one of them is not.
    """

    indices: NDArray[np.int64]
    adult: Floats
    paediatric: Floats
    guard_score: Floats
    guard_distance: Floats
    dice: Floats
    surface_mean: Floats
    surface_95: Floats
    mask_sum: Floats


def predict(say: Say, data: ImageSet, indices: Sequence[int]) -> Predictions:
    """Run a model over the images of a set."""
    scores: dict[str, list[Floats]] = {ADULT: [], PAEDIATRIC: [], "score": [], "distance": []}
    overlaps: list[tuple[float, float, float]] = []
    sums: list[float] = []
    for outputs in say(data.images[index] for index in indices):
        for task in (ADULT, PAEDIATRIC):
            scores[task].append(outputs[task]["score"][:, 0].astype(np.float64))
        for name in ("score", "distance"):
            values = outputs[GUARD][name][:, 0] if GUARD in outputs else np.full(len(outputs[ADULT]["score"]), np.nan)
            scores[name].append(values.astype(np.float64))
        for mask in outputs[LUNGS]["mask"]:
            row = data.mask_of[indices[len(overlaps)]]
            drawn = data.masks[row] > 0 if row >= 0 else None
            sums.append(float(mask.sum(dtype=np.float64)))
            overlaps.append(UNKNOWN if drawn is None else _overlap(mask[0] >= MASK_THRESHOLD, drawn))
    overlap, surface_mean, surface_95 = np.array(overlaps, np.float64).T
    return Predictions(
        np.array(indices, np.int64),
        np.concatenate(scores[ADULT]),
        np.concatenate(scores[PAEDIATRIC]),
        np.concatenate(scores["score"]),
        np.concatenate(scores["distance"]),
        overlap,
        surface_mean,
        surface_95,
        np.array(sums),
    )


def _overlap(mask: NDArray[np.bool_], drawn: NDArray[np.bool_]) -> tuple[float, float, float]:
    return (dice(mask, drawn), *surface_distances(mask, drawn))


def guard_outputs(say: Say, images: Iterable[Grey]) -> tuple[Floats, Floats]:
    """Guard scores and distances [n] of any pictures."""
    parts = [outputs[GUARD] for outputs in say(images)]
    return (
        np.concatenate([part["score"][:, 0] for part in parts]).astype(np.float64),
        np.concatenate([part["distance"][:, 0] for part in parts]).astype(np.float64),
    )


def teacher_says(net: MultiTaskNet | Ensemble, mask_side: int) -> Say:
    """A net in torch as something that can be asked like a runner, where the net is; it has no guard."""
    device = next(net.parameters()).device

    def say(images: Iterable[Grey]) -> Iterable[Outputs]:
        for batch in batched(images, BATCH):
            with torch.no_grad():
                outputs = net(torch.from_numpy(np.stack(batch)[:, None]).to(device))
                size = (mask_side, mask_side)
                mask = torch.nn.functional.interpolate(outputs.lungs, size=size, mode="bilinear", align_corners=False)
            yield {
                ADULT: {"score": torch.sigmoid(outputs.adult).cpu().numpy()},
                PAEDIATRIC: {"score": torch.sigmoid(outputs.paediatric).cpu().numpy()},
                LUNGS: {"mask": torch.sigmoid(mask).cpu().numpy()},
            }

    return say
