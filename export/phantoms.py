"""Synthetic chest-like phantoms: golden inputs that are nobody's picture, drawn from smooth shapes."""

import numpy as np
from numpy.typing import NDArray

from appliance.domain.manifest import InputSpec
from appliance.imaging.model_input import model_input_from_display

Field = NDArray[np.float32]


def phantom(spec: InputSpec, seed: int) -> NDArray[np.uint8]:
    """One phantom as the encoder reads it: uint8 [rows, columns], the same for the same seed.

    Body, two lungs, heart, spine, ribs, and in odd seeds an opacity; nothing in it was measured on a person.
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : spec.rows, 0 : spec.columns].astype(np.float32)
    y, x = y / spec.rows - 0.5, x / spec.columns - 0.5
    wide = rng.uniform(0.9, 1.1)
    body = _ellipse(y, x, (0.1, 0.0), (0.75, 0.44 * wide), 0.03)
    right = _ellipse(y, x, (-0.02, -0.19 * wide), (0.33, 0.13 * wide), 0.02)
    left = _ellipse(y, x, (-0.02, 0.19 * wide), (0.33, 0.13 * wide), 0.02)
    lungs = np.maximum(right, left)
    heart = _ellipse(y, x, (0.14, 0.06), (0.16, 0.14), 0.03)
    spine = np.exp(-((x / 0.035) ** 2)) * body
    ribs = (0.5 + 0.5 * np.sin(2 * np.pi * (y + 0.9 * x**2) * rng.uniform(9, 11))) ** 4
    picture = 0.1 + 0.65 * body - 0.45 * lungs + 0.35 * heart * lungs + 0.12 * spine + 0.1 * ribs * lungs
    if seed % 2:
        centre = (rng.uniform(-0.1, 0.2), rng.choice([-0.19, 0.19]) * wide)
        picture += 0.3 * _ellipse(y, x, centre, (0.09, 0.07), 0.06) * lungs
    picture += rng.standard_normal(picture.shape, dtype=np.float32) * np.float32(0.006)
    return model_input_from_display(np.clip(picture, 0.0, 1.0).astype(np.float32), spec)


def _ellipse(y: Field, x: Field, centre: tuple[float, float], radii: tuple[float, float], softness: float) -> Field:
    radius = np.sqrt(((y - centre[0]) / radii[0]) ** 2 + ((x - centre[1]) / radii[1]) ** 2)
    result: Field = (1.0 / (1.0 + np.exp(np.minimum((radius - 1.0) / softness, 60.0)))).astype(np.float32)
    return result
