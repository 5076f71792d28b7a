"""The guard: does a picture look like what the pack was trained on? A small net and a distance, on frozen features."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

FIT_STEPS = 400
HIDDEN = 32
WHITENED_DIMENSIONS = 48
SHRINKAGE = 0.05
"""Share of the mean variance that is added to each direction's, so that rare directions do not dominate."""
GUARD_STRIDES = (8, 16)
"""Feature maps that the guard reads beside the embedding."""


class GuardHead(nn.Module):
    """Embedding and two feature maps to a probability and a Mahalanobis distance.

    The map at stride 16 is pooled to 2 x 2, because a mean over the whole picture can't tell up from down.
    """

    centre: Tensor
    scale: Tensor
    mean: Tensor
    whitening: Tensor

    def __init__(self, embedding: int, widths: tuple[int, int]) -> None:
        super().__init__()
        length = embedding + widths[0] + 4 * widths[1]
        whitened = min(WHITENED_DIMENSIONS, embedding)
        self.register_buffer("centre", torch.zeros(length))
        self.register_buffer("scale", torch.ones(length))
        self.register_buffer("mean", torch.zeros(embedding))
        self.register_buffer("whitening", torch.zeros(embedding, whitened))
        self.layers = nn.Sequential(nn.Dropout(0.3), nn.Linear(length, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))

    def pooled(self, embedding: Tensor, stride8: Tensor, stride16: Tensor) -> Tensor:
        """All features as one vector per picture, [N, length]."""
        quarters = functional.avg_pool2d(stride16, stride16.shape[-1] // 2).flatten(1)
        return torch.cat([embedding, stride8.mean(dim=(2, 3)), quarters], dim=1)

    def logits(self, pooled: Tensor) -> Tensor:
        """[N, length] to [N, 1]."""
        result: Tensor = self.layers((pooled - self.centre) / self.scale)
        return result

    def distance(self, embedding: Tensor) -> Tensor:
        """Mahalanobis distance to the training radiographs in their leading directions, [N, D] to [N, 1]."""
        return ((embedding - self.mean) @ self.whitening).square().sum(dim=1, keepdim=True).sqrt()

    def forward(self, embedding: Tensor, stride8: Tensor, stride16: Tensor) -> tuple[Tensor, Tensor]:
        """Return (score [N, 1], distance [N, 1])."""
        score = torch.sigmoid(self.logits(self.pooled(embedding, stride8, stride16)))
        return score, self.distance(embedding)


@dataclass(frozen=True, eq=False, slots=True)
class GuardSamples:
    """Pooled features [n, length] of radiographs and of everything else; `kinds` names each negative's kind."""

    positives: Tensor
    negatives: Tensor
    kinds: tuple[str, ...]


def fit(guard: GuardHead, samples: GuardSamples, seed: int) -> None:
    """Fit the guard in place: standardise, whiten the radiographs' embeddings, train the small net.

    Each kind of negative weighs the same, however many there are of it.
    """
    torch.manual_seed(seed)
    width = guard.mean.shape[0]
    everything = torch.cat([samples.positives, samples.negatives])
    guard.centre.copy_(everything.mean(dim=0))
    guard.scale.copy_(everything.std(dim=0) + 1e-3 * everything.std())
    _whiten(guard, samples.positives[:, :width])
    target = torch.cat([torch.ones(len(samples.positives)), torch.zeros(len(samples.negatives))])[:, None]
    counts = {kind: samples.kinds.count(kind) for kind in set(samples.kinds)}
    weights = [1.0 / (len(counts) * counts[kind]) for kind in samples.kinds]
    weight = torch.cat([torch.full((len(samples.positives),), 1.0 / len(samples.positives)), torch.tensor(weights)])
    optimiser = torch.optim.AdamW(guard.layers.parameters(), lr=2e-3, weight_decay=0.05)
    guard.train()
    for _ in range(FIT_STEPS):
        loss = functional.binary_cross_entropy_with_logits(
            guard.logits(everything), target, weight=weight[:, None], reduction="sum"
        )
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
    guard.eval()


def _whiten(guard: GuardHead, embeddings: Tensor) -> None:
    mean = embeddings.mean(dim=0)
    _, spread, directions = torch.linalg.svd(embeddings - mean, full_matrices=False)
    variance = spread.square() / max(1, len(embeddings) - 1)
    keep = min(guard.whitening.shape[1], len(variance))
    floor = SHRINKAGE * variance[:keep].mean()
    guard.mean.copy_(mean)
    guard.whitening.zero_()
    guard.whitening[:, :keep] = directions[:keep].T / (variance[:keep] + floor).sqrt()
