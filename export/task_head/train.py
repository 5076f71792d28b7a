"""Trains a head on features of the frozen base and measures it at each of the base's precisions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from appliance.domain.errors import InputError
from appliance.domain.manifest import OperatingPoint
from export.learning import mask_loss, schedule
from export.metrics import (
    Interval,
    auc,
    bootstrap,
    dice,
    mean_by_patient,
    sensitivity_and_specificity,
    threshold_for_sensitivity,
)
from export.progress import Progress
from export.task_head.features import EMBEDDING, Half, Pictures
from export.task_head.heads import EachAlone, ImageHead, MaskHead, VolumeHead, embedding_head
from export.task_head.recipe import SEGMENTATION, TaskRecipe

Head = ImageHead | VolumeHead | MaskHead
MASK_THRESHOLD = 0.5
NOT_HERE = "Not validated at any site."


@dataclass(frozen=True, slots=True)
class Measured:
    """What a task showed at one precision on the validation patients.

    Attributes:
        figure: `auc` or `dice`, with its value and 95 % interval (percentiles of a bootstrap by patient), of the head
            in torch: `write_graphs` holds the graph that the appliance serves against it. Dice is of the cases with
            something drawn, NaN without any: a head that outlines nothing is always right about the others.
        cases, patients: How many were measured.
        fewest: Patients of the rarer class; of masks, those with something drawn.
        volumes: For a `mil` head the AUC of whole volumes, which the appliance does not serve, and how many there were.
        empty: Of masks, the share of cases with nothing drawn that the head leaves empty, and how many there are.
    """

    figure: str
    value: float
    low: float
    high: float
    cases: int
    patients: int
    fewest: int
    point: OperatingPoint
    volumes: tuple[Interval, int] | None = None
    empty: tuple[float, int] | None = None


def trained_head(
    recipe: TaskRecipe, pictures: Pictures, views: Sequence[Mapping[str, Half]], progress: Progress
) -> Head:
    """Train a head on the training patients; the same seed gives the same head.

    Args:
        recipe: Its training section decides everything.
        pictures: Cases, labels and masks.
        views: The base's outputs for every picture, one mapping for each view.
        progress: Told.

    Raises:
        InputError: A loss is not finite.
    """
    section = recipe.training
    torch.manual_seed(section.seed)
    train = pictures.select("train")
    head: Head
    if recipe.task.head == SEGMENTATION:
        head = MaskHead([maps.shape[1] for maps in views[0].values()], section.mask_side)
    else:
        head = embedding_head(recipe.task.head, views[0][EMBEDDING].shape[1], section.hidden)
        rows = [row for case in train for row in pictures.rows[case]]
        head.standardised.fit(torch.from_numpy(views[0][EMBEDDING][rows]).float())
    optimiser = torch.optim.AdamW(head.parameters(), lr=section.rate, weight_decay=section.weight_decay)
    classes = [[case for case in train if pictures.cases[case].label == label] for label in (0, 1)]
    with progress.bar("head", section.steps) as advance:
        for step in range(section.steps):
            rng = np.random.default_rng((section.seed, step))
            for group in optimiser.param_groups:
                group["lr"] = section.rate * schedule(step, section.steps)
            head.train()
            view = views[int(rng.integers(0, len(views)))]
            if recipe.task.head == SEGMENTATION:
                chosen = [int(case) for case in rng.choice(train, section.batch)]
                loss = _mask_loss(head, pictures, view, chosen)
            else:
                chosen = [int(rng.choice(classes[number % 2])) for number in range(section.batch)]
                loss = _label_loss(head, pictures, view, chosen)
            if not torch.isfinite(loss):
                raise InputError(f"The loss of step {step} is not finite.", "Lower training.rate in the task's recipe.")
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimiser.step()
            advance(1)
    head.eval()
    return head


def _label_loss(head: Head, pictures: Pictures, view: Mapping[str, Half], cases: Sequence[int]) -> Tensor:
    logits = torch.stack([_logit(head, view, pictures.rows[case]) for case in cases])
    labels = torch.tensor([float(pictures.cases[case].label) for case in cases])
    return functional.binary_cross_entropy_with_logits(logits, labels)


def _logit(head: nn.Module, view: Mapping[str, Half], rows: Sequence[int]) -> Tensor:
    """The logit of one case: of its image, or of all the images of its volume."""
    logits: Tensor = head(torch.from_numpy(view[EMBEDDING][list(rows)]).float())
    return logits[0, 0]


def _mask_loss(head: Head, pictures: Pictures, view: Mapping[str, Half], cases: Sequence[int]) -> Tensor:
    maps = _maps(view, [pictures.rows[case][0] for case in cases])
    return mask_loss(head(*maps), torch.from_numpy(pictures.masks[list(cases)][:, None]).float())


def _maps(view: Mapping[str, Half], rows: Sequence[int]) -> list[Tensor]:
    return [torch.from_numpy(values[list(rows)]).float() for values in view.values()]


def measured(recipe: TaskRecipe, head: Head, pictures: Pictures, said: Mapping[str, Half], precision: str) -> Measured:
    """Choose the threshold on the tuning patients and report the validation patients, at one precision."""
    with torch.no_grad():
        if isinstance(head, MaskHead):
            return _measured_masks(head, pictures, said, precision)
        return _measured_scores(recipe, head, pictures, said, precision)


def _measured_scores(
    recipe: TaskRecipe, head: Head, pictures: Pictures, said: Mapping[str, Half], precision: str
) -> Measured:
    what, volumes = "cases", None
    served: nn.Module = head
    if isinstance(head, VolumeHead):
        # Gate and threshold are for what the appliance serves: each image alone, with its volume's label.
        volumes = _area(recipe, head, pictures, said), len(pictures.select("val"))
        what, served, pictures = "images, each judged alone", EachAlone(head), _one_by_one(pictures)
    tune, val = pictures.select("tune"), pictures.select("val")
    patients = [pictures.cases[case].patient for case in val]
    found = _area(recipe, served, pictures, said)
    threshold = threshold_for_sensitivity(*_scores(served, pictures, said, tune), recipe.gate.sensitivity)
    scores, labels = _scores(served, pictures, said, val)
    sensitivity, specificity = sensitivity_and_specificity(scores >= threshold, labels, patients, recipe.training.seed)
    meaning = (
        f"On {len(val)} validation {what}, of {len(set(patients))} patients: sensitivity {sensitivity}, specificity "
        f"{specificity} (95 % intervals by patient); threshold chosen on {len(tune)} others. {NOT_HERE}"
    )
    point = OperatingPoint(precision, threshold, None, meaning)
    fewest = min(len({patients[place] for place in np.flatnonzero(labels == label)}) for label in (0, 1))
    return Measured("auc", found.value, found.low, found.high, len(val), len(set(patients)), fewest, point, volumes)


def validation_scores(head: Head, pictures: Pictures, said: Mapping[str, Half]) -> NDArray[np.float64]:
    """Scores [n] of the validation cases, at the precision that said this of the pictures."""
    with torch.no_grad():
        return _scores(head, pictures, said, pictures.select("val"))[0]


def _area(recipe: TaskRecipe, head: nn.Module, pictures: Pictures, said: Mapping[str, Half]) -> Interval:
    """The AUC on the validation cases, its interval by patient."""
    val = pictures.select("val")
    patients = [pictures.cases[case].patient for case in val]
    return bootstrap(auc, *_scores(head, pictures, said, val), patients, recipe.training.seed)


def _one_by_one(pictures: Pictures) -> Pictures:
    """Every image as a case of its own, with the label of its volume."""
    pairs = [(case, row) for case, rows in zip(pictures.cases, pictures.rows, strict=True) for row in rows]
    return Pictures(
        tuple(case for case, _ in pairs), tuple((row,) for _, row in pairs), pictures.images, pictures.masks
    )


def _scores(
    head: nn.Module, pictures: Pictures, said: Mapping[str, Half], cases: Sequence[int]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    scores = [float(torch.sigmoid(_logit(head, said, pictures.rows[case]))) for case in cases]
    return np.array(scores), np.array([float(pictures.cases[case].label) for case in cases])


def _measured_masks(head: Head, pictures: Pictures, said: Mapping[str, Half], precision: str) -> Measured:
    val = pictures.select("val")
    overlaps, left_empty = [], []
    for case in val:
        mask = torch.sigmoid(head(*_maps(said, pictures.rows[case])))[0, 0].numpy() >= MASK_THRESHOLD
        drawn = pictures.masks[case] > 0
        if drawn.any():
            overlaps.append(dice(mask, drawn))
        else:
            overlaps.append(float("nan"))
            left_empty.append(not mask.any())
    patients = [pictures.cases[case].patient for case in val]
    found = mean_by_patient(np.array(overlaps), patients, seed=0)
    outlined = {patient for patient, overlap in zip(patients, overlaps, strict=True) if not np.isnan(overlap)}
    empty = (float(np.mean(left_empty)), len(left_empty)) if left_empty else None
    meaning = (
        f"On {len(val) - len(left_empty)} validation images with something drawn, of {len(outlined)} patients: mean "
        f"Dice {found} (95 % interval){emptiness(empty)}. {NOT_HERE}"
    )
    point = OperatingPoint(precision, MASK_THRESHOLD, None, meaning)
    return Measured(
        "dice",
        found.value,
        found.low,
        found.high,
        len(val),
        len(set(patients)),
        len(outlined),
        point,
        empty=empty,
    )


def emptiness(empty: tuple[float, int] | None) -> str:
    """What a head does where nothing is drawn, for the end of a sentence; nothing where something always is."""
    return f"; of {empty[1]} with nothing drawn {100 * empty[0]:.1f} % left empty" if empty else ""
