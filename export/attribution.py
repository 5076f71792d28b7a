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
EMBEDDING = "embedding"
CONTROLS = 20
"""Untrained heads whose figure is held against the trained one's."""
STREAM = 4
"""Tells their random numbers from those of other steps with the same seed."""
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
        controls: Density of each untrained head on the same encoder.
    """

    influence: Map
    lungs: Map
    inside: float
    area: float
    images: int
    controls: tuple[float, ...]

    @property
    def density(self) -> float:
        """Influence of a piece of lung over that of an average piece; 1 means that place says nothing."""
        return _density(self.inside, self.area)


def attribution(runner: Runner, task: str, images: Sequence[Grey], seed: int) -> Attribution:
    """Blank each piece of each image with the image's median and see how far a triage score moves.

    The encoder alone may look at the lungs more than at other places, whatever its head learned: the same is measured
    of untrained heads, linear ones with normally distributed weights on the same embedding.

    Args:
        runner: Holds the heads of the task and of the lungs; the shipped graphs themselves are asked.
        task: A task with a score.
        images: uint8 [rows, columns] each.
        seed: Draws the untrained heads.
    """
    influences, lungs = [], []
    untrained: Map | None = None
    for image in images:
        features = runner.features(image[None, None])
        said = runner.heads(features)
        lungs.append(_pieces((said[LUNGS]["mask"][0, 0] >= MASK_THRESHOLD).astype(np.float64)))
        logits, embeddings = [_logits(said[task]["score"])], [features[EMBEDDING]]
        for batch in batched(_blanked(image), PIECES):
            features = runner.features(np.stack(batch)[:, None])
            logits.append(_logits(runner.heads(features)[task]["score"]))
            embeddings.append(features[EMBEDDING])
        embedding = np.concatenate(embeddings).astype(np.float64)
        if untrained is None:
            untrained = np.random.default_rng((seed, STREAM)).standard_normal((embedding.shape[1], CONTROLS))
        influences.append(_influence(np.column_stack([np.concatenate(logits), embedding @ untrained])))
    influence, area = np.array(influences), np.array(lungs)
    inside = (influence * area[:, None]).sum(axis=(2, 3)).mean(axis=0)
    share = float(area.mean())
    return Attribution(
        influence[:, 0].mean(axis=0),
        area.mean(axis=0),
        float(inside[0]),
        share,
        len(images),
        tuple(_density(float(each), share) for each in inside[1:]),
    )


def _influence(logits: Map) -> Map:
    """Of logits [1 + pieces, heads], the whole picture's first: each piece's share of all change, by head."""
    change = np.abs(logits[1:] - logits[0]).T
    shares: Map = change / np.maximum(change.sum(axis=1, keepdims=True), CLEAREST)
    return shares.reshape(-1, PIECES, PIECES)


def _density(inside: float, area: float) -> float:
    return inside / area if area else float("nan")


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
