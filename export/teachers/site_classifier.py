"""A site's own fine-tuned classifier: what the step `teach` makes, with its triage logits and lung masks."""

import torch
from torch import Tensor

from appliance.domain.errors import InputError
from export.student import MultiTaskNet, architecture_named
from export.teachers.checkpoints import Checkpoint
from export.teachers.contract import Seen, Teacher

WEIGHTS = "teacher.safetensors"
DENSE = 2
"""Which of the encoder's maps is the dense feature: the one at stride 16."""


class SiteClassifier(Teacher):
    """A net of `export/student.py` as a teacher: dense is its map at stride 16; logits are adult and paediatric.

    Args:
        checkpoint: A folder with `teacher.safetensors`.
        model: The name of its architecture.
    """

    def __init__(self, checkpoint: Checkpoint, model: str) -> None:
        super().__init__()
        try:
            architecture = architecture_named(model)
        except InputError as error:
            raise InputError(f"The teacher {checkpoint.name}: {error.message}", error.way_forward) from error
        self.net = MultiTaskNet(architecture)
        checkpoint.fill(self.net, checkpoint.state(WEIGHTS), WEIGHTS)

    def see(self, images: Tensor) -> Seen:
        """Features of pictures, uint8 [N, 1, rows, columns]."""
        embedding, *maps = self.net.encoder(images)
        logits = torch.cat([self.net.adult(embedding), self.net.paediatric(embedding)], dim=1)
        return Seen(maps[DENSE], embedding, logits)

    def masks(self, images: Tensor, boxes: Tensor) -> Tensor:
        """Logits [N, 1, h, w] of the lungs, wherever the boxes lie."""
        del boxes
        outputs = self.net(images)
        lungs: Tensor = outputs.lungs
        return lungs
