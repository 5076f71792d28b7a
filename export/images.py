"""The image cache: every radiograph goes once through the appliance's own preprocessing, and is then an array."""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from appliance.domain.errors import InputError
from appliance.domain.manifest import InputSpec
from appliance.imaging.model_input import model_input_from_display
from export.artefacts import digest_of_values, file_sha256, read_json, write_json
from export.data import SPLITS, Sample, refuse_one_class, samples_from_csv
from export.disk import new_pictures, save_array
from export.recipe import Recipe

INSIDE = 127
"""Grey level above which a stretched mask counts as drawn."""
UNREADABLE = "unreadable.json"
NOT_A_PICTURE = (OSError, InputError, ValueError, SyntaxError, Image.DecompressionBombError)
"""What is raised for a file that is no picture, is damaged or far too large; Pillow has no error of its own for all."""
NAMED = 3
_EIGHT_BITS = ("L", "LA", "P", "PA", "RGB", "RGBA")
"""Pillow's modes whose grey levels it brings to 0 to 255 as they are; it cuts those of deeper ones off at 255."""


@dataclass(frozen=True, eq=False, slots=True)
class ImageSet:
    """Samples with their prepared images.

    Attributes:
        images: uint8 [n, 512, 512], in the order of `samples`, memory-mapped.
        masks: uint8 [m, side, side] of 0 and 1, stretched as the image is.
        mask_of: Row of `masks` for each sample, -1 where no mask was drawn.
    """

    samples: tuple[Sample, ...]
    images: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    mask_of: tuple[int, ...]

    def select(self, *, split: str, dataset: str | None = None) -> list[int]:
        """Indices of the samples of a split, and of one data set if named."""
        return [i for i, s in enumerate(self.samples) if s.split == split and dataset in (None, s.dataset)]


def prepare(recipe: Recipe, data: Path, out: Path) -> None:
    """The data step: labels and images of a folder that holds `labels.csv` into arrays.

    Raises:
        InputError: More images than the recipe bounds can't be read; `unreadable.json` lists them, here as elsewhere.
            Or of those that can a split has not both classes of each task, or no drawn mask.
        StorageFullError: There is too little room for the pictures.
    """
    samples = samples_from_csv(data / "labels.csv", recipe.data, recipe.pack.seed, recipe.source)
    images = new_pictures(out / "images.npy", (len(samples), recipe.input.rows, recipe.input.columns))
    kept: list[Sample] = []
    masks: list[NDArray[np.uint8]] = []
    mask_of: list[int] = []
    unreadable: list[dict[str, str]] = []
    for sample in samples:
        reading = sample.file
        try:
            images[len(kept)] = input_from_file(data / reading, recipe.input)
            reading = sample.mask
            mask = mask_from_file(data / reading, recipe.data.mask_side) if reading else None
        except NOT_A_PICTURE as error:
            unreadable.append({"file": reading, "reason": str(error)})
            continue
        kept.append(sample)
        mask_of.append(-1 if mask is None else len(masks))
        if mask is not None:
            masks.append(mask)
    write_json(out / UNREADABLE, unreadable)
    refuse_too_many(unreadable, len(samples), recipe.data.unreadable_percent_max, out / UNREADABLE)
    readable = f"Of the images in {data} that can be read"
    refuse_one_class(kept, recipe.data, readable)
    _refuse_undrawn(kept, [row >= 0 and bool(masks[row].any()) for row in mask_of], readable)
    images.flush()
    side = recipe.data.mask_side
    save_array(out / "masks.npy", np.stack(masks) if masks else np.zeros((0, side, side), np.uint8))
    write_json(
        out / "samples.json", [dataclasses.asdict(s) | {"mask_row": m} for s, m in zip(kept, mask_of, strict=True)]
    )


