"""The heads of new tasks: a linear probe, a small MLP, attention over the images of a volume, a mask decoder."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from export.student import LungDecoder
from export.task_head.recipe import LINEAR, MIL, MLP

LEAST_SPREAD = 1e-3
"""Share of the mean spread that is added to each feature's, so that one that hardly moves is not blown up."""
DROPOUT = 0.2


class Standardised(nn.Module):
    """Embeddings brought to mean 0 and deviation 1 by what the training patients show; part of the exported head."""

    centre: Tensor
    scale: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))

    def fit(self, embeddings: Tensor) -> None:
        """Learn centre and scale from embeddings [n, D]."""
        spread = embeddings.std(dim=0)
        self.centre.copy_(embeddings.mean(dim=0))
        self.scale.copy_(spread + LEAST_SPREAD * spread.mean() + torch.finfo(torch.float32).tiny)

    def forward(self, embedding: Tensor) -> Tensor:
        """[N, D] to [N, D]."""
        return (embedding - self.centre) / self.scale


class ImageHead(nn.Module):
    """One image's embedding to one logit: a linear probe, or an MLP with one hidden layer."""

    def __init__(self, kind: str, width: int, hidden: int) -> None:
        super().__init__()
        self.standardised = Standardised(width)
        if kind == LINEAR:
            self.layers = nn.Sequential(nn.Linear(width, 1))
        else:
            self.layers = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(DROPOUT), nn.Linear(hidden, 1))

    def forward(self, embedding: Tensor) -> Tensor:
        """[N, D] to logits [N, 1]."""
        logits: Tensor = self.layers(self.standardised(embedding))
        return logits


class VolumeHead(nn.Module):
    """The embeddings of a volume's images to one logit, by gated attention (Ilse et al., ICML 2018)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.standardised = Standardised(width)
        self.value = nn.Linear(width, hidden)
        self.gate = nn.Linear(width, hidden)
        self.attention = nn.Linear(hidden, 1)
        self.classifier = nn.Linear(width, 1)

    def forward(self, embedding: Tensor) -> Tensor:
        """[N, D], the images of one volume, to its logit [1, 1]."""
        x = self.standardised(embedding)
        weights = torch.softmax(self.attention(torch.tanh(self.value(x)) * torch.sigmoid(self.gate(x))), dim=0)
        logit: Tensor = self.classifier((weights * x).sum(dim=0, keepdim=True))
        return logit


class EachAlone(nn.Module):
    """A volume head on images that stand for themselves: each a volume of one, whose attention is all its own.

    This is what a daemon can serve that puts images of several requests, and so of several patients, into one batch:
    no row may look at another.
    """

    def __init__(self, head: VolumeHead) -> None:
        super().__init__()
        self.standardised = head.standardised
        self.classifier = head.classifier

    def forward(self, embedding: Tensor) -> Tensor:
        """[N, D] to logits [N, 1]."""
        logits: Tensor = self.classifier(self.standardised(embedding))
        return logits


class Scored(nn.Module):
    """A head up to a probability, as it is exported."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, embedding: Tensor) -> Tensor:
        """[N, D] to scores [N, 1]."""
        return torch.sigmoid(self.head(embedding))


class MaskHead(nn.Module):
    """A decoder on the base's feature maps, from fine to coarse, up to logits of the masks' size."""

    def __init__(self, widths: Sequence[int], side: int) -> None:
        super().__init__()
        self.decoder = LungDecoder(tuple(widths))
        self.side = side

    def forward(self, *maps: Tensor) -> Tensor:
        """Maps [N, C, h, w] to logits [N, 1, side, side]."""
        size = (self.side, self.side)
        return functional.interpolate(self.decoder(maps), size=size, mode="bilinear", align_corners=False)


class Masked(nn.Module):
    """A mask head up to probabilities, as it is exported: each of its four inputs by itself, as the exporter asks."""

    def __init__(self, head: MaskHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, finest: Tensor, fine: Tensor, coarse: Tensor, coarsest: Tensor) -> Tensor:
        """Maps [N, C, h, w], each half as large as the one before, to probabilities [N, 1, side, side]."""
        return torch.sigmoid(self.head(finest, fine, coarse, coarsest))


def embedding_head(kind: str, width: int, hidden: int) -> ImageHead | VolumeHead:
    """A new head of a kind that reads the embedding."""
    if kind not in {LINEAR, MLP, MIL}:
        raise ValueError(kind)
    return VolumeHead(width, hidden) if kind == MIL else ImageHead(kind, width, hidden)
