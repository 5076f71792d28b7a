"""Step `distil`: a small student learns from the labels and from all that the teachers say of the same pictures."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from appliance.domain.errors import SettingsError
from export.device import training_device
from export.ensemble import Member, ensemble_from_files
from export.images import ImageSet
from export.learning import Batch, Training, memory_for, supervised_loss, train, upsampled
from export.pretrained import load_published
from export.recipe import PIECES, Recipe, StudentSection
from export.soft_labels import Adviser, with_soft_labels
from export.student import MultiTaskNet, Outputs, architecture_named

WEIGHTS = "student.safetensors"
HARDLY = 0.1
"""A piece with less lung than this lies outside."""
OCCLUDED_MOST = 0.25
"""The largest share of all pieces that is blanked for teachers and student alike."""


class _Projected(nn.Module):
    """The student beside the projection that compares its embedding with the teachers'; only the student ships."""

    def __init__(self, core: MultiTaskNet, teacher_width: int) -> None:
        super().__init__()
        self.core = core
        self.projection = nn.Linear(core.encoder.architecture.embedding, teacher_width)


def distil(
    recipe: Recipe,
    data: ImageSet,
    teachers: Sequence[Member],
    out: Path,
    say: Callable[[str], None],
    *,
    encoder: Path | None = None,
    advisers: Sequence[Adviser] = (),
) -> None:
    """Train the student of the recipe and write its weights to `<out>/student.safetensors`.

    Without any weight on what the teachers say it learns from the labels alone, of pictures that are blanked as the
    section says: outside the lungs that the teachers outline.

    Args:
        recipe: Its `student` section decides everything.
        data: The prepared radiographs; those of the split `train` are learned from.
        teachers: They answer together; the first training of the second may be where the student starts.
        out: Folder to work in; holds a checkpoint until the training is finished.
        say: Told about progress.
        encoder: What foundation teachers taught the encoder before; where None, it starts as the recipe says.
        advisers: Foundation teachers that classify, whose word is heard in the triage logits.

    Raises:
        SettingsError: The student is to start from a teacher of another architecture, or the GPU's memory is too small.
    """
    torch.manual_seed(recipe.pack.seed)
    expert = ensemble_from_files(teachers)
    with memory_for("student", recipe.student):
        expert.to(training_device())
        for adviser in advisers:
            adviser.teacher.to(training_device())
    student = MultiTaskNet(architecture_named(recipe.student.architecture))
    if encoder is not None:
        student.encoder.load_state_dict(load_file(encoder))
    elif recipe.student.starts_from_second_teacher:
        architecture, weights = teachers[recipe.teacher.trainings]
        if architecture != recipe.student.architecture:
            raise SettingsError(
                f"The student {recipe.student.architecture} can't start from a {architecture}.",
                "Set student.starts_from_second_teacher = false, or give both one architecture.",
            )
        student.load_state_dict(load_file(weights))
    else:
        load_published(student.encoder)
    projected = _Projected(student, expert.width)

    section = recipe.student
    taught_at_all = any((section.soft_label_weight, section.feature_weight, section.soft_mask_weight))

    def loss_of(batch: Batch) -> Tensor:
        if not (taught_at_all or section.blanked or section.occluded):
            return supervised_loss(student(batch.image), batch)
        child = (batch.paediatric >= 0).flatten()
        with torch.no_grad():
            shown = occluded(batch.image, child, section.occluded)
            advice = with_soft_labels(expert(shown), len(teachers), shown, advisers)
            seen = blanked_outside(shown, advice.lungs, child, section.blanked)
        outputs = student(seen)
        if not taught_at_all:
            return supervised_loss(outputs, batch)
        taught = taught_loss(outputs, projected.projection(outputs.embedding), advice, section)
        return supervised_loss(outputs, batch) + taught

    run = Training(data, recipe.input, recipe.student, recipe.pack.seed + 1, out, say, "student")
    train(projected, student, run, loss_of, out / WEIGHTS)


def occluded(images: Tensor, chosen: Tensor, share: float) -> Tensor:
    """Blank pieces anywhere, lungs too, as `attribution` does one at a time: teachers and student see the same.

    The student learns what its teachers say of a picture that lacks a piece of lung.

    Args:
        images: uint8 [N, 1, 512, 512].
        chosen: bool [N]: pictures that may be blanked.
        share: Of these, how many are; in each, a share of all pieces that is drawn evenly up to `OCCLUDED_MOST`.
    """
    if not share:
        return images
    return _blanked(images, _drawn(images, chosen, share, OCCLUDED_MOST))


def blanked_outside(images: Tensor, lungs: Tensor, chosen: Tensor, share: float) -> Tensor:
    """Blank pieces outside the lungs, for the student alone: what lies there should not decide.

    Args:
        images: uint8 [N, 1, 512, 512].
        lungs: Logits of the teachers' outlines [N, 1, h, w].
        chosen: bool [N]: pictures that may be blanked.
        share: Of these, how many are; in each, a share of the pieces with hardly any lung that is drawn evenly: also
            few, because `attribution` asks about whole pictures.
    """
    if not share:
        return images
    area = functional.adaptive_avg_pool2d(torch.sigmoid(lungs.float()), PIECES)
    return _blanked(images, (area < HARDLY) & _drawn(images, chosen, share, 1.0))


def _drawn(images: Tensor, chosen: Tensor, share: float, most: float) -> Tensor:
    """Which pieces are blanked, bool [N, 1, PIECES, PIECES]: of each picture that is, a share up to `most`."""
    one = (len(images), 1, 1, 1)
    rate = torch.rand(one, device=images.device) * most * (torch.rand(one, device=images.device) < share)
    return (torch.rand(len(images), 1, PIECES, PIECES, device=images.device) < rate) & chosen[:, None, None, None]


def _blanked(images: Tensor, pieces: Tensor) -> Tensor:
    """Pictures whose pieces, bool [N, 1, PIECES, PIECES], take the picture's median."""
    where = functional.interpolate(pieces.float(), size=images.shape[-2:], mode="nearest") > 0
    return torch.where(where, images.flatten(1).median(dim=1).values[:, None, None, None], images)


def taught_loss(outputs: Outputs, projection: Tensor, advice: Outputs, section: StudentSection) -> Tensor:
    """What the teachers add to the labels: probabilities, the direction of their embedding, lung masks."""
    soft = soft_label_loss(outputs.adult, advice.adult) + soft_label_loss(outputs.paediatric, advice.paediatric)
    distance = 1.0 - functional.cosine_similarity(projection.float(), advice.embedding.float()).mean()
    side = outputs.lungs.shape[-1]
    masks = functional.binary_cross_entropy_with_logits(
        upsampled(outputs.lungs, side), torch.sigmoid(upsampled(advice.lungs, side))
    )
    return section.soft_label_weight * soft + section.feature_weight * distance + section.soft_mask_weight * masks


def soft_label_loss(logits: Tensor, advice: Tensor) -> Tensor:
    """Cross-entropy to the teacher's probability.

    Every picture counts, also where the teacher's word is no diagnosis (its adult score of a child): the student
    imitates a function, and the more of it is shown, the less it learns the noise of few labels by heart.
    """
    return functional.binary_cross_entropy_with_logits(logits.float(), torch.sigmoid(advice.float()))
