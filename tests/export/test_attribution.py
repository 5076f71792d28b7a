"""Attribution finds the piece of the picture that a decision hangs on."""

import numpy as np

from export.attribution import PIECES, attribution
from export.runner import Grey, Outputs
from export.tasks import ADULT, LUNGS


class OnePiece:
    """A model that looks at one piece only, and calls the left half of every picture lung."""

    def __init__(self, row: int, column: int) -> None:
        self._place = slice(row * 8, row * 8 + 8), slice(column * 8, column * 8 + 8)

    def run(self, images: Grey) -> Outputs:
        """Scores by the brightness of the piece; the mask is the left half."""
        level = images[(slice(None), 0, *self._place)].mean(axis=(1, 2)) / 255.0
        mask = np.zeros((len(images), 1, 64, 64), np.float32)
        mask[..., :32] = 1.0
        return {ADULT: {"score": np.clip(level, 0.01, 0.99)[:, None].astype(np.float32)}, LUNGS: {"mask": mask}}


def pictures() -> list[Grey]:
    """Dark pictures with bright pieces everywhere."""
    rng = np.random.default_rng(0)
    return [rng.integers(120, 255, size=(64, 64), dtype=np.uint8) for _ in range(3)]


def test_influence_lies_where_the_model_looks() -> None:
    """All influence is in the one piece that the model reads; within the lungs it counts as inside."""
    found = attribution(OnePiece(2, 1), ADULT, pictures())  # type: ignore[arg-type]
    assert np.unravel_index(found.influence.argmax(), (PIECES, PIECES)) == (2, 1)
    assert found.inside > 0.99
    assert found.area == 0.5
    assert found.density > 1.9


def test_a_model_that_looks_beside_the_lungs_has_a_density_below_one() -> None:
    """Influence on the other side of the picture counts as outside."""
    assert attribution(OnePiece(2, 6), ADULT, pictures()).density < 0.1  # type: ignore[arg-type]
