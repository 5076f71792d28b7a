"""The shelf of teachers: kinds by name, built from what the recipe says of them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from appliance.domain.errors import SettingsError
from export.recipe_foundation import FoundationTeacher
from export.teachers.biomedclip import BiomedClip
from export.teachers.checkpoints import Checkpoint
from export.teachers.contract import Teacher
from export.teachers.ensemble import Ensemble
from export.teachers.medsam import MedSam
from export.teachers.rad_dino import RadDino
from export.teachers.site_classifier import SiteClassifier
from export.teachers.timm_model import TimmModel
from export.teachers.transformers_model import TransformersModel

KINDS: Mapping[str, Callable[[Checkpoint, str], Teacher]] = {
    "rad-dino": lambda checkpoint, _: RadDino(checkpoint),
    "medsam": lambda checkpoint, _: MedSam(checkpoint),
    "biomedclip": lambda checkpoint, _: BiomedClip(checkpoint),
    "timm": TimmModel,
    "transformers": lambda checkpoint, _: TransformersModel(checkpoint),
    "classifier": SiteClassifier,
}
ENSEMBLE = "ensemble"


def teacher_from_recipe(section: FoundationTeacher, others: Sequence[FoundationTeacher], checkpoints: Path) -> Teacher:
    """Load one teacher, in evaluation mode and without gradients.

    Args:
        section: What the recipe says of it.
        others: All teachers of the recipe, of which an ensemble names its members.
        checkpoints: The folder that holds each teacher's own.

    Raises:
        SettingsError: An unknown kind, or an ensemble of what is not there.
        InputError: A checkpoint is missing, altered, damaged, or of another layout.
    """
    teacher = _built(section, {each.name: each for each in others}, checkpoints)
    teacher.eval()
    teacher.requires_grad_(requires_grad=False)
    return teacher


def checkpoint_of(section: FoundationTeacher, checkpoints: Path) -> Checkpoint:
    """The files that a recipe's teacher is read from."""
    folder = checkpoints / section.checkpoint
    return Checkpoint(section.name, section.kind, folder, section.digests, section.licence)


def _built(section: FoundationTeacher, known: Mapping[str, FoundationTeacher], checkpoints: Path) -> Teacher:
    if section.kind == ENSEMBLE:
        for member in section.members:
            if member not in known or known[member].kind == ENSEMBLE:
                raise SettingsError(
                    f"The ensemble {section.name} names the member {member!r}.",
                    "Members are other teachers of the recipe, and no ensembles.",
                )
        return Ensemble(section.name, [_built(known[member], known, checkpoints) for member in section.members])
    build = KINDS.get(section.kind)
    if build is None:
        raise SettingsError(
            f"The teacher {section.name} is of the unknown kind {section.kind!r}.",
            f"Known: {', '.join((*KINDS, ENSEMBLE))}.",
        )
    checkpoint = checkpoint_of(section, checkpoints)
    checkpoint.check()
    return build(checkpoint, section.model)
