"""The line of steps of one recipe, from images to a signed pack."""

import shutil
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from appliance.domain.errors import InputError
from export.artefacts import artefact_digest, digest_of_values, file_sha256, read_json, run_step
from export.attribution import Attribution
from export.calibrate import calibrate
from export.data import samples_from_csv
from export.distil import WEIGHTS as STUDENT
from export.distil import distil
from export.ensemble import Member
from export.folds_report import cross_validate
from export.folds_training import Folds
from export.foundation import AGGLOMERATE, Folders, learn_from_foundations, learned_already
from export.golden import make_golden
from export.images import UNREADABLE, ImageSet, image_set, left_out, prepare, source_digests
from export.measurement import ENCODERS, Inputs
from export.negatives import dicom_digest, gather, unread_in_words
from export.pack import Parts, pack
from export.progress import Progress
from export.quantise_search import search_precision
from export.ranks import Ranks
from export.recipe import Recipe, as_json, recipe_and_bytes
from export.runner import Runner
from export.soft_labels import advised_by, advisers_from_recipe
from export.tasks import task_texts
from export.teach import SECOND, teach_all, weights_in
from export.to_engine import library_versions, to_engine
from export.to_onnx import export_encoder, to_onnx
from export.tune_attribution import attribution_on_tune
from export.verify import verify

STEP_VERSIONS = {
    "data": 3,
    "negatives": 1,
    "teachers": 2,
    "second_teacher": 1,
    "distil": 4,
    "calibrate": 2,
    "to_onnx": 2,
    "quantise": 6,
    "to_engine": 2,
    "golden": 2,
    "verify": 7,
}
"""Raise one when its step's code makes something else of the same inputs."""
Made = tuple[object, ...]
"""What a step is made of, in its key."""


