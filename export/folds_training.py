"""What cross-validation trains: each net of a recipe without a fold of the NIH patients, several of them at a time."""

import dataclasses
import hashlib
import multiprocessing
import os
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from appliance.domain.errors import SettingsError
from export.artefacts import artefact_digest, digest_of_values, run_step
from export.distil import WEIGHTS as STUDENT
from export.distil import distil
from export.ensemble import Member
from export.images import ImageSet, image_set
from export.recipe import Recipe, as_json
from export.teach import ANOTHER, SECOND, teach
from export.teach import WEIGHTS as TEACHER

NIH = "nih"
LEFT_OUT, ASIDE = "left out", "aside"
"""Splits of the fold that is asked, and of the validation images, which nothing here selects."""
FEWEST = 2
NEXT = 10_007
"""Between the seeds of two repeats: far from what teachers, student and phases add to one."""
STAGES = ("teacher", "second_teacher", "student")
STEPS = {"teacher": "teachers", "second_teacher": "second_teacher", "student": "distil"}
"""The step of `run` that trains each stage."""


@dataclass(frozen=True, eq=False)
class Folds:
    """How a recipe is tried: what is trained, on what, in how many folds.

    Attributes:
        stage: One of `STAGES`; the student's teachers are trained without the fold, too.
        count: Number of folds.
        seeds: Trainings of each fold, of equal recipe and other chance.
        pictures: Folder of the prepared radiographs, of all splits.
        pictures_digest: The digest of that artefact.
        root: Folder for the trainings, each of which is a step that is not done again.
        versions: Of the steps of `run`, by name.
        jobs: How many nets are trained at a time.
    """

    stage: str
    count: int
    seeds: int
    pictures: Path
    pictures_digest: str
    root: Path
    versions: Mapping[str, int]
    jobs: int = 1

    @cached_property
    def data(self) -> ImageSet:
        """The prepared radiographs."""
        return image_set(self.pictures)


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


@dataclass(frozen=True, eq=False, slots=True)
class Net:
    """One net to be trained: of a recipe, a stage, a training of that stage, without a fold, in a repeat."""

    recipe: Recipe
    stage: str
    training: int
    fold: int
    repeat: int

    @property
    def seeded(self) -> Recipe:
        """The recipe with the seed of the repeat."""
        pack = self.recipe.pack
        return dataclasses.replace(self.recipe, pack=dataclasses.replace(pack, seed=pack.seed + NEXT * self.repeat))

    @property
    def teachers(self) -> list["Net"]:
        """The nets that teach it, in the order in which `distil` wants them."""
        if self.stage != "student":
            return []
        return [
            dataclasses.replace(self, stage=stage, training=training)
            for stage in STAGES[:-1]
            for training in range(getattr(self.recipe, stage).trainings)
        ]

    def name(self, folds: Folds) -> str:
        """Its artefact: nets of equal inputs have one, whatever else their recipes differ in."""
        return f"{self.stage}-{self.digest(folds)[:12]}"

    def digest(self, folds: Folds) -> str:
        """Of all that goes into it."""
        section = {name: value for name, value in as_json(self.recipe)[self.stage].items() if name != "trainings"}
        place = (self.fold, self.training, self.seeded.pack.seed, folds.count, self.recipe.pack.seed)
        made = (self.stage, folds.versions[STEPS[self.stage]], section, as_json(self.recipe)["input"])
        return digest_of_values(made, place, folds.pictures_digest, [net.digest(folds) for net in self.teachers])

    def member(self, folds: Folds) -> Member:
        """Its architecture and where its weights lie."""
        weights = STUDENT if self.stage == "student" else TEACHER
        return getattr(self.recipe, self.stage).architecture, folds.root / self.name(folds) / weights


def nets_of(recipe: Recipe, folds: Folds) -> list[Net]:
    """The nets whose answers are asked for: every training of the stage, in each fold and repeat."""
    return [
        Net(recipe, folds.stage, training, fold, repeat)
        for repeat in range(folds.seeds)
        for fold in range(folds.count)
        for training in range(getattr(recipe, folds.stage).trainings)
    ]


def train_all(recipes: Iterable[Recipe], folds: Folds, say: Callable[[str], None]) -> None:
    """Train what these recipes need and what is not there yet, `folds.jobs` nets at a time, teachers first."""
    asked = [net for recipe in recipes for net in nets_of(recipe, folds)]
    for nets in ([teacher for net in asked for teacher in net.teachers], asked):
        due = {net.name(folds): net for net in nets}
        due = {name: net for name, net in due.items() if artefact_digest(folds.root / name, net.digest(folds)) is None}
        if due:
            say(f"{len(due)} nets to train")
        if folds.jobs == 1:
            for name, net in due.items():
                place = f"training {net.training + 1}, repeat {net.repeat + 1} of {folds.seeds}"
                say(f"{name}: fold {net.fold + 1} of {folds.count}, {place}")
                _train(net, folds, say)
        elif due:
            _train_at_once(due, folds, say)


def _train_at_once(due: Mapping[str, Net], folds: Folds, say: Callable[[str], None]) -> None:
    """Train nets in processes of their own; each opens the pictures itself, and they share the CPU's threads.

    When one fails, and when this process is interrupted or ends, all end; the next try goes on from their checkpoints.

    Raises:
        SettingsError: A process was ended from outside, or the GPU's memory was full.
    """
    threads = max(1, torch.get_num_threads() // folds.jobs)
    unopened = dataclasses.replace(folds)
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(folds.jobs, multiprocessing.get_context("spawn"), _begin, (threads,)) as pool:
        try:
            begun = {pool.submit(_train, net, unopened, _quiet): name for name, net in due.items()}
            for number, done in enumerate(as_completed(begun), start=1):
                done.result()
                say(f"{begun[done]}: {number} of {len(begun)}")
        except BaseException as error:  # a pool that is left to itself first trains what is queued
            pool.shutdown(wait=False, cancel_futures=True)
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
                process.join()
            if isinstance(error, BrokenProcessPool | torch.OutOfMemoryError):
                raise SettingsError(
                    f"Of {folds.jobs} nets trained at a time one was ended: {error}", "Give fewer jobs, or free memory."
                ) from error
            raise


def _begin(threads: int) -> None:
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that was killed tells nobody; its pool's processes would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _quiet(_: str) -> None:
    """Of many trainings at once nobody reads each step."""


def _train(net: Net, folds: Folds, say: Callable[[str], None]) -> None:
    recipe = net.seeded
    fold = folds_of(folds.data, folds.count, net.recipe.pack.seed)[net.fold]
    data = without(folds.data, fold)
    teachers = [each.member(folds) for each in net.teachers]

    def work(out: Path) -> None:
        if net.stage == "student":
            distil(recipe, data, teachers, out, say)
        else:
            seed = recipe.pack.seed + ANOTHER * net.training + (SECOND if net.stage == "second_teacher" else 0)
            teach(recipe, getattr(recipe, net.stage), seed, data, out=out, say=say)

    run_step(folds.root, net.name(folds), net.digest(folds), work)
