"""What a task's gate says of its figures: the rules, the verdict, and the summary for report and card."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from appliance.domain.manifest import TaskKind, Validation
from export.gate import FAIL, PASS, Rule
from export.task_head.audit import TaskAudit, in_words, without_nan
from export.task_head.features import Pictures
from export.task_head.join import SHORTCUTS
from export.task_head.recipe import TaskRecipe
from export.task_head.train import Measured, emptiness


def task_report(
    recipe: TaskRecipe, pictures: Pictures, figures: Mapping[str, Measured], audits: Sequence[TaskAudit]
) -> dict[str, Any]:
    """The report of a task.

    Args:
        recipe: Holds the bounds.
        pictures: The cases that could be read.
        figures: What was measured, by precision.
        audits: The shortcut audit of each precision, where there is one.
    """
    rules = _rules(recipe, figures, audits)
    refused = [rule.name for rule in rules if not rule.passed]
    return {
        "verdict": FAIL if refused else PASS,
        "refused_by": refused,
        "validation": Validation(recipe.task.claim).value,
        "source": asdict(recipe.credited),
        "summary": f"{recipe.task.name} ({recipe.task.head}), trained on {len(pictures.select('train'))} cases, on "
        f"{_summary(recipe, figures)} {in_words(recipe, audits)}",
        "rules": [rule.row() for rule in rules],
        "figures": {precision: _figure(each) for precision, each in figures.items()},
        SHORTCUTS: [each.row() for each in audits],
    }


def _rules(recipe: TaskRecipe, figures: Mapping[str, Measured], audits: Sequence[TaskAudit]) -> list[Rule]:
    segmentation = recipe.kind is TaskKind.SEGMENTATION
    rules = [
        Rule(f"mean Dice where something is drawn, at {precision}", each.value, recipe.gate.dice_min)
        if segmentation
        else Rule(f"lower 95 % bound of the AUC at {precision}", each.low, recipe.gate.auc_low_min)
        for precision, each in figures.items()
    ]
    counted = "with something drawn" if segmentation else "of the rarer class"
    fewest = min(each.fewest for each in figures.values())
    rules.append(Rule(f"validation patients {counted}", fewest, recipe.gate.patients_min))
    if recipe.task.claim == Validation.VALIDATED.value:
        rules += [rule for each in audits for rule in each.rules(recipe)]
    return rules


def _summary(recipe: TaskRecipe, figures: Mapping[str, Measured]) -> str:
    name = "Dice" if recipe.kind is TaskKind.SEGMENTATION else "AUC"
    said = "; ".join(
        f"{precision} {name} {each.value:.3f} [{each.low:.3f}, {each.high:.3f}]{emptiness(each.empty)}"
        for precision, each in figures.items()
    )
    one = next(iter(figures.values()))
    counted = f"{one.cases} validation cases"
    if one.volumes is not None:
        counted = f"{one.cases} validation images, each judged alone as the appliance does,"
        whole = ", ".join(f"{name} {each.volumes[0]}" for name, each in figures.items() if each.volumes)
        said += f"; not served and not judged, the AUC of {one.volumes[1]} whole volumes: {whole}"
    return f"{counted} of {one.patients} patients: {said} (95 % intervals by patient)."


def _figure(each: Measured) -> dict[str, Any]:
    figure = {"figure": each.figure, "value": each.value, "low": each.low, "high": each.high}
    if each.volumes:
        figure["volumes"] = asdict(each.volumes[0])
    if each.empty:
        figure["left_empty"], figure["empty_cases"] = each.empty
    nulled: dict[str, Any] = without_nan(figure)
    return nulled
