"""What a teacher is to the export: pictures in; dense and pooled features out; some also classify, outline or read."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, eq=False, slots=True)
class Seen:
    """What a teacher says of N pictures, as float tensors.

    Attributes:
        dense: [N, C, h, w], a feature for each place of its own grid.
        pooled: [N, D], one feature for the whole picture.
        logits: [N, K], or None for a teacher without a classifier.
    """

    dense: Tensor
    pooled: Tensor
    logits: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Preparation:
    """How a teacher's pixels are made of the appliance's: side in pixels, mean and deviation of grey levels in [0, 1].

    Attributes:
        mode: Torch's name of the interpolation; shrinking is antialiased.
    """

    side: int
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]
    mode: str = "bicubic"


class Teacher(nn.Module, ABC):
    """One foundation model, frozen.

    Every teacher takes the picture that the student will be served, UINT8 [N, 1, rows, columns], and brings it to its
    own resolution itself: a student never has to change its own for the sake of one of its teachers.
    """

    @abstractmethod
    def see(self, images: Tensor) -> Seen:
        """Features of pictures, uint8 [N, 1, rows, columns]."""

    def masks(self, images: Tensor, boxes: Tensor) -> Tensor | None:
        """Logits [N, 1, h, w] of what lies in each picture's box, or None for a teacher that outlines nothing.

        Args:
            images: uint8 [N, 1, rows, columns].
            boxes: float [N, 4], left, top, right, bottom as shares of the picture in [0, 1].
        """
        del images, boxes
        return None

    def read(self, texts: Sequence[str]) -> Tensor | None:
        """Embeddings [len(texts), D] in the space of `pooled`, or None for a teacher that does not read."""
        del texts
        return None


def prepared(images: Tensor, preparation: Preparation) -> Tensor:
    """Pictures, uint8 [N, 1, rows, columns], as a teacher's pixels, float [N, 3, side, side]."""
    side = (preparation.side, preparation.side)
    grey = functional.interpolate(images.float() / 255.0, side, mode=preparation.mode, antialias=True).clamp(0.0, 1.0)
    shape = (1, 3, 1, 1)
    mean = torch.tensor(preparation.mean, device=images.device).view(shape)
    deviation = torch.tensor(preparation.deviation, device=images.device).view(shape)
    return (grey - mean) / deviation


def grid_of_tokens(tokens: Tensor) -> Tensor:
    """Patch tokens [N, h x w, C] of a square grid as a map [N, C, h, w]."""
    count, patches, width = tokens.shape
    side = round(patches**0.5)
    return tokens.transpose(1, 2).reshape(count, width, side, side)
