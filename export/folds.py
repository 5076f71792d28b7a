"""Cross-validation over patients: a stage is trained without a fold of the NIH patients and then asked about them.

What a recipe should be is chosen so: on patients of `train` and `tune`, never on those of `val`, which are neither
learned from nor looked at here.
"""

import dataclasses
import tomllib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from appliance.domain.errors import SettingsError
from export.device import training_device
from export.ensemble import ensemble_from_files
from export.folds_training import LEFT_OUT, STAGES, Folds, Net, folds_of, nets_of, without
from export.metrics import Floats
from export.operating import Labelled, labelled
from export.predictions import Predictions, predict, teacher_says
from export.recipe import Recipe, as_json, check_trained
from export.shortcuts import feature_rows, trivial_scores
from export.tasks import ADULT
from export.toml_table import section_from_table

AS_IT_IS, TRIVIAL, TEACHERS = "recipe", "trivial classifier", "teachers"


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
    result = dataclasses.replace(recipe, **sections)
    check_trained(result)
    return result


def asked_out_of_fold(recipe: Recipe, folds: Folds) -> list[Labelled]:
    """What the trained stage says of every adult of the NIH, each asked of trainings without the patient: by repeat.

    Where a teacher is trained several times, its trainings answer together, as they teach.
    """
    return [_asked(recipe, folds, nets) for nets in _together(recipe, folds)]


def teachers_out_of_fold(recipe: Recipe, folds: Folds) -> list[Labelled]:
    """The same of what the students learned from: of all teachers of each student together."""
    return [
        _asked(recipe, folds, [[teacher for net in nets for teacher in net.teachers] for nets in students])
        for students in _together(recipe, folds)
    ]


def _together(recipe: Recipe, folds: Folds) -> list[list[list[Net]]]:
    """The trainings of the stage that answer together, by repeat and fold."""
    nets = nets_of(recipe, folds)
    return [
        [[net for net in nets if (net.repeat, net.fold) == (repeat, fold)] for fold in range(folds.count)]
        for repeat in range(folds.seeds)
    ]


def _asked(recipe: Recipe, folds: Folds, together: list[list[Net]]) -> Labelled:
    """The answers of one ensemble for each fold; patients are dealt alike in every repeat."""
    persons = folds_of(folds.data, folds.count, recipe.pack.seed)
    parts: list[Predictions] = []
    for fold, nets in zip(persons, together, strict=True):
        ensemble = ensemble_from_files([net.member(folds) for net in nets]).to(training_device())
        data = without(folds.data, fold)
        parts.append(predict(teacher_says(ensemble, recipe.data.mask_side), data, data.select(split=LEFT_OUT)))
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
