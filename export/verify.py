"""Step `verify`: teacher, student and quantised student on the same held-out patients, against the recipe's gate."""

import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from appliance.domain.manifest import Validation
from export.artefacts import read_json, write_json
from export.augment import augmented
from export.ensemble import Member, ensemble_from_files
from export.gate import PASS, Rule, verdict
from export.images import ImageSet, image_set
from export.latency import Ratio, compare
from export.metrics import Floats, auc, bootstrap
from export.operating import guard_passes, labelled, operating_points
from export.predictions import Predictions, guard_outputs, predict, teacher_says
from export.recipe import Recipe
from export.runner import Grey, Outputs, Runner
from export.shortcuts import disturbances, feature_rows, matched_auc, trivial_scores
from export.tables import (
    Table,
    comparison_table,
    guard_tables,
    latency_table,
    lung_table,
    mean_dice,
    triage_table,
)
from export.tasks import ADULT, GUARD, PAEDIATRIC, task_texts

ENCODERS = {"int8": "encoder.int8.onnx", "fp32": "encoder.onnx"}
"""In order of preference, where the figures allow it."""
VARIANTS_OF_TUNE = 3
LATENCY_BATCHES = (1, 8)


@dataclass(frozen=True, slots=True)
class Inputs:
    """Artefacts that the step reads; `radiographs` is the folder with the original files."""

    radiographs: Path
    data: Path
    negatives: Path
    teachers: Sequence[Member]
    graphs: Path


@dataclass(frozen=True, eq=False, slots=True)
class Measured:
    """One precision: its predictions, operating points, and the guard's word on wrong pictures."""

    said: Predictions
    points: dict[str, Any]
    wrong: tuple[Floats, Floats]


def verify(recipe: Recipe, inputs: Inputs, out: Path, say: Callable[[str], None]) -> None:
    """Measure, judge, and write `gate-report.json`, `operating-points.json` and `precisions.json`.

    A pack that claims to be validated is judged by every rule; one that claims less by whole graphs only.
    """
    data = image_set(inputs.data)
    indices = data.select(split="tune") + data.select(split="val")
    tasks = [task.name for task in task_texts()]
    runners = {name: Runner(inputs.graphs, file, tasks) for name, file in ENCODERS.items()}
    listed = read_json(inputs.negatives / "negatives.json")
    kinds = [entry["kind"] for entry in listed if entry["split"] == "val"]
    measured = {}
    for name, runner in runners.items():
        measured[name] = _measure(recipe, data, indices, runner, inputs.negatives)
        say(f"{name} measured")
    teacher = _teacher(recipe, inputs.teachers, data, indices)
    say("teacher measured")
    ratios = _latencies(inputs.graphs, data)
    int8_rules = _int8_rules(recipe, data, measured, ratios)
    precisions = ["int8", "fp32"] if verdict(int8_rules) == PASS else ["fp32"]
    best = measured[precisions[0]]
    shortcuts = _shortcuts(recipe, data, best, inputs, runners[precisions[0]])
    say("shortcuts audited")
    models = {"teacher": teacher, "student fp32": measured["fp32"].said, "student int8": measured["int8"].said}
    sizes = {file: (inputs.graphs / file).stat().st_size for file in ENCODERS.values()}
    tables = [
        *(_triage(recipe, data, best, task) for task in (ADULT, PAEDIATRIC)),
        lung_table(best.said, data),
        comparison_table(models, data, recipe),
        latency_table(ratios, sizes),
        *shortcuts.tables,
        *guard_tables(best.said, data, best.wrong, kinds, best.points[GUARD]),
    ]
    claim = Validation(recipe.pack.claim)
    rules = _integrity_rules(measured)
    if claim is Validation.VALIDATED:
        rules += _accuracy_rules(recipe, data, best, teacher, kinds) + shortcuts.rules
    write_json(out / "gate-report.json", _report(claim, rules, int8_rules, precisions, tables))
    points = {task: {name: measured[name].points[task] for name in precisions} for task in tasks}
    write_json(out / "operating-points.json", points)
    write_json(out / "precisions.json", precisions)


@dataclass(frozen=True, eq=False, slots=True)
class Shortcuts:
    """The audit's tables and what the gate asks of them."""

    tables: list[Table]
    rules: list[Rule]


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


