"""Pictures that a chest pack must refuse: other modalities out of real DICOM, and radiographs made wrong."""

import csv
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from appliance.domain.errors import InsiteError
from appliance.domain.manifest import InputSpec
from appliance.imaging.model_input import model_input_from_display
from export.artefacts import digest_of_values, file_sha256, read_json, write_json
from export.augment import drawn
from export.disk import save_array
from export.images import image_set
from export.recipe import Recipe

Grey = NDArray[np.uint8]

INDEX = "index.csv"
OPEN_LICENCES = ("MIT", "Apache-2.0", "BSD-", "CC BY 4.0", "CC BY 3.0")
HELD_OUT = ("wg04_compression/RG1", "wg04_compression/RG3", "highdicom/dx_image.dcm")
"""Demonstration and test inputs: never read here, neither for training nor for thresholds."""
CHEST_LIKE = ("CHEST", "THORAX")
PLAIN_RADIOGRAPHS = ("CR", "DX")
SLICES_PER_SERIES = 12
VALIDATION_PERCENT = 25
SMALLEST_SIDE = 32
"""Pixels; smaller pictures are test files of character sets and the like."""
PLANE = ("rows", "columns")
UNREAD = "unread.json"
"""How many DICOM files were tried, and which of them can't be read."""
NOT_SHOWN = (InsiteError, OSError, ValueError, AttributeError, NotImplementedError, RuntimeError)
"""What is raised for a file that is absent, damaged, or of a transfer syntax that no codec here reads."""
CODECS = (
    "pydicom", "pylibjpeg", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg", "pylibjpeg-rle", "python-gdcm", "pyjpegls",
)  # fmt: skip
COLOUR_SAMPLES = (3, 4)


@dataclass(frozen=True, eq=False, slots=True)
class Negative:
    """A picture as the encoder reads it, uint8 [rows, columns], and what is wrong with it."""

    kind: str
    split: str
    image: Grey


def gather(recipe: Recipe, data: Path, prepared: Path, out: Path) -> None:
    """Step `negatives`: write `negatives.npy`, uint8 [n, rows, columns], and `negatives.json` with kind and split.

    `unread.json` says how many DICOM files were tried, and names those that can't be read, with the kind of error.

    Args:
        recipe: Its `guard` section says how many are made.
        data: The data folder; slices come from its `dicom` folder.
        prepared: The artefact of the data step, whose radiographs are made wrong.
        out: Folder to write to.
    """
    radiographs = image_set(prepared)
    rng = np.random.default_rng((recipe.pack.seed, 1))
    found, unread = dicom_negatives(data / "dicom", recipe.input)
    for split, count in (("train", recipe.guard.made_per_kind_train), ("val", recipe.guard.made_per_kind_val)):
        images = [radiographs.images[index] for index in radiographs.select(split=split)]
        found += made_negatives(images, split, count, rng)
    save_array(out / "negatives.npy", np.stack([negative.image for negative in found]))
    write_json(out / "negatives.json", [{"kind": negative.kind, "split": negative.split} for negative in found])
    write_json(out / UNREAD, unread)


def dicom_digest(folder: Path) -> str:
    """Digest of the DICOM files that are usable, of their index, and of which codecs can read them.

    A file that is not there counts by its name: once it is, the step has something else to read.
    """
    files = {row["path"]: folder / row["path"] for row in _usable_rows(folder)}
    index = folder / INDEX
    return digest_of_values(
        file_sha256(index) if index.is_file() else "",
        {name: file_sha256(path) if path.is_file() else "" for name, path in files.items()},
        {name: _version(name) for name in CODECS},
    )


def unread_in_words(gathered: Path) -> str:
    """A sentence on the DICOM files of a finished step that can't be read, or on their absence; empty if all can."""
    unread = read_json(gathered / UNREAD)
    if not unread["tried"]:
        return "There is no usable DICOM file: no picture of another modality teaches the guard or is shown to it."
    if not unread["files"]:
        return ""
    return (
        f"{len(unread['files'])} of {unread['tried']} DICOM files can't be read and are no negatives; "
        f"{gathered / UNREAD} names them."
    )


