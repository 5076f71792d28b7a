"""Step `verify`: teachers, student and each lower precision on the same held-out patients, against the gate."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from appliance.domain.manifest import Validation
from export.artefacts import write_json
from export.audit import Audited, audit
from export.gate import PASS, Rule, unclaimed, verdict, with_waivers
from export.gate_report import Judged, gate_report, timed_tables
from export.gate_rules import Accuracy, Shortcut, accuracy_rules, overall_rules, quantised_rules, shortcut_rules
from export.html_report import html_report, worst_case_pictures
from export.layout import SPEEDS
from export.measurement import ENCODERS, Inputs, Measured, accuracy_of, groups_of, losses_of, measurement_of
from export.recipe import LOWER_PRECISIONS, Recipe
from export.runner import Runner
from export.speeds import speeds
from export.tasks import ADULT, LUNGS, PAEDIATRIC, task_texts


def verify(recipe: Recipe, inputs: Inputs, out: Path, say: Callable[[str], None]) -> None:
    """Measure, judge, and write the report, `speed.json`, `operating-points.json` and `precisions.json`.

    A pack that claims to be validated is judged by every rule; of one that claims less, whole graphs and the precisions
    that its recipe requires are judged, and the rest is shown. `gate-report.json` holds no measured time;
    `gate-report.html` shows it together with `speed.json`. The pictures of the worst cases are written to
    `worst-cases.html`, which stays with the artefacts: no image of the data is in a pack.
    """
    judged = _judged(recipe, inputs, say)
    report = gate_report(judged, inputs)
    times = speeds(timed_tables(judged, inputs), [rule for rules in judged.lower.values() for rule in rules])
    write_json(out / "gate-report.json", report)
    write_json(out / SPEEDS, times)
    (out / "gate-report.html").write_text(html_report(recipe.pack.title, report, times))
    (out / "worst-cases.html").write_text(worst_case_pictures(report["worst_cases"], judged.measured.data))
    points = {
        task.name: {name: judged.measured.by_precision[name].points[task.name] for name in judged.precisions}
        for task in task_texts()
    }
    write_json(out / "operating-points.json", points)
    write_json(out / "precisions.json", list(judged.precisions))


def _judged(recipe: Recipe, inputs: Inputs, say: Callable[[str], None]) -> Judged:
    measured = measurement_of(recipe, inputs, say)
    losses = [losses_of(measured, name) for name in LOWER_PRECISIONS]
    lower = {each.precision: quantised_rules(each, recipe.gate) for each in losses}
    precisions = [name for name in ENCODERS if name == "fp32" or verdict(lower[name]) == PASS]
    best = measured.by_precision[precisions[0]]
    runner = Runner(inputs.graphs, ENCODERS[precisions[0]], (ADULT, PAEDIATRIC, LUNGS))
    audited = audit(Audited(recipe, measured.data, best.said, runner, inputs.radiographs))
    say("shortcuts audited")
    accuracy = accuracy_of(measured, best, groups_of(measured, best.said))
    others = {name: accuracy_of(measured, measured.by_precision[name], ()) for name in precisions[1:]}
    served = {precisions[0]: accuracy} | others
    rules = pack_rules(recipe, measured.by_precision, lower, served, audited.figures)
    return Judged(measured, best, accuracy, audited, losses, lower, rules, precisions)


def pack_rules(
    recipe: Recipe,
    by_precision: Mapping[str, Measured],
    lower: Mapping[str, Sequence[Rule]],
    served: Mapping[str, Accuracy],
    shortcuts: Sequence[Shortcut],
) -> list[Rule]:
    """Every rule of the pack, those waived that the recipe waives, and those unclaimed that the pack does not claim.

    Args:
        recipe: Bounds, waivers and claim.
        by_precision: What each precision said.
        lower: The rules of each lower precision against FP32.
        served: Figures of every precision that serves, in order, of the first one with subgroups: which of them a
            machine serves hangs on its GPU.
        shortcuts: Of the first one's tasks.
    """
    gate = recipe.gate
    first, *others = served
    accurate = accuracy_rules(served[first], gate)
    accurate += [rule for name in others for rule in overall_rules(served[name], gate, name)]
    accurate += [rule for figures in shortcuts for rule in shortcut_rules(figures, gate)]
    if Validation(recipe.pack.claim) is not Validation.VALIDATED:
        accurate = unclaimed(accurate)
    required = [replace(rule, waivable=False) for name in gate.required_precisions for rule in lower[name]]
    return with_waivers([*integrity_rules(by_precision), *accurate, *required], gate.waived)


def integrity_rules(by_precision: Mapping[str, Measured]) -> list[Rule]:
    """Every score, distance and mask is a number, at every precision; nobody can waive that."""
    rules = []
    for name, each in by_precision.items():
        said = each.said
        values = np.concatenate([said.adult, said.paediatric, said.guard_score, said.guard_distance, said.mask_sum])
        finite = float(np.isfinite(values).mean())
        rules.append(Rule(f"share of finite outputs, {name}", finite, 1.0, waivable=False))
    return rules
