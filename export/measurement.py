"""Asks teachers, student and each lower precision about the same images, and times INT8: before any judgement."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from export.artefacts import read_json
from export.augment import augmented
from export.ensemble import Member, ensemble_from_files
from export.gate_rules import Accuracy, Quantised, Subgroup
from export.images import ImageSet, image_set
from export.latency import Ratio, compare
from export.metrics import Floats, auc, bootstrap, expected_calibration_error, share_of_auc
from export.operating import Labelled, guard_passes, labelled, operating_points
from export.predictions import Predictions, guard_outputs, predict, teacher_says
from export.recipe import Recipe
from export.runner import Runner
from export.subgroups import is_enough, subgroups
from export.tables import mean_dice, mean_dice_p5
from export.tasks import ADULT, GUARD, PAEDIATRIC, task_texts

ENCODERS = {"int8": "encoder.int8.onnx", "fp32": "encoder.onnx", "fp16": "encoder.fp16.onnx"}
"""The precisions that are measured; INT8 serves before FP32 on a CPU where the figures allow it, FP16 on a GPU."""
VARIANTS_OF_TUNE = 3
LATENCY_BATCHES = (1, 8)


@dataclass(frozen=True, slots=True)
class Inputs:
    """Artefacts that the step reads.

    `radiographs` is the folder with the original files, `sources` what they held, by data set.
    """

    radiographs: Path
    data: Path
    negatives: Path
    teachers: Sequence[Member]
    graphs: Path
    engines: Path
    sources: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, eq=False, slots=True)
class Measured:
    """One precision: its predictions, operating points, and the guard's word on wrong pictures."""

    said: Predictions
    points: dict[str, Any]
    wrong: tuple[Floats, Floats]


@dataclass(frozen=True, eq=False, slots=True)
class Measurement:
    """Everything that was measured, before anything is judged or written."""

    recipe: Recipe
    data: ImageSet
    kinds: Sequence[str]
    by_precision: dict[str, Measured]
    teachers: Predictions
    ratios: dict[int, Ratio]

    def cases(self, task: str, said: Predictions) -> Labelled:
        """The labelled validation images of a task."""
        return labelled(task, "val", said, self.data, self.recipe.data.adult_min_age_years)

    def auc(self, task: str, said: Predictions) -> float:
        """AUC on the validation patients."""
        cases = self.cases(task, said)
        return auc(cases.scores, cases.labels)

    @property
    def models(self) -> dict[str, Predictions]:
        """The teachers, then the student in each precision, as tables name them."""
        names = sorted(self.by_precision, key=lambda name: name != "fp32")
        return {"teachers": self.teachers} | {f"student {name.upper()}": self.by_precision[name].said for name in names}


def measurement_of(recipe: Recipe, inputs: Inputs, say: Callable[[str], None]) -> Measurement:
    """Ask everyone about the tuning and validation images, and time INT8 against FP32."""
    data = image_set(inputs.data)
    indices = data.select(split="tune") + data.select(split="val")
    tasks = [task.name for task in task_texts()]
    listed = read_json(inputs.negatives / "negatives.json")
    by_precision = {}
    for name, file in ENCODERS.items():
        by_precision[name] = _measure(recipe, data, indices, Runner(inputs.graphs, file, tasks), inputs.negatives)
        say(f"{name} measured")
    teachers = predict(teacher_says(ensemble_from_files(inputs.teachers), recipe.data.mask_side), data, indices)
    say("teachers measured")
    kinds = [entry["kind"] for entry in listed if entry["split"] == "val"]
    return Measurement(recipe, data, kinds, by_precision, teachers, _latencies(inputs.graphs, data))


def _measure(recipe: Recipe, data: ImageSet, indices: list[int], runner: Runner, negatives: Path) -> Measured:
    said = predict(runner.each, data, indices)
    listed = read_json(negatives / "negatives.json")
    rng = np.random.default_rng((recipe.pack.seed, 3))
    tune = [index for index in data.select(split="tune") for _ in range(VARIANTS_OF_TUNE)]
    varied = guard_outputs(runner.each, (augmented(data.images[i], None, recipe.input, rng)[0] for i in tune))
    pictures = np.load(negatives / "negatives.npy", mmap_mode="r")
    chosen = [number for number, entry in enumerate(listed) if entry["split"] == "val"]
    wrong = guard_outputs(runner.each, (pictures[number] for number in chosen))
    return Measured(said, operating_points(recipe, data, said, varied), wrong)


def _latencies(graphs: Path, data: ImageSet) -> dict[int, Ratio]:
    fp32, int8 = (Runner(graphs, ENCODERS[name], (), threads=1) for name in ("fp32", "int8"))
    rows = data.select(split="val")
    return {
        batch: compare(fp32, int8, np.stack([data.images[rows[i % len(rows)]] for i in range(batch)])[:, None])
        for batch in LATENCY_BATCHES
    }


def losses_of(measured: Measurement, precision: str) -> Quantised:
    """A precision against FP32; FP16 is for GPUs and not timed on a CPU."""
    full, less = measured.by_precision["fp32"].said, measured.by_precision[precision].said
    return Quantised(
        precision,
        {task: measured.auc(task, full) - measured.auc(task, less) for task in (ADULT, PAEDIATRIC)},
        mean_dice(full, measured.data) - mean_dice(less, measured.data),
        {batch: ratio.median for batch, ratio in measured.ratios.items()} if precision == "int8" else {},
    )


def accuracy_of(measured: Measurement, best: Measured, groups: Sequence[Subgroup]) -> Accuracy:
    """What the gate judges of the precision that serves first."""
    recipe, data = measured.recipe, measured.data
    cases = measured.cases(ADULT, best.said)
    val = [row for row, index in enumerate(best.said.indices) if data.samples[index].split == "val"]
    limits = float(best.points[GUARD]["threshold"]), float(best.points[GUARD]["max_distance"])
    passed = guard_passes(*limits, best.said.guard_score[val], best.said.guard_distance[val])
    made = np.array([not kind.startswith("DICOM") for kind in measured.kinds])
    refused = ~guard_passes(*limits, *best.wrong)
    return Accuracy(
        adult=bootstrap(auc, cases.scores, cases.labels, cases.patients, recipe.pack.seed),
        adult_ece=expected_calibration_error(cases.scores, cases.labels),
        paediatric_auc=measured.auc(PAEDIATRIC, best.said),
        dice=mean_dice(best.said, data),
        dice_p5=mean_dice_p5(best.said, data),
        teacher_adult_auc=measured.auc(ADULT, measured.teachers),
        teacher_dice=mean_dice(measured.teachers, data),
        guard_passes=float(passed.mean()),
        guard_refuses=float(refused[made].mean()),
        subgroups=groups,
    )


def groups_of(measured: Measurement, said: Predictions) -> list[Subgroup]:
    """All adults, and each group of them that has enough images for an AUC."""
    own, theirs = measured.cases(ADULT, said), measured.cases(ADULT, measured.teachers)
    everyone = {"all": [True] * len(own.labels)} | subgroups(own)
    result = []
    for name, chosen in everyone.items():
        mine, taught = own.select(chosen), theirs.select(chosen)
        if is_enough(mine):
            own_area, their_area = (auc(each.scores, each.labels) for each in (mine, taught))
            seed = measured.recipe.pack.seed
            share = share_of_auc(mine.scores, taught.scores, mine.labels, mine.patients, seed)
            result.append(Subgroup(name, len(mine.labels), own_area, their_area, share))
    return result
