"""What every encoder that is trained here is, whatever its family; and how a published colour stem comes to read grey.

Each family brings designs, which are data and make their encoder; `student.py` lists them by name.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

PIXEL_CENTRE, PIXEL_SCALE = 127.0, 128.0
"""Every stem reads (x - 127) / 128, as the published EfficientNet-Lite weights do."""
IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""What timm's weights were trained with, for colours in [0, 1]."""


class Design(Protocol):
    """The sizes of one encoder."""

    @property
    def name(self) -> str:
        """As a recipe names it."""
        ...

    @property
    def embedding(self) -> int:
        """Length of the embedding."""
        ...

    @property
    def shrink(self) -> int:
        """The factor by which the input is averaged first."""
        ...

    @property
    def feature_widths(self) -> tuple[int, ...]:
        """Channels of the feature maps at strides 4, 8, 16 and 32."""
        ...

    def encoder(self) -> "StudentEncoder":
        """A new encoder of this design, its weights random."""
        ...


class StudentEncoder(nn.Module, ABC):
    """UINT8 [N, 1, 512, 512] to an embedding [N, D] and feature maps at strides 4, 8, 16 and 32 of the shrunk image."""

    def __init__(self, architecture: Design) -> None:
        super().__init__()
        self.architecture = architecture

    @abstractmethod
    def front(self, blocks: int) -> list[nn.Module]:
        """The stem and so many blocks behind it, as a recipe's `frozen_blocks` counts them."""

    def fused(self) -> "StudentEncoder":
        """The encoder as it is served: itself, or a copy whose branches became one convolution each."""
        return self

    def normalised(self, image: Tensor) -> Tensor:
        """What the stem reads: float [N, 1, 512 / shrink, 512 / shrink]."""
        pixels = functional.avg_pool2d(image.to(next(self.parameters()).dtype), self.architecture.shrink)
        return (pixels - PIXEL_CENTRE) / PIXEL_SCALE


class TimmEncoder(StudentEncoder):
    """An encoder that can start from timm's weights of the same name."""

    @abstractmethod
    def state_from_timm(self, published: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This encoder's state out of timm's: the colour stem folded to one channel, no classifier."""


def with_grey_stem(state: Mapping[str, Tensor], weight: str, mean: str) -> dict[str, Tensor]:
    """A state whose first convolution reads one channel, normalised as here, where timm's reads three colours.

    The fold is exact but for the outermost pixels: the published stem pads with the mean grey of each colour, ours with
    the middle grey.

    Args:
        state: Holds timm's first convolution; one that does not is returned as it is.
        weight: Name of that convolution's weight, [C, 3, k, k].
        mean: Name of the running mean [C] of the normalisation behind it.
    """
    folded = dict(state)
    if weight in folded and mean in folded:
        per_colour = folded[weight] / torch.tensor(IMAGENET_DEVIATION).view(1, 3, 1, 1)
        folded[weight] = per_colour.sum(dim=1, keepdim=True) * (PIXEL_SCALE / 255.0)
        offset = PIXEL_CENTRE / 255.0 - torch.tensor(IMAGENET_MEAN)
        folded[mean] = folded[mean] - (per_colour.sum(dim=(2, 3)) * offset).sum(dim=1)
    return folded