class Line:
    """The line of steps of one recipe on one data folder: each done when its inputs changed, else skipped.

    Args:
        recipe_file: The recipe.
        data: Folder with `cxr` (or its content) and, beside it, `dicom`.
        out: Folder of all artefacts; the pack ends in `<out>/<name>`.
        progress: Told how far each step is.
        checkpoints: Folder of the foundation teachers' files, for a recipe that has such teachers.
    """

    def __init__(
        self, recipe_file: Path, data: Path, out: Path, progress: Progress, *, checkpoints: Path | None = None
    ) -> None:
        self.recipe, self.recipe_text = recipe_and_bytes(recipe_file)
        self.radiographs = data / "cxr" if (data / "cxr").is_dir() else data
        self.root = out / f"{self.recipe.pack.name}.steps"
        self.pack = out / self.recipe.pack.name
        self.checkpoints = checkpoints
        self.progress = progress
        self.say = progress.say
        self.root.mkdir(parents=True, exist_ok=True)

    def run(self, private_key: Path) -> str:
        """Run every step and return the pack's digest.

        Raises:
            InsiteError: Bad data, or a gate that refuses; what is finished stays, and is not done again.
        """
        recipe, values = self.recipe, as_json(self.recipe)
        seed = recipe.pack.seed
        data = self.prepared()
        encoder, weights = self.agglomerated(data) if recipe.foundation else ("", None)
        negatives = self._gathered(data)
        teacher = self._step(
            "teachers",
            self._taught_by("teacher", data),
            lambda out: teach_all(recipe, recipe.teacher, seed, self._pictures(), out=out, say=self.say),
        )
        second = self._step(
            "second_teacher",
            self._taught_by("second_teacher", data),
            lambda out: teach_all(
                recipe, recipe.second_teacher, seed + SECOND, self._pictures(), out=out, say=self.say
            ),
        )
        student = self._step(
            "distil",
            self._distilled_from((teacher, second), encoder),
            lambda out: self._distil(out, weights),
        )
        calibrated = self._step("calibrate", (student, negatives), self._calibrate)
        graphs = self._step("to_onnx", (calibrated, recipe.data.mask_side), self._to_onnx)
        quantised = self._step("quantise", (graphs, data, values["quantise"]), self._quantise)
        engines = self._step(
            "to_engine",
            (quantised, library_versions()),
            lambda out: to_engine(self._of("quantise"), out, self.say),
        )
        golden = self._step("golden", (quantised, teacher, second), self._golden)
        sections = ("pack", "operating", "gate")
        measured = (quantised, engines, golden, teacher, second, *(values[name] for name in sections))
        self._step("verify", measured, self._verify, read=digest_of_values(self.sources))
        self.say("pack")
        manifest = pack(
            recipe,
            self.recipe_text,
            Parts(*(self._of(step) for step in ("quantise", "golden", "to_engine", "verify"))),
            private_key=private_key,
            out=self.pack,
        )
        return manifest.digest

    def prepared(self) -> str:
        """Do the step `data` and return its digest."""
        digest = self._step(
            "data",
            self._prepared_from(),
            lambda out: prepare(self.recipe, self.radiographs, out),
            read=digest_of_values(self.sources),
        )
        unreadable = self._of("data") / UNREADABLE
        if count := len(read_json(unreadable)):
            self.say(left_out(count, unreadable))
        return digest

    @cached_property
    def sources(self) -> dict[str, dict[str, Any]]:
        """What the radiographs and masks hold, by data set; the files are read once."""
        samples = samples_from_csv(self._labels(), self.recipe.data, self.recipe.pack.seed, self.recipe.source)
        return source_digests(samples, self.radiographs)

    def _labels(self) -> Path:
        labels = self.radiographs / "labels.csv"
        if not labels.is_file():
            raise InputError(f"There is no {labels}.", "Give the folder that holds labels.csv, or its parent.")
        return labels

    def agglomerated(self, data: str, ranks: Ranks | None = None) -> tuple[str, Path]:
        """Let the encoder learn from the foundation teachers; return the artefact's digest and the weights."""
        return learn_from_foundations(self.recipe, data, Folders(self.root, self.checkpoints), self.progress, ranks)

    def taught(self) -> tuple[str, str, str]:
        """Digests of the pictures and of both teachers, which are there and are what `run` would make now.

        Raises:
            InputError: One of them is not: it was never made, or of another recipe or other data.
        """
        data = self._found("data", self._prepared_from(), digest_of_values(self.sources))
        first, second = (
            self._found(step, self._taught_by(section, data))
            for section, step in (("teacher", "teachers"), ("second_teacher", "second_teacher"))
        )
        return data, first, second

    def _student(self) -> Path:
        """The weights of the student, which is there and is what `run` would make now."""
        data, *teachers = self.taught()
        encoder = learned_already(self.recipe, data, self.root) if self.recipe.foundation else ""
        if encoder is None:
            raise self._untrained(AGGLOMERATE)
        self._found("distil", self._distilled_from(teachers, encoder))
        return self._of("distil") / STUDENT

    def _prepared_from(self) -> Made:
        values, named = as_json(self.recipe), [[source.title, source.name] for source in self.recipe.source]
        labels = file_sha256(self._labels())
        return values["data"], values["input"], self.recipe.pack.seed, labels, *([named] if named else [])

    def _taught_by(self, section: str, data: str) -> Made:
        return data, as_json(self.recipe)[section], self.recipe.pack.seed

    def _distilled_from(self, teachers: Sequence[str], encoder: str) -> Made:
        return (
            *teachers,
            as_json(self.recipe)["student"],
            self.recipe.pack.seed,
            *([encoder] if encoder else []),
            *advised_by(self.recipe),
        )

    def _step(self, name: str, inputs: Made, work: Callable[[Path], None], read: str = "") -> str:
        self.say(name)
        return run_step(self.root, name, _key(name, inputs), work, read)

    def _found(self, name: str, inputs: Made, read: str = "") -> str:
        """The digest of a finished step, which is not done where it is not there."""
        digest = artefact_digest(self._of(name), _key(name, inputs), read)
        if digest is None:
            raise self._untrained(name)
        return digest

    def _untrained(self, step: str) -> InputError:
        return InputError(
            f"{self._of(step)} is not there, or was made with another recipe or other data.",
            "Train it first: `insite-export run`, with the same recipe, DATA and OUT.",
        )

    def _gathered(self, data: str) -> str:
        """Do the step `negatives` and return its digest; say which DICOM files it could not read."""
        recipe, folder = self.recipe, self.radiographs.parent
        digest = self._step(
            "negatives",
            (data, as_json(recipe)["guard"]),
            lambda out: gather(recipe, folder, self._of("data"), out),
            read=dicom_digest(folder / "dicom"),
        )
        if said := unread_in_words(self._of("negatives")):
            self.say(said)
        return digest

    def folds(self, stage: str, counts: tuple[int, int], changes: Sequence[str], jobs: int = 1) -> dict[str, Any]:
        """Cross-validate a stage as it is and with each of the changes; `counts` are folds and trainings in each.

        `jobs` nets are trained at a time, on the GPU where there is one.

        Raises:
            InsiteError: Bad data, an unknown stage, or a change that does not fit.
        """
        root = self.root.with_suffix(".folds")
        root.mkdir(exist_ok=True)
        digest = self.prepared()
        trials = Folds(stage, *counts, self._of("data"), digest, root, STEP_VERSIONS, jobs)
        return cross_validate(self.recipe, changes, trials, self.radiographs, self.say)

    def attribution(self, tasks: Sequence[str], *, teachers: bool) -> dict[str, Attribution]:
        """Where the decisions of the trained student come from on the patients of `tune`; of its teachers, too.

        Raises:
            InsiteError: Bad data, an unknown task, or nets that are not trained yet, or not with this recipe and data.
        """
        nets = {"student": (self.recipe.student.architecture, self._student())}
        if teachers:
            nets |= {f"teacher {number}": member for number, member in enumerate(self._teachers(), start=1)}
        return attribution_on_tune(self.recipe, self._pictures(), nets, tasks)

    def forget(self) -> None:
        """Throw every artefact of this recipe away, finished or not."""
        shutil.rmtree(self.root)
        self.root.mkdir()

    def _of(self, step: str) -> Path:
        return self.root / step

    def _pictures(self) -> ImageSet:
        return image_set(self._of("data"))

    def _teachers(self) -> list[Member]:
        return teachers_of(self.recipe, self.root)

    def _distil(self, out: Path, encoder: Path | None) -> None:
        advisers = advisers_from_recipe(self.recipe, self.checkpoints)
        pictures, teachers = self._pictures(), self._teachers()
        distil(self.recipe, pictures, teachers, out, self.say, encoder=encoder, advisers=advisers)

    def _calibrate(self, out: Path) -> None:
        recipe, student = self.recipe, self._of("distil") / STUDENT
        with TemporaryDirectory() as scratch:
            export_encoder(recipe.student.architecture, recipe.input, student, Path(scratch))
            encoder = Runner(Path(scratch), ENCODERS["fp32"], ())
            calibrate(recipe, self._of("data"), self._of("negatives"), student, encoder=encoder, out=out, say=self.say)

    def _to_onnx(self, out: Path) -> None:
        recipe = self.recipe
        student, calibrated = self._of("distil") / STUDENT, self._of("calibrate")
        to_onnx(
            recipe.student.architecture, recipe.input, recipe.data.mask_side, student, calibration=calibrated, out=out
        )

    def _quantise(self, out: Path) -> None:
        search_precision(self.recipe, self._pictures(), self._of("to_onnx"), out=out, say=self.say)

    def _golden(self, out: Path) -> None:
        tasks = [task.name for task in task_texts()]
        make_golden(self.recipe.input, ENCODERS, tasks, self._of("quantise"), teachers=self._teachers(), out=out)

    def _verify(self, out: Path) -> None:
        inputs = Inputs(
            self.radiographs,
            self._of("data"),
            self._of("negatives"),
            self._teachers(),
            self._of("quantise"),
            self._of("to_engine"),
            self.sources,
        )
        verify(self.recipe, inputs, out, self.say)


def _key(name: str, inputs: Made) -> str:
    return digest_of_values(name, STEP_VERSIONS[name], inputs)


def teachers_of(recipe: Recipe, steps: Path) -> list[Member]:
    """Architecture and weights of every training of both teachers, in the folder of the steps' artefacts."""
    sections = ((recipe.teacher, "teachers"), (recipe.second_teacher, "second_teacher"))
    return [
        (section.architecture, weights_in(steps / step, training))
        for section, step in sections
        for training in range(section.trainings)
    ]
