"""Foundation teachers that classify: what they say of a task is a soft label of the student's triage head."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from appliance.domain.errors import InputError
from export.recipe import Recipe
from export.recipe_foundation import FoundationTeacher
from export.student import Outputs
from export.tasks import ADULT, PAEDIATRIC
from export.teachers.contract import Teacher
from export.teachers.shelf import teacher_from_recipe

HEADS = {ADULT: "adult", PAEDIATRIC: "paediatric"}
_ASKED = ("name", "kind", "model", "members", "digests", "answers", "exclusive")
"""Of a teacher in the recipe, what decides its answers."""


@dataclass(frozen=True, eq=False, slots=True)
class Adviser:
    """A teacher with what the recipe says of its classes."""

    section: FoundationTeacher
    teacher: Teacher

    def log_odds(self, images: Tensor) -> dict[str, Tensor]:
        """Log-odds [N, 1] of every task that it answers, for pictures uint8 [N, 1, rows, columns].

        Raises:
            InputError: It has no such class, or one alone that excludes others.
        """
        section, logits = self.section, self.teacher.see(images).logits
        classes = 0 if logits is None else logits.shape[1]
        if logits is None or max(section.answers.values()) >= classes or (section.exclusive and classes == 1):
            raise InputError(
                f"The teacher {section.name} has {classes} classes, and can't answer {dict(section.answers)} with them"
                f"{', each excluding the others' if section.exclusive else ''}.",
                "Correct `answers` and `exclusive` in the recipe; classes count from 0.",
            )
        return {task: _log_odds(logits.float(), number, section) for task, number in section.answers.items()}


def _log_odds(logits: Tensor, number: int, section: FoundationTeacher) -> Tensor:
    own = logits[:, number : number + 1]
    if not section.exclusive:
        return own
    others = torch.cat([logits[:, :number], logits[:, number + 1 :]], dim=1)
    return own - torch.logsumexp(others, dim=1, keepdim=True)


def advised_by(recipe: Recipe) -> list[dict[str, Any]]:
    """All that decides what the advisers say, as plain values for a digest; of ensembles, their members too."""
    asked = [each for each in recipe.foundation if each.answers]
    members = [each for each in recipe.foundation if any(each.name in ensemble.members for ensemble in asked)]
    return [{key: getattr(each, key) for key in _ASKED} for each in (*asked, *members)]


def advisers_from_recipe(recipe: Recipe, checkpoints: Path | None) -> tuple[Adviser, ...]:
    """Load the teachers that answer for a task; none where there are no foundation teachers.

    Raises:
        InputError: A checkpoint is missing, altered, damaged, or of another layout.
    """
    if checkpoints is None:
        return ()
    return tuple(
        Adviser(each, teacher_from_recipe(each, recipe.foundation, checkpoints))
        for each in recipe.foundation
        if each.answers
    )


def with_soft_labels(advice: Outputs, voices: int, images: Tensor, advisers: Sequence[Adviser]) -> Outputs:
    """What the recipe's own teachers say, with the advisers' word in the triage logits: every teacher is one voice.

    Args:
        advice: The mean of the recipe's own teachers; returned as it is where there are no advisers.
        voices: How many those are.
        images: What all were shown, uint8 [N, 1, rows, columns].
        advisers: Those that answer beside them.
    """
    said = [each.log_odds(images) for each in advisers]
    heads = {}
    for task, head in HEADS.items():
        heard = [each[task] for each in said if task in each]
        if heard:
            total = voices * getattr(advice, head) + torch.stack(heard).sum(dim=0)
            heads[head] = total / (voices + len(heard))
    return dataclasses.replace(advice, **heads) if heads else advice
