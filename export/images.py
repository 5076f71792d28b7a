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
from export.data import Sample, samples_from_csv
from export.recipe import Recipe

INSIDE = 127
"""Grey level above which a stretched mask counts as drawn."""


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
        InputError: More images than the recipe bounds can't be read; the others are listed in `unreadable.json`.
    """
    samples = samples_from_csv(data / "labels.csv", recipe.data, recipe.pack.seed)
    images = np.lib.format.open_memmap(
        out / "images.npy", mode="w+", dtype=np.uint8, shape=(len(samples), recipe.input.rows, recipe.input.columns)
    )
    kept: list[Sample] = []
    masks: list[NDArray[np.uint8]] = []
    mask_of: list[int] = []
    unreadable: list[dict[str, str]] = []
    for sample in samples:
        try:
            images[len(kept)] = input_from_file(data / sample.file, recipe.input)
            mask = mask_from_file(data / sample.mask, recipe.data.mask_side) if sample.mask else None
        except (OSError, InputError) as error:
            unreadable.append({"file": sample.file, "reason": str(error)})
            continue
        kept.append(sample)
        mask_of.append(-1 if mask is None else len(masks))
        if mask is not None:
            masks.append(mask)
    _refuse_too_many(unreadable, len(samples), recipe.data.unreadable_percent_max)
    images.flush()
    side = recipe.data.mask_side
    np.save(out / "masks.npy", np.stack(masks) if masks else np.zeros((0, side, side), np.uint8))
    write_json(
        out / "samples.json", [dataclasses.asdict(s) | {"mask_row": m} for s, m in zip(kept, mask_of, strict=True)]
    )
    write_json(out / "unreadable.json", unreadable)


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
    """A grey JPEG or PNG as the encoder reads it: uint8 [rows, columns]."""
    with Image.open(path) as picture:
        display = np.asarray(picture.convert("L"), dtype=np.float32) / 255.0
    return model_input_from_display(display, spec)


def mask_from_file(path: Path, side: int) -> NDArray[np.uint8]:
    """A drawn mask stretched to `side` x `side`: uint8 of 0 and 1."""
    with Image.open(path) as picture:
        stretched = picture.convert("L").resize((side, side), Image.Resampling.BILINEAR)
    return (np.asarray(stretched) > INSIDE).astype(np.uint8)


def _refuse_too_many(unreadable: Sequence[dict[str, str]], total: int, percent: float) -> None:
    if len(unreadable) * 100.0 > percent * total:
        first = unreadable[0]
        raise InputError(
            f"{len(unreadable)} of {total} images can't be read, for instance {first['file']}: {first['reason']}",
            "Repair the data; the recipe bounds unreadable_percent_max.",
        )
