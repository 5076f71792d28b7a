"""From a probability over the stretched square to a binary mask on the source image's own grid."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from appliance.domain.findings import SegmentationMask
from appliance.imaging.display import DisplayImage

SMALLEST_SHARE = 0.1
"""Islands smaller than this share of the largest one are dropped: specks, never a second lung."""


def mask_from_probability(
    probability: NDArray[np.float32], display: DisplayImage, threshold: float
) -> SegmentationMask:
    """Resample a probability to the picture, cut it at the threshold, drop specks, bring it to the source's grid.

    Args:
        probability: float32 [h, w] in [0, 1] over the stretched square.
        display: The picture that the model looked at.
        threshold: Probability at or above which a pixel belongs to the segment.
    """
    cleaned = np.where(_without_specks(probability >= threshold), probability, np.float32(0))
    rows, columns = display.pixels.shape
    resampled = Image.fromarray(cleaned).resize((columns, rows), Image.Resampling.BILINEAR)
    pixels: NDArray[np.bool_] = display.to_source(np.asarray(resampled) >= threshold)
    area = None
    if display.pixel_spacing_mm is not None:
        area = float(pixels.sum()) * display.pixel_spacing_mm[0] * display.pixel_spacing_mm[1]
    return SegmentationMask(pixels, area)


def _without_specks(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    labels = _islands(mask)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    kept: NDArray[np.bool_] = (sizes >= SMALLEST_SHARE * sizes.max()) & (sizes > 0)
    return kept[labels]


def _islands(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Label 4-connected islands from 1; runs of each row are joined with those they touch in the row above."""
    labels = np.zeros(mask.shape, dtype=np.int64)
    parents = [0]

    def root(label: int) -> int:
        while parents[label] != label:
            parents[label] = parents[parents[label]]
            label = parents[label]
        return label

    for row in range(mask.shape[0]):
        edges = np.flatnonzero(np.diff(np.concatenate(([0], mask[row].astype(np.int8), [0]))))
        for start, end in edges.reshape(-1, 2):
            above = np.unique(labels[row - 1, start:end]) if row else np.zeros(1, np.int64)
            touched = sorted({root(int(label)) for label in above if label})
            if not touched:
                parents.append(len(parents))
                touched = [len(parents) - 1]
            for other in touched[1:]:
                parents[other] = touched[0]
            labels[row, start:end] = touched[0]
    flat = np.array([root(label) for label in range(len(parents))], dtype=np.int64)
    return flat[labels]
