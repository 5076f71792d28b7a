"""Augmentation against shortcuts: what a label may leak by (crop, borders, exposure, noise, compression) is varied.

Geometry is drawn at the stored 512 x 512, before the net's own shrinking, and intensities are stretched afterwards by
the same percentiles as in service, so that an augmented image is one that the appliance could have seen.
"""

import io

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from appliance.domain.manifest import InputSpec

Grey = NDArray[np.uint8]

MIRRORED, MOVED, DEGRADED, BORDERED = 0.5, 0.75, 0.6, 0.2
"""Shares of images that each kind of change is drawn for, at full strength."""


def augmented(
    image: Grey, mask: Grey | None, spec: InputSpec, rng: Generator, strength: float = 1.0
) -> tuple[Grey, Grey | None]:
    """One random variant of an image, with its mask moved along.

    Args:
        image: uint8 [512, 512].
        mask: uint8 [side, side] of 0 and 1, or None.
        spec: For the percentiles.
        rng: The only source of randomness.
        strength: 1 for all of it; less for smaller and rarer changes.
    """
    if drawn(rng, MIRRORED):
        image, mask = image[:, ::-1], None if mask is None else mask[:, ::-1]
    if drawn(rng, MOVED):
        image, mask = _moved(image, mask, rng, strength)
    image = _exposed(image, rng, strength)
    if drawn(rng, DEGRADED * strength):
        image = _degraded(image, rng)
    if drawn(rng, BORDERED * strength):
        image = _bordered(image, rng)
    mask = None if mask is None else np.ascontiguousarray(mask)
    return stretched_intensities(image, spec), mask


def drawn(rng: Generator, share: float) -> bool:
    """Whether something that happens in this share of cases happens now."""
    return bool(rng.random() < share)


def stretched_intensities(image: Grey, spec: InputSpec) -> Grey:
    """Map the spec's percentiles to 0 and 255, as `model_input_from_display` does, on 256 grey levels."""
    counts = np.cumsum(np.bincount(image.ravel(), minlength=256))
    low = int(np.searchsorted(counts, counts[-1] * spec.low_percentile / 100.0))
    high = int(np.searchsorted(counts, counts[-1] * spec.high_percentile / 100.0))
    levels = (np.arange(256) - low) * (255.0 / max(high - low, 1))
    table: Grey = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
    return table[image]


def _moved(image: Grey, mask: Grey | None, rng: Generator, strength: float) -> tuple[Grey, Grey | None]:
    scale = 1.0 + strength * rng.uniform(-0.22, 0.12)
    aspect = np.exp(strength * rng.uniform(-0.14, 0.14))
    angle = np.deg2rad(strength * rng.uniform(-9.0, 9.0))
    shift = strength * rng.uniform(-0.06, 0.06, size=2)
    x, y = scale * aspect, scale / aspect
    matrix = np.array([[x * np.cos(angle), -y * np.sin(angle)], [x * np.sin(angle), y * np.cos(angle)]])
    fill = 0 if drawn(rng, 0.7) else int(rng.integers(0, 256))
    moved = _affine(image, matrix, shift, Image.Resampling.BILINEAR, fill)
    return moved, None if mask is None else _affine(mask, matrix, shift, Image.Resampling.NEAREST, 0)


def _affine(
    picture: Grey, matrix: NDArray[np.float64], shift: NDArray[np.float64], how: Image.Resampling, fill: int
) -> Grey:
    side = picture.shape[0]
    centre = np.full(2, side / 2.0)
    offset = centre + shift * side - matrix @ centre
    coefficients = (*matrix[0], offset[0], *matrix[1], offset[1])
    source = Image.fromarray(np.ascontiguousarray(picture))
    return np.asarray(source.transform((side, side), Image.Transform.AFFINE, coefficients, how, fillcolor=fill))


def _exposed(image: Grey, rng: Generator, strength: float) -> Grey:
    levels = np.linspace(0.0, 1.0, 256) ** np.exp(strength * rng.uniform(-0.5, 0.5))
    if drawn(rng, 0.4 * strength):
        slope = rng.uniform(2.0, 6.0)
        levels = 1.0 / (1.0 + np.exp(-slope * (levels - rng.uniform(0.35, 0.65))))
    if drawn(rng, 0.3 * strength):
        levels = np.clip(levels, *np.quantile(levels, [rng.uniform(0, 0.06), 1 - rng.uniform(0, 0.06)]))
    levels = (levels - levels.min()) / (levels.max() - levels.min())
    table: Grey = np.rint(levels * 255).astype(np.uint8)
    return table[image]


def _degraded(image: Grey, rng: Generator) -> Grey:
    picture = Image.fromarray(np.ascontiguousarray(image))
    kind = ("blur", "sharpen", "resample", "compress", "compress")[int(rng.integers(0, 5))]
    if kind == "blur":
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.4)))
    elif kind == "sharpen":
        picture = picture.filter(ImageFilter.UnsharpMask(rng.uniform(1, 4), int(rng.integers(40, 160)), 0))
    elif kind == "resample":
        side = int(rng.integers(224, 480))
        small = picture.resize((side, side), Image.Resampling.BILINEAR)
        picture = small.resize(picture.size, Image.Resampling.BILINEAR)
    if kind == "compress" or drawn(rng, 0.3):
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=int(rng.integers(35, 95)))
        picture = Image.open(stream)
    result = np.asarray(picture)
    if drawn(rng, 0.4):
        noise = rng.standard_normal(result.shape, dtype=np.float32) * rng.uniform(2.0, 12.0)
        result = np.clip(result + noise, 0, 255).astype(np.uint8)
    return result


def _bordered(image: Grey, rng: Generator) -> Grey:
    result = image.copy()
    side = image.shape[0]
    level = 0 if drawn(rng, 0.7) else 255
    widths = (rng.uniform(0, 0.08, size=4) * side * rng.integers(0, 2, size=4)).astype(int)
    top, bottom, left, right = widths
    result[:top] = level
    result[side - bottom :] = level
    result[:, :left] = level
    result[:, side - right :] = level
    return result