def dicom_negatives(folder: Path, spec: InputSpec) -> tuple[list[Negative], dict[str, Any]]:
    """Slices of other modalities under an open licence; whole series go to one split.

    Args:
        folder: Holds `index.csv` and the files; may be absent, then there are none.
        spec: The pack's input.

    Returns:
        The slices, and what `unread.json` holds.
    """
    taken: dict[str, int] = {}
    result: list[Negative] = []
    tried, unread = 0, []
    for row in sorted(_usable_rows(folder), key=lambda row: hashlib.sha256(row["path"].encode()).hexdigest()):
        series = row["series_uid"] or row["path"]
        if taken.get(series, 0) >= SLICES_PER_SERIES:
            continue
        tried += 1
        try:
            image = _picture(folder / row["path"], spec)
        except NOT_SHOWN as error:  # the set is open-ended: the others are negatives enough
            unread.append({"file": row["path"], "reason": type(error).__name__})
            continue
        if image is not None:
            taken[series] = taken.get(series, 0) + 1
            bucket = int(hashlib.sha256(series.encode()).hexdigest(), 16) % 100
            split = "val" if bucket < VALIDATION_PERCENT else "train"
            result.append(Negative(f"DICOM {row['modality'] or 'unknown'}", split, image))
    return result, {"tried": tried, "files": unread}


def made_negatives(images: list[Grey], split: str, count: int, rng: Generator) -> list[Negative]:
    """`count` pictures of each made kind, out of radiographs of one split.

    A mirrored radiograph is not among them: whether an image is mirrored can't be told reliably from its pixels.
    """
    result: list[Negative] = []
    for kind, make in MADE.items():
        for _ in range(count):
            chosen = [images[int(i)] for i in rng.integers(0, len(images), size=4)]
            result.append(Negative(kind, split, make(chosen, rng)))
    return result


def _usable_rows(folder: Path) -> list[dict[str, str]]:
    index = folder / INDEX
    if not index.is_file():
        return []
    with index.open(newline="") as stream:
        return [row for row in csv.DictReader(stream) if _usable(row)]


