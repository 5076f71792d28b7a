"""The one path from a displayed picture to the encoder's input, in training, distillation and service alike."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from appliance.domain.errors import InputError
from appliance.domain.manifest import InputSpec

MINIMUM_CONTRAST = 1e-3
"""Smallest span between the two percentiles, as a share of the displayed range, that still counts as a picture."""


class NoContrastError(InputError):
    """The picture is blank, or nearly: there is nothing to look at."""


def model_input_from_display(display: NDArray[np.float32], spec: InputSpec) -> NDArray[np.uint8]:
    """Stretch, rescale and quantise a picture to what the encoder reads.

    Args:
        display: float32 [rows, columns], MONOCHROME2, 0 black to 1 white, upright (row 0 is cranial, column 0 is the
            patient's right in a frontal view).
        spec: The pack's input numbers.

    Returns:
        uint8 [spec.rows, spec.columns].

    Raises:
        NoContrastError: The percentiles coincide.
    """
    picture = Image.fromarray(np.ascontiguousarray(display, dtype=np.float32))
    stretched = np.asarray(picture.resize((spec.columns, spec.rows), Image.Resampling.BILINEAR))
    low, high = np.percentile(stretched, (spec.low_percentile, spec.high_percentile))
    if high - low < MINIMUM_CONTRAST:
        raise NoContrastError("The image has no contrast.", "Check the acquisition; blank images are not analysed.")
    scaled = (stretched - low) * (255.0 / (high - low))
    quantised: NDArray[np.uint8] = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
    return quantised
