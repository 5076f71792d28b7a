"""What `gate-report.json` holds: verdict, summary, rules, figures, tables, curves and worst cases, and no time."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

import numpy as np

from appliance.domain.manifest import Validation
from export.artefacts import read_json
from export.audit import Audit
from export.gate import INTEGRITY_ONLY, PASS, Rule, verdict
from export.gate_rules import Accuracy, Quantised
from export.images import UNREADABLE
from export.layout import ENGINE_RECORD, SEARCH_RECORD
from export.measurement import ENCODERS, Inputs, Measured, Measurement
from export.metrics import calibration_points, roc_points
from export.operating import thresholds
from export.predictions import Predictions
from export.speeds import engine_table, latency_table, planned_engines_table, precision_table, search_table
from export.subgroups import limits, subgroup_table, unknown_table
from export.tables import (
    Table,
    aims_table,
    comparison_table,
    guard_tables,
    lung_table,
    source_table,
    triage_table,
)
from export.tasks import ADULT, GUARD, LUNGS, PAEDIATRIC

WORST_CASES = 8


@dataclass(frozen=True, eq=False, slots=True)
class Judged:
    """What was measured, and what the gate made of it.

    Attributes:
        best: The precision that serves first.
        accuracy: Its figures.
        losses, lower: Each lower precision's figures, and its rules.
        rules: Those of the pack.
        precisions: Those that serve, in order.
    """

    measured: Measurement
    best: Measured
    accuracy: Accuracy
    audited: Audit
    losses: Sequence[Quantised]
    lower: Mapping[str, Sequence[Rule]]
    rules: Sequence[Rule]
    precisions: Sequence[str]

    @property
    def shown(self) -> list[Rule]:
        """The rules of the pack, and of the precisions that serve without being required."""
        required = self.measured.recipe.gate.required_precisions
        served = (name for name in self.lower if name in self.precisions and name not in required)
        return [*self.rules, *(rule for name in served for rule in self.lower[name])]


def gate_report(judged: Judged, inputs: Inputs) -> dict[str, Any]:
    """The report as JSON values: the same figures make the same report, whatever the clock said."""
    measured, best = judged.measured, judged.best
    gate = measured.recipe.gate
    by_group = subgroup_table(judged.accuracy.subgroups, measured.cases(ADULT, best.said), gate)
    unknown = unknown_table(measured.data)
    claim = Validation(measured.recipe.pack.claim)
    return {
        "schema": "insite-gate-report/3",
        "verdict": verdict(judged.rules),
        "judged": "accuracy and integrity" if claim is Validation.VALIDATED else INTEGRITY_ONLY,
        "validation": claim.value,
        "summary": summary(claim, judged.shown, judged.accuracy, aims_table(judged.accuracy, gate)),
        "rules": [rule.row() for rule in judged.shown],
        "refused_precisions": {
            name: [rule.row() for rule in rules if not rule.passed]
            for name, rules in judged.lower.items()
            if name not in judged.precisions
        },
        "precisions": list(judged.precisions),
        "software": {name: metadata.version(name) for name in ("torch", "onnx", "onnxruntime", "numpy")},
        "figures": _without_nan(_figures(judged)),
        "tables": _tables(judged, (by_group, unknown), inputs),
        "limits": limits(by_group, unknown),
        "curves": _curves(measured) | {"attribution": judged.audited.maps},
        "worst_cases": _worst_cases(measured, best.said),
    }


def summary(claim: Validation, rules: Sequence[Rule], figures: Accuracy, aims: Table) -> str:
    """What the gate found, in a few sentences."""
    broken = [f"{rule.row()[0]} ({rule.row()[2]}, bound {rule.bound:g})" for rule in rules if _is_broken(rule)]
    if claim is not Validation.VALIDATED:
        missed = f" Not met: {'; '.join(broken)}." if broken else ""
        return (
            f"Integrity only: this pack is {claim.value}. Its accuracy was not judged, and no figure here supports its "
            f"use.{missed}"
        )
    standing = "waived by the maker" if verdict(rules) == PASS else "not all of it waived"
    met = f"Not met, and {standing}: {'; '.join(broken)}. The rest is met" if broken else "Every gate rule is met"
    missed = "; ".join(f"{row[0]} ({row[3]}, aim {row[2]})" for row in aims["rows"] if row[4] == "no")
    return (
        f"{met} on the public validation split "
        f"(within-NIH AUC of adults {figures.adult.value:.3f}, within-Kermany AUC {figures.paediatric_auc:.3f}, mean "
        f"lung Dice {figures.dice:.3f}). {f'Aimed at and not reached: {missed}. ' if missed else ''}"
        "Site validation is still required."
    )


def _is_broken(rule: Rule) -> bool:
    return rule.claimed and not rule.passed


def _figures(judged: Judged) -> dict[str, Any]:
    """The report's main figures as plain numbers, for `insite-export bench` and whoever compares releases."""
    values = asdict(judged.accuracy)
    adult = values.pop("adult")
    lost = next(each for each in judged.losses if each.precision == "int8")
    return values | {
        "adult_auc": adult["value"],
        "adult_auc_low": adult["low"],
        "adult_auc_high": adult["high"],
        "int8_lost": {**lost.auc_losses, "dice": lost.dice_loss},
        "shortcuts": [asdict(each) for each in judged.audited.figures],
    }


def _without_nan(value: Any) -> Any:
    """Figures that could not be computed as null: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _tables(judged: Judged, grouped: Sequence[Table], inputs: Inputs) -> list[Table]:
    measured, best = judged.measured, judged.best
    recipe, data = measured.recipe, measured.data
    seed = recipe.pack.seed
    points = {name: thresholds(recipe, data, said) for name, said in measured.models.items()}
    aims = aims_table(judged.accuracy, recipe.gate)
    return [
        *(
            triage_table(task, measured.cases(task, best.said), float(best.points[task]["threshold"]), seed)
            for task in (ADULT, PAEDIATRIC)
        ),
        lung_table(best.said, data),
        *([aims] if aims["rows"] else []),
        comparison_table(measured.models, data, recipe, points),
        *grouped,
        *_clocked_tables(judged, inputs, timed=False),
        planned_engines_table(),
        *judged.audited.tables,
        *guard_tables(best.said, data, best.wrong, measured.kinds, best.points[GUARD], seed=seed),
        source_table(inputs.sources, len(read_json(inputs.data / UNREADABLE))),
    ]


def timed_tables(judged: Judged, inputs: Inputs) -> list[Table]:
    """The tables of `speed.json`."""
    return [*_clocked_tables(judged, inputs, timed=True), engine_table(read_json(inputs.engines / ENGINE_RECORD))]


def _clocked_tables(judged: Judged, inputs: Inputs, *, timed: bool) -> list[Table]:
    sizes = {name: (inputs.graphs / file).stat().st_size for name, file in ENCODERS.items()}
    bound = judged.measured.recipe.gate.int8_speed_min
    return [
        precision_table(judged.losses, judged.lower, sizes, timed=timed),
        search_table(read_json(inputs.graphs / SEARCH_RECORD), timed=timed),
        latency_table(judged.measured.ratios, sizes, bound, timed=timed),
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