def _version(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return ""


def _usable(row: dict[str, str]) -> bool:
    chest = row["modality"] in PLAIN_RADIOGRAPHS and row["body_part"].upper() in CHEST_LIKE
    return (
        row["nc"] == "0"
        and row["pixels_decode"] == "yes"
        and row["modality"] != "SEG"
        and row["licence"].startswith(OPEN_LICENCES)
        and not row["path"].startswith(HELD_OUT)
        and not chest
    )


def _picture(path: Path, spec: InputSpec) -> Grey | None:
    """A file's middle frame as the encoder reads it; None if it is too small."""
    pixels = pydicom.dcmread(path, force=True).pixel_array.astype(np.float32)
    grey = _grey_frame(pixels)
    if min(grey.shape) < SMALLEST_SIDE:
        return None
    span = max(float(np.ptp(grey)), 1e-6)
    return model_input_from_display((grey - grey.min()) / np.float32(span), spec)


def _grey_frame(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    colour = pixels.ndim > len(PLANE) and pixels.shape[-1] in COLOUR_SAMPLES
    grey: NDArray[np.float32] = pixels[..., :3].mean(axis=-1) if colour else pixels
    while grey.ndim > len(PLANE):
        grey = grey[len(grey) // 2]
    return grey


def _resized(image: Grey, rows: int, columns: int) -> Grey:
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize((columns, rows), Image.Resampling.BILINEAR))


def _quarter_turn(images: list[Grey], rng: Generator) -> Grey:
    return np.rot90(images[0], 1 if drawn(rng, 0.5) else 3).copy()


def _upside_down(images: list[Grey], rng: Generator) -> Grey:
    return images[0][::-1, ::-1].copy() if drawn(rng, 0.5) else images[0][::-1].copy()


def _inverted(images: list[Grey], rng: Generator) -> Grey:
    del rng
    return 255 - images[0]


def _zoomed(images: list[Grey], rng: Generator) -> Grey:
    side = images[0].shape[0]
    size = int(side * rng.uniform(0.25, 0.58))
    top, left = rng.integers(0, side - size, size=2)
    return _resized(images[0][top : top + size, left : left + size], side, side)


def _collage(images: list[Grey], rng: Generator) -> Grey:
    side = images[0].shape[0]
    half = side // 2
    if drawn(rng, 0.5):
        pair = [_resized(image, side, half) for image in images[:2]]
        return np.hstack(pair) if drawn(rng, 0.5) else np.hstack(pair).T.copy()
    tiles = [_resized(image, half, half) for image in images]
    return np.vstack([np.hstack(tiles[:2]), np.hstack(tiles[2:])])


def _shuffled(images: list[Grey], rng: Generator) -> Grey:
    quarter = images[0].shape[0] // 4
    tiles = [
        images[0][r * quarter : (r + 1) * quarter, c * quarter : (c + 1) * quarter] for r in range(4) for c in range(4)
    ]
    order = rng.permutation(16)
    return np.vstack([np.hstack([tiles[order[4 * r + c]] for c in range(4)]) for r in range(4)])


def _noise(images: list[Grey], rng: Generator) -> Grey:
    side = images[0].shape[0]
    picture = Image.fromarray(rng.integers(0, 256, size=(side, side), dtype=np.uint8))
    grey = np.asarray(picture.filter(ImageFilter.GaussianBlur(rng.uniform(0, 30)))).astype(np.float32)
    return np.asarray(255 * (grey - grey.min()) / max(float(np.ptp(grey)), 1.0), np.float32).astype(np.uint8)


def _shapes(images: list[Grey], rng: Generator) -> Grey:
    side = images[0].shape[0]
    slope = rng.standard_normal(2)
    ramp = slope[0] * np.linspace(0, 1, side)[:, None] + slope[1] * np.linspace(0, 1, side)
    ramp = (ramp - ramp.min()) / max(float(np.ptp(ramp)), 1e-6) * rng.uniform(0, 255)
    picture = Image.fromarray(ramp.astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(0, 8))):
        x, y = rng.integers(0, side, size=2)
        width, height = rng.integers(20, side, size=2)
        form = draw.ellipse if drawn(rng, 0.5) else draw.rectangle
        form((int(x), int(y), int(x + width), int(y + height)), fill=int(rng.integers(0, 256)))
    for _ in range(int(rng.integers(0, 12))):
        x, y = rng.integers(0, side, size=2)
        draw.text((int(x), int(y)), "PATIENT NAME 01.01.1970 kV mAs", fill=int(rng.integers(128, 256)))
    return np.asarray(picture)


def _limb(images: list[Grey], rng: Generator) -> Grey:
    side = images[0].shape[0]
    picture = Image.new("L", (side, side), int(rng.integers(0, 30)))
    draw = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(1, 4))):
        start, end = rng.uniform(-0.1, 1.1, size=(2, 2)) * side
        width = int(rng.uniform(0.12, 0.4) * side)
        tissue = int(rng.integers(60, 150))
        line = [(float(start[0]), float(start[1])), (float(end[0]), float(end[1]))]
        draw.line(line, fill=tissue, width=width)
        draw.line(line, fill=min(255, tissue + int(rng.integers(60, 110))), width=int(width * rng.uniform(0.2, 0.45)))
        draw.line(line, fill=tissue + int(rng.integers(20, 60)), width=int(width * rng.uniform(0.05, 0.18)))
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(rng.uniform(2, 9))))


MADE: dict[str, Callable[[list[Grey], Generator], Grey]] = {
    "quarter turn": _quarter_turn,
    "upside down": _upside_down,
    "inverted polarity": _inverted,
    "zoomed beyond a third": _zoomed,
    "collage": _collage,
    "shuffled tiles": _shuffled,
    "synthetic limb": _limb,
    "noise": _noise,
    "shapes and text": _shapes,
}
