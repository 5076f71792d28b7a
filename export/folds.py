"""Cross-validation over patients: a stage is trained without a fold of the NIH patients and then asked about them.

What a recipe should be is chosen so: on patients of `train` and `tune`, never on those of `val`, which are neither
learned from nor looked at here.
"""

import dataclasses
import hashlib
import tomllib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from appliance.domain.errors import SettingsError
from export.artefacts import digest_of_values, run_step
from export.distil import WEIGHTS as STUDENT
from export.distil import distil
from export.ensemble import Member, ensemble_from_files
from export.images import ImageSet
from export.metrics import Floats
from export.operating import Labelled, labelled
from export.predictions import Predictions, predict, teacher_says
from export.recipe import Recipe, as_json, section_from_table
from export.shortcuts import feature_rows, trivial_scores
from export.tasks import ADULT
from export.teach import SECOND, teach
from export.teach import WEIGHTS as TEACHER

NIH = "nih"
LEFT_OUT, ASIDE = "left out", "aside"
"""Splits of the fold that is asked, and of the validation images, which nothing here selects."""
FEWEST = 2
NEXT = 10_007
"""Between the seeds of two trainings: far from what teachers, student and phases add to one."""
STAGES = ("teacher", "second_teacher", "student")
STEPS = {"teacher": "teachers", "second_teacher": "second_teacher", "student": "distil"}
"""The step of `run` that trains each stage."""
AS_IT_IS, TRIVIAL = "recipe", "trivial classifier"


@dataclass(frozen=True, eq=False, slots=True)
class Folds:
    """How a recipe is tried: what is trained, on what, in how many folds.

    Attributes:
        stage: One of `STAGES`; the student's teachers are trained without the fold, too.
        count: Number of folds.
        seeds: Trainings of each fold, of equal recipe and other chance.
        data: The prepared radiographs, of all splits.
        data_digest: The digest of their artefact.
        root: Folder for the trainings, each of which is a step that is not done again.
        versions: Of the steps of `run`, by name.
    """

    stage: str
    count: int
    seeds: int
    data: ImageSet
    data_digest: str
    root: Path
    versions: Mapping[str, int]


def changed(recipe: Recipe, change: str) -> Recipe:
    """A recipe with other numbers in its trained sections.

    Args:
        recipe: The recipe.
        change: TOML with dotted keys, divided by commas: `student.steps = 500, student.frozen_blocks = 0`.

    Raises:
        SettingsError: No TOML, another section than `STAGES`, or a key that is unknown or of another type.
    """
    try:
        tables = tomllib.loads("\n".join(change.split(",")))
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"The change {change!r} can't be read: {error}.", "Write student.steps = 500.") from error
    for name in tables:
        if name not in STAGES:
            raise SettingsError(f"The change {change!r} is of no trained section.", f"Those are: {', '.join(STAGES)}.")
    sections = {
        name: section_from_table(name, type(getattr(recipe, name)), as_json(recipe)[name] | table)
        for name, table in tables.items()
    }
    return dataclasses.replace(recipe, **sections)


def folds_of(data: ImageSet, count: int, seed: int) -> list[set[str]]:
    """The NIH patients that are not of `val`, dealt into folds of as many patients, one more or less.

    Raises:
        SettingsError: Fewer than two folds, or a fold in which not both labels are.
    """
    if count < FEWEST:
        raise SettingsError(f"{count} folds leave nothing to learn from.", f"Give at least {FEWEST}.")
    labels: dict[str, set[int | None]] = {}
    for sample in data.samples:
        if sample.dataset == NIH and sample.split != "val":
            labels.setdefault(sample.person, set()).add(sample.adult)
    dealt = sorted(labels, key=lambda person: hashlib.sha256(f"{seed}:{person}".encode()).digest())
    folds = [set(dealt[number::count]) for number in range(count)]
    for fold in folds:
        if not {0, 1} <= set().union(*(labels[person] for person in fold)):
            raise SettingsError(f"Of {count} folds one has not both labels.", "Give fewer folds, or more patients.")
    return folds