def _teacher(recipe: Recipe, teachers: Sequence[Member], data: ImageSet, indices: list[int]) -> Predictions:
    return predict(teacher_says(ensemble_from_files(teachers), recipe.data.mask_side), data, indices)


def _latencies(graphs: Path, data: ImageSet) -> dict[int, Ratio]:
    fp32, int8 = (Runner(graphs, ENCODERS[name], (), threads=1) for name in ("fp32", "int8"))
    rows = data.select(split="val")
    return {
        batch: compare(fp32, int8, np.stack([data.images[rows[i % len(rows)]] for i in range(batch)])[:, None])
        for batch in LATENCY_BATCHES
    }


def _val_auc(task: str, said: Predictions, data: ImageSet, recipe: Recipe) -> float:
    cases = labelled(task, "val", said, data, recipe.data.adult_min_age_years)
    return auc(cases.scores, cases.labels)


def _int8_rules(recipe: Recipe, data: ImageSet, measured: dict[str, Measured], ratios: dict[int, Ratio]) -> list[Rule]:
    full, quantised = measured["fp32"].said, measured["int8"].said
    rules = [
        Rule(
            f"INT8 loses AUC, {task}",
            _val_auc(task, full, data, recipe) - _val_auc(task, quantised, data, recipe),
            recipe.gate.int8_auc_loss_max,
            at_most=True,
        )
        for task in (ADULT, PAEDIATRIC)
    ]
    lost = mean_dice(full, data) - mean_dice(quantised, data)
    rules.append(Rule("INT8 loses Dice", lost, recipe.gate.int8_dice_loss_max, at_most=True))
    speed = min(ratio.median for ratio in ratios.values())
    return [*rules, Rule("INT8 is faster than FP32, by the slower of both batches", speed, recipe.gate.int8_speed_min)]


def _integrity_rules(measured: dict[str, Measured]) -> list[Rule]:
    rules = []
    for name, each in measured.items():
        said = each.said
        values = np.concatenate([said.adult, said.paediatric, said.guard_score, said.guard_distance])
        rules.append(Rule(f"share of finite outputs, {name}", float(np.isfinite(values).mean()), 1.0))
    return rules


def _accuracy_rules(
    recipe: Recipe, data: ImageSet, best: Measured, teacher: Predictions, kinds: list[str]
) -> list[Rule]:
    gate, seed = recipe.gate, recipe.pack.seed
    cases = labelled(ADULT, "val", best.said, data, recipe.data.adult_min_age_years)
    adult = bootstrap(auc, cases.scores, cases.labels, cases.patients, seed)
    val = [row for row, index in enumerate(best.said.indices) if data.samples[index].split == "val"]
    limits = float(best.points[GUARD]["threshold"]), float(best.points[GUARD]["max_distance"])
    passed = guard_passes(*limits, best.said.guard_score[val], best.said.guard_distance[val])
    made = np.array([not kind.startswith("DICOM") for kind in kinds])
    refused = ~guard_passes(*limits, *best.wrong)
    dice = mean_dice(best.said, data)
    return [
        Rule("within-NIH AUC of adults", adult.value, gate.adult_auc_min),
        Rule("its lower 95 % bound", adult.low, gate.adult_auc_low_min),
        Rule("within-Kermany AUC", _val_auc(PAEDIATRIC, best.said, data, recipe), gate.paediatric_auc_min),
        Rule("mean lung Dice", dice, gate.dice_min),
        Rule("share of the teacher's adult AUC", adult.value / _val_auc(ADULT, teacher, data, recipe),
             gate.share_of_teacher_min),
        Rule("share of the teacher's Dice", dice / mean_dice(teacher, data), gate.share_of_teacher_min),
        Rule("radiographs that the guard lets pass", float(passed.mean()), gate.guard_pass_min),
        Rule("made negatives that the guard refuses", float(refused[made].mean()), gate.guard_refusal_min),
    ]  # fmt: skip


