"""MedSAM: the Segment Anything Model fine-tuned on medical images, in the layout of `medsam_vit_b.pth`.

Ma et al., Segment anything in medical images, Nature Communications 2024. The published one is SAM ViT-B at 1024
pixels. Unlike SAM's, its pixels are not standardised but stretched: each picture's range is [0, 1].
"""

import torch
from torch import Tensor, nn

from appliance.domain.errors import InputError
from export.teachers.checkpoints import Checkpoint
from export.teachers.contract import Preparation, Seen, Teacher, prepared
from export.teachers.sam_decoder import PromptEncoder, decoder_from_state
from export.teachers.sam_encoder import SamEncoder, shape_from_state

WEIGHTS = "medsam_vit_b.pth"
LEAST_RANGE = 1e-8
_UNUSED = ("pixel_mean", "pixel_std")
"""SAM's own preprocessing, which MedSAM leaves out; some copies of the checkpoint hold it."""


class _Sam(nn.Module):
    def __init__(self, encoder: SamEncoder, prompts: PromptEncoder, decoder: nn.Module) -> None:
        super().__init__()
        self.image_encoder = encoder
        self.prompt_encoder = prompts
        self.mask_decoder = decoder


class MedSam(Teacher):
    """The published checkpoint as a teacher: dense is the image embedding, pooled its mean; masks by boxes.

    Raises:
        InputError: The file is missing, altered, or not of this layout.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        state = {key: value for key, value in checkpoint.state(WEIGHTS).items() if key not in _UNUSED}
        try:
            shape = shape_from_state(state)
            self.sam = _Sam(SamEncoder(shape), PromptEncoder(shape.outputs), decoder_from_state(state))
        except (KeyError, ValueError, IndexError) as error:
            raise InputError(
                f"{checkpoint.folder / WEIGHTS} is not of the published layout: it lacks {error}.", checkpoint.where()
            ) from error
        checkpoint.fill(self.sam, state, WEIGHTS)
        self.preparation = Preparation(shape.side, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

    def see(self, images: Tensor) -> Seen:
        """Features of pictures, uint8 [N, 1, rows, columns]."""
        dense = self.sam.image_encoder(self.pixels(images))
        return Seen(dense, dense.mean(dim=(2, 3)))

    def masks(self, images: Tensor, boxes: Tensor) -> Tensor:
        """Logits [N, 1, side / 4, side / 4] of what lies in each box [N, 4], given as shares of the picture."""
        dense = self.sam.image_encoder(self.pixels(images))
        prompts = self.sam.prompt_encoder
        prompt = prompts.boxes(boxes, self.preparation.side)
        picture = dense + prompts.no_mask_embed.weight.view(1, -1, 1, 1)
        logits: Tensor = self.sam.mask_decoder(picture, prompts.grid(dense.shape[-1]), prompt)
        return logits

    def pixels(self, images: Tensor) -> Tensor:
        """What the encoder reads, float [N, 3, side, side] with each picture's range stretched to [0, 1]."""
        grey = prepared(images, self.preparation)
        low, high = (torch.amin(grey, dim=(1, 2, 3), keepdim=True), torch.amax(grey, dim=(1, 2, 3), keepdim=True))
        return (grey - low) / (high - low).clamp(min=LEAST_RANGE)
