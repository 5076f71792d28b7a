"""Several teachers as one: their features side by side, their logits averaged."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from appliance.domain.errors import InputError
from export.teachers.contract import Seen, Teacher


class Ensemble(Teacher):
    """Teachers that are asked together: dense maps on the grid of the first, then one behind the other in channels."""

    def __init__(self, name: str, members: Sequence[Teacher]) -> None:
        super().__init__()
        if not members:
            raise InputError(f"The ensemble {name} has no members.", "Name them in the recipe, under `members`.")
        self.name = name
        self.members = nn.ModuleList(members)

    def see(self, images: Tensor) -> Seen:
        """Features of pictures, uint8 [N, 1, rows, columns]."""
        seen = [teacher.see(images) for teacher in self._each()]
        grid = _size(seen[0].dense)
        dense = [resized(each.dense, grid) for each in seen]
        return Seen(torch.cat(dense, dim=1), torch.cat([each.pooled for each in seen], dim=1), self._logits(seen))

    def masks(self, images: Tensor, boxes: Tensor) -> Tensor | None:
        """The mean of the masks' logits of the members that outline, at the resolution of the first of them."""
        found = [mask for each in self._each() if (mask := each.masks(images, boxes)) is not None]
        if not found:
            return None
        return torch.stack([resized(mask, _size(found[0])) for mask in found]).mean(dim=0)

    def _each(self) -> list[Teacher]:
        return [member for member in self.members if isinstance(member, Teacher)]

    def _logits(self, seen: Sequence[Seen]) -> Tensor | None:
        logits = [each.logits for each in seen if each.logits is not None]
        if not logits:
            return None
        if len({each.shape[1] for each in logits}) > 1:
            raise InputError(
                f"The members of the ensemble {self.name} have different classes.", "Average classifiers of one task."
            )
        return torch.stack(logits).mean(dim=0)


def resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps [N, C, h, w] on another grid: cells averaged when there are fewer, interpolated when there are more."""
    if maps.shape[-1] > size[-1]:
        return functional.adaptive_avg_pool2d(maps, size)
    return functional.interpolate(maps, size, mode="bilinear", align_corners=False)


def _size(maps: Tensor) -> tuple[int, int]:
    rows, columns = maps.shape[-2:]
    return int(rows), int(columns)