def _shortcuts(recipe: Recipe, data: ImageSet, best: Measured, inputs: Inputs, runner: Runner) -> Shortcuts:
    seed, rows, rules = recipe.pack.seed, [], []
    for task in (ADULT, PAEDIATRIC):
        field = "adult" if task == ADULT else "paediatric"
        cases = labelled(task, "val", best.said, data, recipe.data.adult_min_age_years)
        train = [i for i in data.select(split="train") if getattr(data.samples[i], field) is not None]
        labels = np.array([float(getattr(data.samples[i], field)) for i in train])
        tests = [int(best.said.indices[row]) for row in cases.rows]
        trivial = trivial_scores(
            feature_rows(inputs.radiographs, [data.samples[i].file for i in train]),
            labels,
            feature_rows(inputs.radiographs, [data.samples[i].file for i in tests]),
            cases.labels,
            seed,
        )
        own = bootstrap(auc, cases.scores, cases.labels, cases.patients, seed)
        theirs = bootstrap(auc, trivial, cases.labels, cases.patients, seed)
        matched = matched_auc(cases.scores, cases.labels, trivial)
        remaining = matched_auc(trivial, cases.labels, trivial)
        rows.append([task, len(tests), str(own), str(theirs), f"{matched:.3f}", f"{remaining:.3f}"])
        name = f"AUC within thirds of the trivial score, above the trivial classifier's there, {task}"
        rules.append(Rule(name, matched - remaining, recipe.gate.beyond_trivial_min))
    audit = {
        "title": "Shortcut audit: a classifier on file size, mean, spread, border and corner brightness, …",
        "columns": [
            "task",
            "images",
            "model AUC",
            "trivial AUC",
            "model AUC within thirds",
            "trivial AUC within thirds",
        ],
        "rows": rows,
        "note": "The better of logistic regression and random forest, picked on these images in the shortcut's favour, "
        "on ten numbers of the delivered file, trained on the same patients as the model. Where it comes near the "
        "model, or passes it, most of the model's figure may be read off the file as well; 'within thirds' compares "
        "both on images of like trivial score.",
    }
    return Shortcuts([audit, _disturbed(recipe, data, best, runner)], rules)


def _disturbed(recipe: Recipe, data: ImageSet, best: Measured, runner: Runner) -> Table:
    rows = []
    val = data.select(split="val")
    for name, change in disturbances(recipe.input, recipe.pack.seed).items():

        def says(images: Iterable[Grey], change: Callable[[Grey], Grey] = change) -> Iterable[Outputs]:
            return runner.each(change(image) for image in images)

        said = predict(says, data, val)
        rows.append([name, *(f"{_val_auc(task, said, data, recipe):.3f}" for task in (ADULT, PAEDIATRIC))])
    plain = ["undisturbed", *(f"{_val_auc(task, best.said, data, recipe):.3f}" for task in (ADULT, PAEDIATRIC))]
    return {
        "title": "AUC on disturbed images",
        "columns": ["disturbance", "adult", "paediatric"],
        "rows": [plain, *rows],
        "note": "Validation images, same model, same scores' order asked for.",
    }


def _triage(recipe: Recipe, data: ImageSet, best: Measured, task: str) -> Table:
    cases = labelled(task, "val", best.said, data, recipe.data.adult_min_age_years)
    return triage_table(task, cases, float(best.points[task]["threshold"]), recipe.pack.seed)


def _report(
    claim: Validation,
    rules: list[Rule],
    int8_rules: list[Rule],
    precisions: list[str],
    tables: list[Table],
) -> dict[str, Any]:
    judged = rules + (int8_rules if "int8" in precisions else [])
    result = verdict(rules)
    measured = {rule.name: rule.measured for rule in rules}
    if claim is Validation.VALIDATED:
        summary = (
            f"{'Every' if result == PASS else 'Not every'} gate rule is met on the public validation split "
            f"(within-NIH AUC of adults {measured['within-NIH AUC of adults']:.3f}, within-Kermany AUC "
            f"{measured['within-Kermany AUC']:.3f}, mean lung Dice {measured['mean lung Dice']:.3f}). "
            "Site validation is still required."
        )
    else:
        summary = f"This pack is {claim.value}: its accuracy was not judged, and no figure here supports its use."
    refused = [] if "int8" in precisions else [r.row() for r in int8_rules]
    return {
        "verdict": result,
        "validation": claim.value,
        "summary": summary,
        "rules": [rule.row() for rule in judged],
        "precisions": precisions,
        "int8_refused_by": refused,
        "software": {name: metadata.version(name) for name in ("torch", "onnx", "onnxruntime", "numpy")},
        "machine": platform.machine(),
        "tables": tables,
    }
