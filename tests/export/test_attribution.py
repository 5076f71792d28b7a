"""Attribution finds the piece of the picture that a decision hangs on."""

import numpy as np
import pytest
import torch

from export.attribution import CONTROLS, EMBEDDING, Attribution, attribution, of_net, of_runner
from export.recipe import PIECES
from export.runner import Floats, Grey, Outputs
from export.student import MultiTaskNet, architecture_named
from export.tasks import ADULT, LUNGS, PAEDIATRIC


class OnePiece:
    """A model that looks at one piece only, and calls the left half of every picture lung.

    Its embedding is the brightness of each piece, so that an untrained head looks everywhere; with `near` of the left
    half only.
    """

    def __init__(self, row: int, column: int, *, near: bool = False) -> None:
        self._piece = row * PIECES + column
        self._near = near

    def features(self, images: Grey) -> dict[str, Floats]:
        """The brightness of each piece, [N, 64], and of those that the embedding knows."""
        pieces = images.reshape(len(images), PIECES, 8, PIECES, 8).mean(axis=(2, 4)) / np.float32(255.0)
        known = pieces[..., : PIECES // 2] if self._near else pieces
        return {"pieces": pieces.reshape(len(images), -1), EMBEDDING: known.reshape(len(images), -1)}

    def heads(self, features: dict[str, Floats]) -> Outputs:
        """Scores by the brightness of the piece; the mask is the left half."""
        level = features["pieces"][:, self._piece]
        mask = np.zeros((len(level), 1, 64, 64), np.float32)
        mask[..., :32] = 1.0
        return {ADULT: {"score": np.clip(level, 0.01, 0.99)[:, None].astype(np.float32)}, LUNGS: {"mask": mask}}


def pictures() -> list[Grey]:
    """Dark pictures with bright pieces everywhere."""
    rng = np.random.default_rng(0)
    return [rng.integers(120, 255, size=(64, 64), dtype=np.uint8) for _ in range(3)]


def asked(model: OnePiece, seed: int = 0) -> Attribution:
    """What three pictures tell about a model."""
    return attribution(of_runner(model, ADULT), pictures(), ("a", "b", "b"), seed)  # type: ignore[arg-type]


def test_influence_lies_where_the_model_looks() -> None:
    """All influence is in the one piece that the model reads; within the lungs it counts as inside."""
    found = asked(OnePiece(2, 1))
    assert np.unravel_index(found.influence.argmax(), (PIECES, PIECES)) == (2, 1)
    assert found.inside > 0.99
    assert found.area == 0.5
    assert found.density > 1.9


def test_a_model_that_looks_beside_the_lungs_has_a_density_below_one() -> None:
    """Influence on the other side of the picture counts as outside."""
    assert asked(OnePiece(2, 6)).density < 0.1


def test_untrained_heads_show_where_the_encoder_alone_looks() -> None:
    """On an encoder that sees every place they look everywhere; on one that sees lungs only they look at lungs."""
    everywhere, lungs_only = asked(OnePiece(2, 1)), asked(OnePiece(2, 1, near=True))
    assert len(everywhere.controls) == CONTROLS
    assert np.mean(everywhere.controls) == pytest.approx(1.0, abs=0.1)
    assert max(everywhere.controls) < everywhere.density
    assert np.mean(lungs_only.controls) == pytest.approx(2.0)


def test_the_same_seed_draws_the_same_heads() -> None:
    """The control is measured again by the same recipe; another seed draws other heads."""
    assert asked(OnePiece(2, 1)).controls == asked(OnePiece(2, 1)).controls
    assert asked(OnePiece(2, 1)).controls != asked(OnePiece(2, 1), seed=1).controls


def test_the_figure_beyond_untrained_heads_has_an_interval() -> None:
    """It says how sure the sign is: a head that looks at lungs alone is beyond them, one that looks beside is not."""
    inside, beside = asked(OnePiece(2, 1)).beyond(), asked(OnePiece(2, 6)).beyond()
    assert 0.0 < inside.low < inside.value < inside.high
    assert beside.low < beside.value < beside.high < 0.0
    assert asked(OnePiece(2, 1)).beyond() == inside


def test_a_net_is_asked_for_the_head_of_the_task() -> None:
    """Each task's logits are its own head's, the embedding is the encoder's, lungs come in the asked resolution."""
    torch.manual_seed(0)
    net = MultiTaskNet(architecture_named("narrow")).eval()
    images = np.stack([np.full((1, 512, 512), level, np.uint8) for level in (10, 200)])
    with torch.no_grad():
        said = net(torch.from_numpy(images))
    adult, child = of_net(net, ADULT, 64)(images), of_net(net, PAEDIATRIC, 64)(images)
    np.testing.assert_allclose(adult.logits, said.adult[:, 0], rtol=1e-5)
    np.testing.assert_allclose(child.logits, said.paediatric[:, 0], rtol=1e-5)
    np.testing.assert_allclose(adult.embedding, said.embedding, rtol=1e-5)
    assert adult.lungs.shape == (2, 64, 64)
