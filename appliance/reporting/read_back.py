"""Masks out of segmentation objects, for pictures and checks."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from highdicom.seg import segread
from numpy.typing import NDArray
from pydicom.errors import InvalidDicomError

from appliance.domain.errors import ReportError
from appliance.reporting.quiet import silence_libraries


def masks_of(seg_path: Path) -> Mapping[str, NDArray[np.bool_]]:
    """The union of all segments, bool [Rows, Columns], by SOP Instance UID of the source image.

    Raises:
        ReportError: The file can't be read as a segmentation.
    """
    try:
        silence_libraries()
        segmentation = segread(seg_path)
        uids = sorted({uid for _, _, uid in segmentation.get_source_image_uids()})
        pixels = segmentation.get_pixels_by_source_instance(uids, combine_segments=False)
    except (InvalidDicomError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ReportError(f"{seg_path} can't be read as a segmentation.") from error
    union: NDArray[np.bool_] = np.asarray(pixels, dtype=np.bool_).max(axis=-1)
    return {uid: union[index] for index, uid in enumerate(uids)}
