"""Where a decision comes from: the score's change when a piece of the picture is blanked, held against the lungs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from export.metrics import Floats, Interval, resampled
from export.predictions import MASK_THRESHOLD
from export.recipe import PIECES
from export.runner import Grey, Runner, batched
from export.student import MultiTaskNet
from export.tasks import ADULT, LUNGS

CLEAREST = 1e-6
EMBEDDING = "embedding"
CONTROLS = 100
"""Untrained heads whose figure is held against the trained one's."""
STREAM = 4
"""Tells their random numbers from those of other steps with the same seed."""
Map = NDArray[np.float64]


class Looked(NamedTuple):
    """What a model says of images: logits of one task [N], embeddings [N, D], what is lung [N, side, side]."""

    logits: Floats
    embedding: Floats
    lungs: NDArray[np.bool_]


Ask = Callable[[Grey], Looked]
"""Asks a model about images, uint8 [N, 1, rows, columns]."""


@dataclass(frozen=True, eq=False, slots=True)
class Attribution:
    """What the asked images tell about a task.

    Attributes:
        influence: Absolute change of the logit by piece, as shares of the whole, [PIECES, PIECES]; mean over images.
        lungs: Share of each piece that the model itself outlines as lung, [PIECES, PIECES]; mean over images.
        insides: Share of the influence that lies inside the lungs [images, 1 + CONTROLS]: of the task's head, and of
            each untrained head on the same encoder.
        areas: Share of each picture that the lungs take, [images].
        patients: Whose each image is.
        seed: Drew the untrained heads.
    """

    influence: Map
    lungs: Map
    insides: Map
    areas: Floats
    patients: tuple[str, ...]
    seed: int

    @property
    def inside(self) -> float:
        """Share of the influence that lies inside the lungs."""
        return float(self.insides[:, 0].mean())

    @property
    def area(self) -> float:
        """Share of the picture that the lungs take."""
        return float(self.areas.mean())

    @property
    def density(self) -> float:
        """Influence of a piece of lung over that of an average piece; 1 means that place says nothing."""
        return float(self._densities(slice(None))[0])

    @property
    def controls(self) -> tuple[float, ...]:
        """Density of each untrained head."""
        return tuple(self._densities(slice(None))[1:].tolist())

    def beyond(self) -> Interval:
        """Density beyond the untrained heads' mean, with a 95 % interval over patients and over untrained heads."""
        rng = np.random.default_rng((self.seed, STREAM, 1))
        drawn = []
        for rows in resampled(self.patients, self.seed):
            densities = self._densities(rows)
            drawn.append(densities[0] - rng.choice(densities[1:], CONTROLS).mean())
        low, high = np.percentile(drawn, (2.5, 97.5))
        return Interval(self.density - float(np.mean(self.controls)), float(low), float(high))

    def _densities(self, rows: "NDArray[np.int64] | slice") -> Floats:
        densities: Floats = self.insides[rows].mean(axis=0) / (self.areas[rows].mean() or np.nan)
        return densities


def attribution(ask: Ask, images: Sequence[Grey], patients: Sequence[str], seed: int) -> Attribution:
    """Blank each piece of each image with the image's median and see how far a triage score moves.

    The encoder alone may look at the lungs more than at other places, whatever its head learned: the same is measured
    of untrained heads, linear ones with normally distributed weights on the same embedding.

    Args:
        ask: Asks the model.
        images: uint8 [rows, columns] each.
        patients: Whose each is.
        seed: Draws the untrained heads.
    """
    influences, lungs = [], []
    untrained: Map | None = None
    for image in images:
        parts = [ask(np.stack(batch)[:, None]) for batch in batched([image, *_blanked(image)], PIECES)]
        lungs.append(_pieces(parts[0].lungs[0].astype(np.float64)))
        embedding = np.concatenate([each.embedding for each in parts])
        if untrained is None:
            untrained = np.random.default_rng((seed, STREAM)).standard_normal((embedding.shape[1], CONTROLS))
        logits = np.concatenate([each.logits for each in parts])
        influences.append(_influence(np.column_stack([logits, embedding @ untrained])))
    influence, area = np.array(influences), np.array(lungs)
    return Attribution(
        influence[:, 0].mean(axis=0),
        area.mean(axis=0),
        (influence * area[:, None]).sum(axis=(2, 3)),
        area.mean(axis=(1, 2)),
        tuple(patients),
        seed,
    )


def of_runner(runner: Runner, task: str) -> Ask:
    """Ask graphs: the shipped ones themselves. The runner holds the heads of the task and of the lungs."""

    def ask(images: Grey) -> Looked:
        features = runner.features(images)
        said = runner.heads(features)
        lungs = said[LUNGS]["mask"][:, 0] >= MASK_THRESHOLD
        return Looked(_logits(said[task]["score"]), features[EMBEDDING].astype(np.float64), lungs)

    return ask


def of_net(net: MultiTaskNet, task: str, side: int) -> Ask:
    """Ask a net in torch, where it is; its lungs in `side` pixels squared, as the exported head gives them."""
    device = next(net.parameters()).device

    def ask(images: Grey) -> Looked:
        with torch.no_grad():
            said = net(torch.from_numpy(images).to(device))
        lungs = torch.nn.functional.interpolate(said.lungs, (side, side), mode="bilinear", align_corners=False)
        logits = said.adult if task == ADULT else said.paediatric
        return Looked(
            logits[:, 0].double().cpu().numpy(),
            said.embedding.double().cpu().numpy(),
            (torch.sigmoid(lungs[:, 0]) >= MASK_THRESHOLD).cpu().numpy(),
        )

    return ask


def _influence(logits: Map) -> Map:
    """Of logits [1 + pieces, heads], the whole picture's first: each piece's share of all change, by head."""
    change = np.abs(logits[1:] - logits[0]).T
    shares: Map = change / np.maximum(change.sum(axis=1, keepdims=True), CLEAREST)
    return shares.reshape(-1, PIECES, PIECES)


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
