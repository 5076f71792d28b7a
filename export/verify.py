"""Step `verify`: teachers, student and each lower precision on the same held-out patients, against the gate."""

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from appliance.domain.manifest import Validation
from export.artefacts import read_json, write_json
from export.audit import Audit, Audited, audit
from export.augment import augmented
from export.ensemble import Member, ensemble_from_files
from export.gate import PASS, Rule, verdict, with_waivers
from export.gate_rules import Accuracy, Quantised, Subgroup, accuracy_rules, quantised_rules, shortcut_rules
from export.html_report import html_report, worst_case_pictures
from export.images import UNREADABLE, ImageSet, image_set
from export.latency import Ratio, compare
from export.layout import ENGINE_RECORD, SEARCH_RECORD
from export.metrics import (
    Floats,
    auc,
    bootstrap,
    calibration_points,
    expected_calibration_error,
    roc_points,
)
from export.operating import Labelled, guard_passes, labelled, operating_points
from export.predictions import Predictions, guard_outputs, predict, teacher_says
from export.recipe import Recipe
from export.runner import Runner
from export.subgroups import is_enough, limits, subgroup_table, subgroups, unknown_table
from export.tables import (
    Table,
    comparison_table,
    engine_table,
    guard_tables,
    latency_table,
    lung_table,
    mean_dice,
    mean_dice_p5,
    search_table,
    source_table,
    triage_table,
)
from export.tasks import ADULT, GUARD, LUNGS, PAEDIATRIC, task_texts

ENCODERS = {"int8": "encoder.int8.onnx", "fp32": "encoder.onnx", "fp16": "encoder.fp16.onnx"}
"""The precisions that are measured; INT8 serves before FP32 on a CPU where the figures allow it, FP16 on a GPU."""
VARIANTS_OF_TUNE = 3
LATENCY_BATCHES = (1, 8)
WORST_CASES = 8


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


def verify(recipe: Recipe, inputs: Inputs, out: Path, say: Callable[[str], None]) -> None:
    """Measure, judge, and write `gate-report.json` and `.html`, `operating-points.json` and `precisions.json`.

    A pack that claims to be validated is judged by every rule; one that claims less by whole graphs only. The pictures
    of the worst cases are written to `worst-cases.html`, which stays with the artefacts: no image of the data is in a
    pack.
    """
    measured = _measurement(recipe, inputs, say)
    lower = {name: quantised_rules(_losses(measured, name), recipe.gate) for name in ("int8", "fp16")}
    precisions = [name for name in ENCODERS if name == "fp32" or verdict(lower[name]) == PASS]
    best = measured.by_precision[precisions[0]]
    runner = Runner(inputs.graphs, ENCODERS[precisions[0]], (ADULT, PAEDIATRIC, LUNGS))
    audited = audit(Audited(recipe, measured.data, best.said, runner, inputs.radiographs))
    say("shortcuts audited")
    groups = _groups(measured, best.said)
    claim = Validation(recipe.pack.claim)
    rules = _integrity_rules(measured.by_precision)
    if claim is Validation.VALIDATED:
        rules += accuracy_rules(_accuracy(measured, best, groups), recipe.gate)
        rules += [rule for figures in audited.figures for rule in shortcut_rules(figures, recipe.gate)]
        rules = with_waivers(rules, recipe.gate.waived)
    report = _report(claim, rules, {name: lower[name] for name in lower if name in precisions}, precisions)
    report["refused_precisions"] = {
        name: [rule.row() for rule in lower[name] if not rule.passed] for name in lower if name not in precisions
    }
    report["figures"] = _without_nan(_figures(measured, best, groups, audited))
    by_group = subgroup_table(groups, measured.cases(ADULT, best.said), recipe.gate)
    unknown = unknown_table(measured.data)
    report["tables"] = _tables(measured, best, audited, (by_group, unknown), inputs)
    report["limits"] = limits(by_group, unknown)
    report["curves"] = _curves(measured) | {"attribution": audited.maps}
    report["worst_cases"] = _worst_cases(measured, best.said)
    write_json(out / "gate-report.json", report)
    (out / "gate-report.html").write_text(html_report(recipe.pack.title, report))
    (out / "worst-cases.html").write_text(worst_case_pictures(report["worst_cases"], measured.data))
    tasks = [task.name for task in task_texts()]
    points = {task: {name: measured.by_precision[name].points[task] for name in precisions} for task in tasks}
    write_json(out / "operating-points.json", points)
    write_json(out / "precisions.json", precisions)


def _measurement(recipe: Recipe, inputs: Inputs, say: Callable[[str], None]) -> Measurement:
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


def _losses(measured: Measurement, precision: str) -> Quantised:
    """A precision against FP32; FP16 is for GPUs and not timed on a CPU."""
    full, less = measured.by_precision["fp32"].said, measured.by_precision[precision].said
    return Quantised(
        precision,
        {task: measured.auc(task, full) - measured.auc(task, less) for task in (ADULT, PAEDIATRIC)},
        mean_dice(full, measured.data) - mean_dice(less, measured.data),
        {batch: ratio.median for batch, ratio in measured.ratios.items()} if precision == "int8" else {},
    )


def _integrity_rules(by_precision: dict[str, Measured]) -> list[Rule]:
    rules = []
    for name, each in by_precision.items():
        said = each.said
        values = np.concatenate([said.adult, said.paediatric, said.guard_score, said.guard_distance])
        rules.append(Rule(f"share of finite outputs, {name}", float(np.isfinite(values).mean()), 1.0))
    return rules


def _accuracy(measured: Measurement, best: Measured, groups: Sequence[Subgroup]) -> Accuracy:
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