def without(data: ImageSet, persons: Collection[str]) -> ImageSet:
    """The same pictures, these persons' as `LEFT_OUT`, those of `val` as `ASIDE`, and all others to learn from."""

    def split(person: str, before: str) -> str:
        if before == "val":
            return ASIDE
        return LEFT_OUT if person in persons else "train"

    samples = tuple(dataclasses.replace(each, split=split(each.person, each.split)) for each in data.samples)
    return dataclasses.replace(data, samples=samples)


def asked_out_of_fold(recipe: Recipe, folds: Folds, say: Callable[[str], None]) -> list[Labelled]:
    """What the stage says of every adult of the NIH, each asked of trainings that did not see the patient: by seed."""
    return [_asked(recipe, folds, number, say) for number in range(folds.seeds)]


def _asked(recipe: Recipe, folds: Folds, repeat: int, say: Callable[[str], None]) -> Labelled:
    """The answers of one training in each fold; patients are dealt alike in every repeat."""
    seeded = dataclasses.replace(recipe, pack=dataclasses.replace(recipe.pack, seed=recipe.pack.seed + NEXT * repeat))
    persons = folds_of(folds.data, folds.count, recipe.pack.seed)
    parts: list[Predictions] = []
    for number, fold in enumerate(persons):
        say(f"fold {number + 1} of {folds.count}, training {repeat + 1} of {folds.seeds}")
        data = without(folds.data, fold)
        net = ensemble_from_files([_trained(seeded, folds, folds.stage, (number, data), say)[-1]])
        parts.append(predict(teacher_says(net, recipe.data.mask_side), data, data.select(split=LEFT_OUT)))
    columns = [[getattr(part, field.name) for part in parts] for field in dataclasses.fields(Predictions)]
    said = Predictions(*(np.concatenate(each) for each in columns))
    everyone = without(folds.data, set().union(*persons))
    return labelled(ADULT, LEFT_OUT, said, everyone, recipe.data.adult_min_age_years)


def trivial_out_of_fold(recipe: Recipe, folds: Folds, radiographs: Path) -> tuple[Floats, NDArray[np.int64]]:
    """Scores [n] of the trivial classifier on the same images in the same order, and each one's fold [n].

    As in the audit, the better of two classifiers is taken in each fold: the shortcut's side.
    """
    persons = folds_of(folds.data, folds.count, recipe.pack.seed)
    everyone = without(folds.data, set().union(*persons))
    samples = [sample for sample in everyone.samples if sample.split == LEFT_OUT and sample.adult is not None]
    features = feature_rows(radiographs, samples)
    labels = np.array([float(sample.adult or 0) for sample in samples])
    scores: list[Floats] = []
    numbers: list[int] = []
    for number, fold in enumerate(persons):
        inside = np.array([sample.person in fold for sample in samples])
        adult = [(s.age or 0.0) >= recipe.data.adult_min_age_years for s in samples if s.person in fold]
        said = trivial_scores(
            features[~inside], labels[~inside], features[inside][adult], labels[inside][adult], recipe.pack.seed
        )
        scores.append(said)
        numbers += [number] * len(said)
    return np.concatenate(scores), np.array(numbers, np.int64)


def _trained(
    recipe: Recipe, folds: Folds, stage: str, fold: tuple[int, ImageSet], say: Callable[[str], None]
) -> list[Member]:
    """The stage's trained net, the last of a list that its teachers begin; `fold` is its number and what is left."""
    number, data = fold
    seed, values = recipe.pack.seed, as_json(recipe)
    teachers: list[Member] = []
    if stage == "student":
        teachers = [_trained(recipe, folds, each, fold, say)[-1] for each in STAGES[:-1]]
    needed = STAGES if stage == "student" else (stage,)
    inputs = [(each, folds.versions[STEPS[each]], values[each]) for each in needed]
    digest = digest_of_values(inputs, seed, folds.data_digest, folds.count, number)

    def work(out: Path) -> None:
        if stage == "student":
            distil(recipe, data, teachers, out, say)
        else:
            section = recipe.teacher if stage == "teacher" else recipe.second_teacher
            teach(recipe, section, seed + (SECOND if stage == "second_teacher" else 0), data, out=out, say=say)

    name = f"{stage}-{digest[:12]}"
    say(name)
    run_step(folds.root, name, digest, work)
    architecture: str = values[stage]["architecture"]
    return [*teachers, (architecture, folds.root / name / (STUDENT if stage == "student" else TEACHER))]
