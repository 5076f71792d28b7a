"""Features of every teacher come to one scale."""

import numpy as np
import pytest
import torch

from appliance.domain.errors import SettingsError
from export.feature_scaling import hadamard, scaling_of


@pytest.mark.parametrize("order", [1, 2, 4, 12, 24, 192, 320, 384, 768, 1024, 1280])
def test_hadamard_rows_are_orthogonal(order: int) -> None:
    """A Hadamard matrix holds 1 and -1 only, and its rows are orthogonal, for every width of the known teachers."""
    matrix = hadamard(order)
    assert set(np.unique(matrix)) <= {-1.0, 1.0}
    assert np.array_equal(matrix @ matrix.T, order * np.eye(order))


def features() -> torch.Tensor:
    """Features whose channels differ a thousandfold in spread, and hang together."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(4000, 12, generator=generator)
    return noise @ torch.randn(12, 12, generator=generator) * torch.logspace(-1, 2, 12) + 7.0


def test_phi_s_gives_every_channel_the_same_variance_and_keeps_distances() -> None:
    """After PHI-S each channel has variance 1, and distances between features are as before but for one factor."""
    given = features()
    scaled = scaling_of("phi-s", given.split(500)).scaled(given)
    torch.testing.assert_close(scaled.mean(dim=0), torch.zeros(12), atol=1e-3, rtol=0)
    torch.testing.assert_close(scaled.var(dim=0), torch.ones(12), atol=2e-2, rtol=0)
    before, after = torch.pdist(given[:50]), torch.pdist(scaled[:50])
    assert float((after / before).std() / (after / before).mean()) < 1e-3


def test_standardising_treats_each_channel_alone() -> None:
    """After standardising each channel has variance 1 too; a channel that never moves stays finite."""
    given = features()
    given[:, 3] = 5.0
    scaled = scaling_of("standardise", [given]).scaled(given)
    assert torch.isfinite(scaled).all()
    moving = [channel for channel in range(12) if channel != 3]
    torch.testing.assert_close(scaled.var(dim=0)[moving], torch.ones(11), atol=2e-2, rtol=0)


@pytest.mark.parametrize(("kind", "width", "said"), [("phi", 12, "Known"), ("phi-s", 10, "standardise")])
def test_what_can_not_be_scaled_is_said(kind: str, width: int, said: str) -> None:
    """An unknown scaling, and a width that PHI-S can't rotate, are refused with the way out."""
    with pytest.raises(SettingsError, match=said):
        scaling_of(kind, [torch.randn(20, width)])