def _refuse_undrawn(samples: Sequence[Sample], drawn: Sequence[bool], where: str) -> None:
    """Refuse samples of which a split has no mask with anything drawn in it."""
    for split in SPLITS:
        if not any(has for sample, has in zip(samples, drawn, strict=True) if sample.split == split):
            raise InputError(
                f"{where}: the split {split!r} has no drawn mask of the lungs.",
                "Add masks, or move patients; `tune` is taken from the patients of `train` by tune_percent.",
            )


def left_out(count: int, listed: Path) -> str:
    """The sentence on images that can't be read and are not too many."""
    return f"{count} images can't be read and are left out; {listed} names them."


def source_digests(samples: Iterable[Sample], data: Path) -> dict[str, dict[str, Any]]:
    """What the files of each data set hold: how many images and masks, and one `sha256` over names and contents.

    A file that is not there counts by its name; `prepare` reports it.
    """
    files: dict[str, dict[str, str]] = defaultdict(dict)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for sample in samples:
        for kind, name in (("images", sample.file), ("masks", sample.mask)):
            if name:
                path = data / name
                files[sample.dataset][name] = file_sha256(path) if path.is_file() else ""
                counts[sample.dataset][kind] += 1
    return {
        dataset: {
            "images": counts[dataset]["images"],
            "masks": counts[dataset]["masks"],
            "sha256": digest_of_values(each),
        }
        for dataset, each in sorted(files.items())
    }


def image_set(folder: Path) -> ImageSet:
    """Open what `prepare` wrote."""
    rows = read_json(folder / "samples.json")
    mask_of = tuple(row.pop("mask_row") for row in rows)
    samples = tuple(Sample(**row) for row in rows)
    images = np.load(folder / "images.npy", mmap_mode="r")[: len(samples)]
    return ImageSet(samples, images, np.load(folder / "masks.npy"), mask_of)


def input_from_file(path: Path, spec: InputSpec) -> NDArray[np.uint8]:
    """A JPEG or PNG as the encoder reads it, grey: uint8 [rows, columns].

    Raises:
        InputError: It is not of 8 bits, grey, coloured or with a palette.
    """
    with Image.open(path) as picture:
        if picture.mode not in _EIGHT_BITS:
            raise InputError(
                f"{path} is no 8-bit grey or colour picture (Pillow's mode {picture.mode}).",
                "Convert it to 8-bit grey with the window that it is read with.",
            )
        display = np.asarray(picture.convert("L"), dtype=np.float32) / 255.0
    return model_input_from_display(display, spec)


def mask_from_file(path: Path, side: int) -> NDArray[np.uint8]:
    """A drawn mask stretched to `side` x `side`: uint8 of 0 and 1.

    Raises:
        InputError: Something is drawn, but so dark that all of it would count as nothing, as in masks of 0 and 1.
    """
    with Image.open(path) as picture:
        grey = picture.convert("L")
    brightest = int(np.asarray(grey).max())
    if 0 < brightest <= INSIDE:
        raise InputError(
            f"{path}: the brightest grey level of the mask is {brightest}; what is above {INSIDE} counts as drawn.",
            "Draw the inside white, grey level 255.",
        )
    stretched = grey.resize((side, side), Image.Resampling.BILINEAR)
    return (np.asarray(stretched) > INSIDE).astype(np.uint8)


def refuse_too_many(unreadable: Sequence[dict[str, str]], total: int, percent: float, listed: Path) -> None:
    """Refuse data of which too much can't be read; `listed` is where all of it is named.

    Raises:
        InputError: More than `percent` of `total` images; the first few are named.
    """
    if len(unreadable) * 100.0 > percent * total:
        more = len(unreadable) - NAMED
        names = ", ".join(each["file"] for each in unreadable[:NAMED]) + (f" and {more} more" if more > 0 else "")
        raise InputError(
            f"{len(unreadable)} of {total} images can't be read: {names}.",
            f"Read in {listed} why; repair the data, or raise unreadable_percent_max in the recipe.",
        )
