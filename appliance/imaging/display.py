"""From stored pixels to the picture that a radiologist sees: decoded, windowed, in the right polarity, upright."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import FileDataset
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
from pydicom.pixels.utils import pixel_array
from pydicom.uid import UID

from appliance.domain.errors import InputError, PixelDecodeError, UnreadableFileError
from appliance.imaging.header import spacing_of
from appliance.imaging.parsing import PARSE_ERRORS, numbers_of, read_dataset, text_of, values_of, whole_of

LARGEST_PIXELS = 200_000_000
"""Declared rows x columns x samples x frames above which nothing is decoded: a broken header, or an attack."""
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""ITU-R BT.601, as in PS3.3 C.7.6.3.1.2 for YBR_FULL."""
WAY_FORWARD = "Open the image in a viewer; if it shows there, report the file's transfer syntax."
HORIZONTAL, VERTICAL = frozenset("LR"), frozenset("HF")


class OrientationError(InputError):
    """Patient Orientation says that the picture is no frontal view."""


@dataclass(frozen=True, slots=True)
class Turn:
    """How the stored grid is brought upright: first transposed, then flipped; its inverse is exact."""

    transposed: bool = False
    left_right: bool = False
    upside_down: bool = False

    def upright(self, stored: NDArray[Any]) -> NDArray[Any]:
        """An array on the stored grid, turned to the displayed grid."""
        array = stored.T if self.transposed else stored
        array = array[:, ::-1] if self.left_right else array
        return array[::-1] if self.upside_down else array

    def stored(self, upright: NDArray[Any]) -> NDArray[Any]:
        """The inverse of `upright`."""
        array = upright[::-1] if self.upside_down else upright
        array = array[:, ::-1] if self.left_right else array
        return array.T if self.transposed else array


@dataclass(frozen=True, eq=False, slots=True)
class DisplayImage:
    """A picture as it is displayed, and the way back to the file's own grid.

    Attributes:
        pixels: float32 [rows, columns] of the displayed grid, 0 black to 1 white; row 0 is cranial and column 0 is the
            patient's right, where Patient Orientation says so.
        turn: How the stored grid became the displayed grid.
        pixel_spacing_mm: Row and column spacing of the stored grid in mm; None when the file has none.
    """

    pixels: NDArray[np.float32]
    turn: Turn
    pixel_spacing_mm: tuple[float, float] | None

    def to_source(self, array: NDArray[Any]) -> NDArray[Any]:
        """An array on the displayed grid, brought back to the file's own Rows x Columns."""
        return np.ascontiguousarray(self.turn.stored(array))

    def from_source(self, array: NDArray[Any]) -> NDArray[Any]:
        """An array on the file's own grid, brought to the displayed grid."""
        return np.ascontiguousarray(self.turn.upright(array))


def load_display(path: Path) -> DisplayImage:
    """Decode the first frame of a file and bring it to the displayed form.

    Modality LUT, then the first VOI LUT or window (PS3.3 C.11.1, C.11.2; without either the full range), then inversion
    for MONOCHROME1, then turned upright by Patient Orientation (absent: as stored). Colour is shown by its luminance.

    Raises:
        PixelDecodeError: There is no pixel data, or it can't be decoded.
        OrientationError: Patient Orientation is not that of a frontal view.
    """
    try:
        dataset = read_dataset(path)
    except UnreadableFileError as error:
        raise PixelDecodeError(error.message, error.way_forward) from error
    turn = turn_from_orientation(values_of(dataset, "PatientOrientation"))
    _check_size(dataset)
    try:
        pixels = _rendered(dataset)
    except PARSE_ERRORS as error:
        raise PixelDecodeError(f"The pixel data ({_syntax_name(dataset)}) can't be decoded.", WAY_FORWARD) from error
    return DisplayImage(np.ascontiguousarray(turn.upright(pixels)), turn, spacing_of(dataset))


def _syntax_name(dataset: FileDataset) -> str:
    stated = text_of(getattr(dataset, "file_meta", {}), "TransferSyntaxUID")
    return UID(stated).name if stated else "transfer syntax not stated"


