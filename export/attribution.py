"""Where a decision comes from: the score's change when a piece of the picture is blanked, held against the lungs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from export.predictions import MASK_THRESHOLD
from export.runner import Grey, Runner, batched
from export.tasks import LUNGS

PIECES = 8
"""Rows and columns of pieces that are blanked one at a time."""
CLEAREST = 1e-6
Map = NDArray[np.float64]


@dataclass(frozen=True, eq=False, slots=True)
class Attribution:
    """Means over the asked images.

    Attributes:
        influence: Absolute change of the logit by piece, as shares of the whole, [PIECES, PIECES].
        lungs: Share of each piece that the model itself outlines as lung, [PIECES, PIECES].
        inside: Share of the influence that lies inside the lungs.
        area: Share of the picture that the lungs take.
        images: How many were asked.
    """

    influence: Map
    lungs: Map
    inside: float
    area: float
    images: int

    @property
    def density(self) -> float:
        """Influence of a piece of lung over that of an average piece; 1 means that place says nothing."""
        return self.inside / self.area if self.area else float("nan")


def attribution(runner: Runner, task: str, images: Sequence[Grey]) -> Attribution:
    """Blank each piece of each image with the image's median and see how far a triage score moves.

    Args:
        runner: Holds the heads of the task and of the lungs; the shipped graphs themselves are asked.
        task: A task with a score.
        images: uint8 [rows, columns] each.
    """
    influences, lungs = [], []
    for image in images:
        said = runner.run(image[None, None])
        lungs.append(_pieces((said[LUNGS]["mask"][0, 0] >= MASK_THRESHOLD).astype(np.float64)))
        plain = _logits(said[task]["score"])
        scores = [runner.run(np.stack(batch)[:, None])[task]["score"] for batch in batched(_blanked(image), PIECES)]
        change = np.abs(_logits(np.concatenate(scores)) - plain).reshape(PIECES, PIECES)
        influences.append(change / max(float(change.sum()), CLEAREST))
    influence, area = np.array(influences), np.array(lungs)
    inside = float((influence * area).sum(axis=(1, 2)).mean())
    return Attribution(influence.mean(axis=0), area.mean(axis=0), inside, float(area.mean()), len(images))


def _blanked(image: Grey) -> list[Grey]:
    rows, columns = (length // PIECES for length in image.shape)
    level = np.uint8(np.median(image))
    result = []
    for number in range(PIECES * PIECES):
        changed = image.copy()
        row, column = number // PIECES * rows, number % PIECES * columns
        changed[row : row + rows, column : column + columns] = level
        result.append(changed)
    return result


def _pieces(mask: Map) -> Map:
    side = mask.shape[0] // PIECES
    result: Map = mask.reshape(PIECES, side, PIECES, side).mean(axis=(1, 3))
    return result


def _logits(scores: NDArray[np.float32]) -> Map:
    values = np.clip(scores[:, 0].astype(np.float64), CLEAREST, 1.0 - CLEAREST)
    result: Map = np.log(values / (1.0 - values))
    return result
