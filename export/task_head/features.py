"""What the frozen base says of the labelled images, through the engine and the preprocessing that will serve them."""

import dataclasses
import hashlib
import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from appliance.domain.errors import InputError
from appliance.domain.manifest import PackManifest
from export.artefacts import write_json
from export.augment import augmented
from export.disk import new_pictures
from export.images import NAMED, NOT_A_PICTURE, UNREADABLE, input_from_file, mask_from_file, refuse_too_many
from export.progress import Progress
from export.runner import BATCH, Runner
from export.task_head.labels import Case
from export.task_head.recipe import SEGMENTATION, TaskRecipe

Half = NDArray[np.float16]
EMBEDDING = "embedding"
PYRAMID = 4
"""Feature maps that a mask decoder reads."""


@dataclass(frozen=True, eq=False, slots=True)
class Pictures:
    """The images of all cases that could be read.

    Attributes:
        cases: In the CSV's order.
        rows: Which rows of `images` belong to each case.
        images: uint8 [n, rows, columns], memory-mapped.
        masks: uint8 [cases, side, side] of 0 and 1; empty unless it is a segmentation.
    """

    cases: tuple[Case, ...]
    rows: tuple[tuple[int, ...], ...]
    images: NDArray[np.uint8]
    masks: NDArray[np.uint8]

    def select(self, split: str) -> list[int]:
        """Numbers of the cases of a split."""
        return [number for number, case in enumerate(self.cases) if case.split == split]


def read_pictures(cases: Sequence[Case], data: Path, base: PackManifest, recipe: TaskRecipe, out: Path) -> Pictures:
    """Prepare every image as the appliance will; list those that can't be read in `<out>/unreadable.json`.

    Raises:
        InputError: More images than the recipe bounds can't be read.
    """
    total, side = sum(len(case.files) for case in cases), recipe.training.mask_side
    images = new_pictures(out / "images.npy", (total, base.input.rows, base.input.columns))
    kept: list[Case] = []
    rows: list[tuple[int, ...]] = []
    masks: list[NDArray[np.uint8]] = []
    unreadable: list[dict[str, str]] = []
    used = 0
    for case in cases:
        own: dict[str, int] = {}
        for file in case.files:
            reading = file
            try:
                images[used] = input_from_file(data / reading, base.input)
                if reading := case.mask:
                    masks.append(mask_from_file(data / reading, side))
            except NOT_A_PICTURE as error:
                unreadable.append({"file": reading, "reason": str(error)})
                continue
            own[file] = used
            used += 1
        if own:
            kept.append(dataclasses.replace(case, files=tuple(own)))
            rows.append(tuple(own.values()))
    write_json(out / UNREADABLE, unreadable)
    refuse_too_many(unreadable, total, recipe.training.unreadable_percent_max, out / UNREADABLE)
    stacked = np.stack(masks) if masks else np.zeros((0, side, side), np.uint8)
    return Pictures(tuple(kept), tuple(rows), images[:used], stacked)


def refuse_twins(labels: Path, pictures: Pictures) -> None:
    """Refuse a picture that is in two splits under two names: its patient leaks, whatever the labels say.

    Pictures of one grey alone don't count: the empty ends of volumes are alike.

    Raises:
        InputError: How many there are, with the files of the first; `labels` is where the cases come from.
    """
    copies: dict[bytes, dict[str, str]] = defaultdict(dict)
    for case, rows in zip(pictures.cases, pictures.rows, strict=True):
        for file, image in zip(case.files, pictures.images[list(rows)], strict=True):
            if image.min() < image.max():
                copies[hashlib.sha256(image.tobytes()).digest()].setdefault(case.split, file)
    leaking = [" = ".join(where.values()) for where in copies.values() if len(where) > 1]
    if leaking:
        more = " …" if len(leaking) > NAMED else ""
        raise InputError(
            f"{labels}: {len(leaking)} pictures are in more than one split, under other names or patients: "
            f"{'; '.join(leaking[:NAMED])}{more}.",
            "Give all copies of a picture one patient and one split, or leave them out.",
        )


def outputs_read_by(recipe: TaskRecipe, base: PackManifest) -> tuple[str, ...]:
    """The base's outputs that a head reads: the embedding, or all feature maps from fine to coarse.

    Raises:
        InputError: The base has no feature maps for a segmentation.
    """
    if recipe.task.head != SEGMENTATION:
        return (EMBEDDING,)
    maps = [spec for spec in base.encoder_outputs if len(spec.shape) == 4]  # noqa: PLR2004 - a map [N, C, h, w]
    ordered = sorted(maps, key=lambda spec: -spec.shape[-1])
    sides = [spec.shape[-1] for spec in ordered]
    if len(sides) != PYRAMID or any(fine != 2 * coarse for fine, coarse in itertools.pairwise(sides)):
        raise InputError(
            f"The base {base.name} has feature maps of the sides {sides}, but a decoder needs {PYRAMID} that halve.",
            "Use a base with an encoder pyramid, or a head that reads the embedding.",
        )
    return tuple(spec.name for spec in ordered)


def features(
    runner: Runner, pictures: Pictures, names: Sequence[str], progress: Progress, view: "View | None" = None
) -> dict[str, Half]:
    """What an encoder says of every picture: output name to float16 [n, …].

    Args:
        runner: The encoder, on the appliance's engine.
        pictures: What to look at.
        names: The outputs to keep.
        progress: Told.
        view: Which augmentation; the plain pictures where None.
    """
    kept: dict[str, list[Half]] = {name: [] for name in names}
    with progress.bar("features", len(pictures.images)) as advance:
        for start in range(0, len(pictures.images), BATCH):
            chosen = pictures.images[start : start + BATCH]
            batch = chosen if view is None else np.stack(
                [view.picture(start + number, image) for number, image in enumerate(chosen)]
            )  # fmt: skip
            said = runner.features(batch[:, None])
            for name in names:
                kept[name].append(np.asarray(said[name], np.float16))
            advance(len(batch))
    return {name: np.concatenate(parts) for name, parts in kept.items()}


@dataclass(frozen=True, slots=True)
class View:
    """One augmentation of all pictures, fixed by seed and number; not for segmentations, whose masks it can't move."""

    base: PackManifest
    seed: int
    number: int

    def picture(self, row: int, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """One picture, uint8 [rows, columns]."""
        return augmented(image, None, self.base.input, np.random.default_rng((self.seed, self.number, row)))[0]