def turn_from_orientation(orientation: tuple[str, ...]) -> Turn:
    """The turn that makes rows run to the patient's left and columns to the feet (PS3.3 C.7.6.1.1.1).

    Args:
        orientation: Directions of rows and of columns; the first letter of each decides. Absent or not of the
            standard's letters: as stored.

    Raises:
        OrientationError: A direction runs from front to back.
    """
    letters = [value[:1].upper() for value in orientation]
    if len(letters) != 2 or not all(letter in "LRHFAP" and letter for letter in letters):  # noqa: PLR2004 - rows and columns
        return Turn()
    row, column = letters
    transposed = row in VERTICAL and column in HORIZONTAL
    if transposed:
        row, column = column, row
    if row not in HORIZONTAL or column not in VERTICAL:
        raise OrientationError(
            f"Patient Orientation is {orientation[0]}\\{orientation[1]}, which is no frontal view.",
            "Check the view; lateral images are not analysed.",
        )
    return Turn(transposed, left_right=row == "R", upside_down=column == "H")


def _check_size(dataset: FileDataset) -> None:
    rows, columns = whole_of(dataset, "Rows", 0), whole_of(dataset, "Columns", 0)
    if rows < 1 or columns < 1:
        raise PixelDecodeError("The instance holds no image.", "Send images; other objects are kept but not analysed.")
    declared = rows * columns * max(whole_of(dataset, "SamplesPerPixel", 1), 1)
    if declared * max(whole_of(dataset, "NumberOfFrames", 1), 1) > LARGEST_PIXELS:
        raise PixelDecodeError(
            f"The image is too large: {rows} x {columns} pixels declared.", "Check the file's header."
        )


def _rendered(dataset: FileDataset) -> NDArray[np.float32]:
    stored = pixel_array(dataset, index=0)
    if stored.ndim == 3 and stored.shape[2] == 3:  # noqa: PLR2004 - rows, columns, samples
        full = float(2 ** max(whole_of(dataset, "BitsStored", 8), 1) - 1)
        luminance: NDArray[np.float32] = np.clip(stored.astype(np.float32) @ LUMA / np.float32(full), 0, 1)
        return luminance
    if stored.ndim != 2:  # noqa: PLR2004 - rows and columns
        raise ValueError(f"an array of shape {stored.shape} is no picture")
    values = np.asarray(apply_modality_lut(stored, dataset), dtype=np.float64)
    grey = _windowed(values, dataset)
    if grey is None:
        grey = _full_range(values, stored != whole_of(dataset, "PixelPaddingValue", -(2**31)))
    if text_of(dataset, "PhotometricInterpretation").upper() == "MONOCHROME1":
        grey = 1 - grey
    if not np.isfinite(grey).all():
        raise ValueError("the window or a lookup table gives no finite grey values")
    return grey.astype(np.float32)


def _windowed(values: NDArray[np.float64], dataset: FileDataset) -> NDArray[np.float64] | None:
    """Grey in 0 to 1 by the first VOI LUT or window; None when the file has neither."""
    grey: NDArray[np.float64]
    centres, widths = numbers_of(dataset, "WindowCenter"), numbers_of(dataset, "WindowWidth")
    function = text_of(dataset, "VOILUTFunction").upper()
    if "VOILUTSequence" in dataset:
        looked_up = np.asarray(apply_voi_lut(values.astype(np.int64), dataset, index=0), dtype=np.float64)
        bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        grey = looked_up / (2**bits - 1)
    elif not centres or not widths or widths[0] <= 0:
        return None
    elif function == "SIGMOID":
        grey = 1 / (1 + np.exp(np.clip(-4 * (values - centres[0]) / widths[0], -700, 700)))
    elif function == "LINEAR_EXACT" or widths[0] <= 1:
        grey = (values - centres[0]) / widths[0] + 0.5
    else:
        grey = (values - (centres[0] - 0.5)) / (widths[0] - 1) + 0.5
    return np.clip(grey, 0, 1)


def _full_range(values: NDArray[np.float64], is_image: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Grey over the range of the values, padding left out (PS3.3 C.7.5.1.1.2); a blank image is black."""
    shown = values[is_image]
    if shown.size == 0 or shown.max() == shown.min():
        return np.zeros_like(values)
    grey: NDArray[np.float64] = np.clip((values - shown.min()) / (shown.max() - shown.min()), 0, 1)
    return grey
