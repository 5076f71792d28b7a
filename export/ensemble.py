"""Several teachers as one: the mean of their logits, their embeddings side by side."""

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from export.student import ARCHITECTURES, MultiTaskNet, Outputs, use_channels_last

Member = tuple[str, Path]
"""Architecture and weights of one teacher."""


class Ensemble(nn.Module):
    """Nets of the same tasks that answer together; `width` is the length of the joined embedding."""

    def __init__(self, members: Sequence[MultiTaskNet]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.width = sum(member.encoder.architecture.embedding for member in members)

    def forward(self, image: Tensor) -> Outputs:
        """UINT8 [N, 1, 512, 512] to the members' mean logits and joined embeddings [N, width].

        Lungs come in the resolution of the coarsest member.
        """
        said = [member(image) for member in self.members]
        side = min(each.lungs.shape[-1] for each in said)
        lungs = [nn.functional.adaptive_avg_pool2d(each.lungs, side) for each in said]
        return Outputs(
            torch.stack([each.adult for each in said]).mean(dim=0),
            torch.stack([each.paediatric for each in said]).mean(dim=0),
            torch.stack(lungs).mean(dim=0),
            torch.cat([each.embedding for each in said], dim=1),
        )


def ensemble_from_files(members: Sequence[Member]) -> Ensemble:
    """The trained teachers, ready to be asked."""
    nets = []
    for architecture, weights in members:
        net = MultiTaskNet(ARCHITECTURES[architecture])
        net.load_state_dict(load_file(weights))
        nets.append(net)
    ensemble = Ensemble(nets)
    use_channels_last(ensemble)
    return ensemble.eval()