def _figures(measured: Measurement, best: Measured, groups: Sequence[Subgroup], audited: Audit) -> dict[str, Any]:
    """The report's main figures as plain numbers, for `insite-export bench` and whoever compares releases."""
    accuracy, lost = _accuracy(measured, best, groups), _losses(measured, "int8")
    values = asdict(accuracy)
    adult = values.pop("adult")
    return values | {
        "adult_auc": adult["value"],
        "adult_auc_low": adult["low"],
        "adult_auc_high": adult["high"],
        "int8_lost": {**lost.auc_losses, "dice": lost.dice_loss},
        "shortcuts": [asdict(each) for each in audited.figures],
    }


def _without_nan(value: Any) -> Any:
    """Figures that could not be computed as null: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _groups(measured: Measurement, said: Predictions) -> list[Subgroup]:
    own, theirs = measured.cases(ADULT, said), measured.cases(ADULT, measured.teachers)
    everyone = {"all": [True] * len(own.labels)} | subgroups(own)
    result = []
    for name, chosen in everyone.items():
        mine, taught = own.select(chosen), theirs.select(chosen)
        if is_enough(mine):
            areas = (auc(each.scores, each.labels) for each in (mine, taught))
            result.append(Subgroup(name, len(mine.labels), *areas))
    return result


def _tables(
    measured: Measurement, best: Measured, audited: Audit, grouped: Sequence[Table], inputs: Inputs
) -> list[dict[str, Any]]:
    recipe, data = measured.recipe, measured.data
    names = {"fp32": "student FP32", "int8": "student INT8", "fp16": "student FP16"}
    models = {"teachers": measured.teachers} | {
        names[name]: each.said
        for name, each in sorted(measured.by_precision.items(), key=lambda item: item[0] != "fp32")
    }
    sizes = {file: (inputs.graphs / file).stat().st_size for file in ENCODERS.values()}
    return [
        *(
            triage_table(task, measured.cases(task, best.said), float(best.points[task]["threshold"]), recipe.pack.seed)
            for task in (ADULT, PAEDIATRIC)
        ),
        lung_table(best.said, data),
        comparison_table(models, data, recipe),
        *grouped,
        search_table(read_json(inputs.graphs / SEARCH_RECORD)),
        latency_table(measured.ratios, sizes),
        engine_table(read_json(inputs.engines / ENGINE_RECORD)),
        *audited.tables,
        *guard_tables(best.said, data, best.wrong, measured.kinds, best.points[GUARD], seed=recipe.pack.seed),
        source_table(inputs.sources, len(read_json(inputs.data / UNREADABLE))),
    ]


def _curves(measured: Measurement) -> dict[str, Any]:
    models = {"teachers": measured.teachers} | {
        f"student {name.upper()}": measured.by_precision[name].said for name in ("fp32", "int8")
    }
    result: dict[str, Any] = {"roc": {}, "calibration": {}}
    for task in (ADULT, PAEDIATRIC):
        each = {name: measured.cases(task, said) for name, said in models.items()}
        result["roc"][task] = {name: roc_points(cases.scores, cases.labels) for name, cases in each.items()}
        result["calibration"][task] = {
            name: calibration_points(cases.scores, cases.labels) for name, cases in each.items()
        }
    return result


def _worst_cases(measured: Measurement, said: Predictions) -> dict[str, list[dict[str, Any]]]:
    data = measured.data
    result: dict[str, list[dict[str, Any]]] = {}
    for task in (ADULT, PAEDIATRIC):
        cases = measured.cases(task, said)
        order = np.argsort(-np.abs(cases.scores - cases.labels), kind="stable")[:WORST_CASES]
        result[task] = [
            {
                "file": data.samples[said.indices[cases.rows[i]]].file,
                "label": int(cases.labels[i]),
                "score": round(float(cases.scores[i]), 3),
            }
            for i in order
        ]
    val = [row for row, index in enumerate(said.indices) if data.samples[index].split == "val"]
    drawn = sorted((float(said.dice[row]), row) for row in val if np.isfinite(said.dice[row]))
    result[LUNGS] = [
        {"file": data.samples[said.indices[row]].file, "dice": round(overlap, 3)}
        for overlap, row in drawn[:WORST_CASES]
    ]
    return result


def _standing(result: str) -> str:
    return "waived by the maker" if result == PASS else "not all of it waived"


def _report(
    claim: Validation, rules: list[Rule], lower: dict[str, list[Rule]], precisions: list[str]
) -> dict[str, Any]:
    judged = rules + [rule for each in lower.values() for rule in each]
    result = verdict(rules)
    figures = {rule.name: rule.measured for rule in rules}
    broken = [f"{rule.name} ({rule.measured:.3g}, bound {rule.bound:g})" for rule in judged if not rule.passed]
    if claim is Validation.VALIDATED:
        met = (
            "Every gate rule is met"
            if not broken
            else f"Not met, and {_standing(result)}: {'; '.join(broken)}. The rest is met"
        )
        summary = (
            f"{met} on the public validation split "
            f"(within-NIH AUC of adults {figures['within-NIH AUC of adults']:.3f}, within-Kermany AUC "
            f"{figures['within-Kermany AUC']:.3f}, mean lung Dice {figures['mean lung Dice']:.3f}). "
            "Site validation is still required."
        )
    else:
        summary = f"This pack is {claim.value}: its accuracy was not judged, and no figure here supports its use."
    return {
        "schema": "insite-gate-report/2",
        "verdict": result,
        "validation": claim.value,
        "summary": summary,
        "rules": [rule.row() for rule in judged],
        "precisions": precisions,
        "software": {name: metadata.version(name) for name in ("torch", "onnx", "onnxruntime", "numpy")},
        "machine": platform.machine(),
    }
