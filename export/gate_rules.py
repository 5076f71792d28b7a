"""What the gate demands: figures that were measured in, rules with the recipe's bounds out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from export.gate import AT, Rule
from export.metrics import Interval, ratio
from export.recipe import GateSection


@dataclass(frozen=True, slots=True)
class Quantised:
    """A less exact encoder against FP32: losses by task, and FP32's time over its own by batch (empty: not timed)."""

    precision: str
    auc_losses: Mapping[str, float]
    dice_loss: float
    speed: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class Subgroup:
    """One group of the adult task: its images, the AUC of the student and of its teachers, the share that it keeps."""

    name: str
    images: int
    auc: float
    teacher_auc: float
    share: Interval | None = None


@dataclass(frozen=True, slots=True)
class Accuracy:
    """The precision that serves first, on the validation patients."""

    adult: Interval
    adult_ece: float
    paediatric_auc: float
    dice: float
    dice_p5: float
    teacher_adult_auc: float
    teacher_dice: float
    guard_passes: float
    guard_refuses: float
    subgroups: Sequence[Subgroup]


@dataclass(frozen=True, slots=True)
class Shortcut:
    """The audit of one task.

    Attributes:
        matched, trivial: AUC of the model and of the trivial classifier within thirds of the trivial score.
        ahead: Share of bootstrap samples of patients in which the model is ahead there.
        disturbed_loss: AUC lost by the disturbance that costs most.
        lung_attribution: Influence of a piece of lung over that of an average piece of the picture.
        control_mean, control_max: The same of untrained heads on the same encoder.
    """

    task: str
    matched: float
    trivial: float
    ahead: float
    disturbed_loss: float
    lung_attribution: float
    control_mean: float
    control_max: float


def quantised_rules(figures: Quantised, gate: GateSection) -> list[Rule]:
    """A precision serves only when it keeps these; else the next better one does."""
    name = figures.precision.upper()
    rules = [
        Rule(f"{name} loses AUC, {task}", loss, gate.int8_auc_loss_max, at_most=True)
        for task, loss in figures.auc_losses.items()
    ]
    rules.append(Rule(f"{name} loses Dice", figures.dice_loss, gate.int8_dice_loss_max, at_most=True))
    if figures.speed:
        slowest = min(figures.speed.values())
        faster = f"{name} is faster than FP32, by the slowest batch"
        rules.append(Rule(faster, slowest, gate.int8_speed_min, timed=True))
    return rules


def accuracy_rules(figures: Accuracy, gate: GateSection) -> list[Rule]:
    """What a pack that claims to be validated must reach, overall and in its subgroups."""
    return [*overall_rules(figures, gate), *_subgroup_rules(figures.subgroups, gate)]


def overall_rules(figures: Accuracy, gate: GateSection, precision: str = "") -> list[Rule]:
    """What every precision that serves must reach overall; rules of another than the first one name it."""
    at = f"{AT}{precision.upper()}" if precision else ""
    share = ratio(figures.adult.value, figures.teacher_adult_auc)
    return [
        Rule(f"within-NIH AUC of adults{at}", figures.adult.value, gate.adult_auc_min),
        Rule(f"its lower 95 % bound{at}", figures.adult.low, gate.adult_auc_low_min),
        Rule(f"calibration error of adults{at}", figures.adult_ece, gate.ece_max, at_most=True),
        Rule(f"within-Kermany AUC{at}", figures.paediatric_auc, gate.paediatric_auc_min),
        Rule(f"mean lung Dice{at}", figures.dice, gate.dice_min),
        Rule(f"5th percentile of lung Dice{at}", figures.dice_p5, gate.dice_p5_min),
        Rule(f"share of the teachers' adult AUC{at}", share, gate.share_of_teacher_min),
        Rule(f"share of the teachers' Dice{at}", ratio(figures.dice, figures.teacher_dice), gate.share_of_teacher_min),
        Rule(f"radiographs that the guard lets pass{at}", figures.guard_passes, gate.guard_pass_min),
        Rule(f"made negatives that the guard refuses{at}", figures.guard_refuses, gate.guard_refusal_min),
    ]


def shortcut_rules(figures: Shortcut, gate: GateSection) -> list[Rule]:
    """What a task must show against the suspicion that it reads the file rather than the chest."""
    task = figures.task
    return [
        Rule(
            f"AUC within thirds of the trivial score, above the trivial classifier's there, {task}",
            figures.matched - figures.trivial,
            gate.beyond_trivial_min,
        ),
        Rule(f"share of resamples in which it is above, {task}", figures.ahead, gate.beyond_trivial_share_min),
        Rule(
            f"AUC lost by the worst disturbance, {task}",
            figures.disturbed_loss,
            gate.disturbed_auc_loss_max,
            at_most=True,
        ),
        Rule(f"influence of lung over the average, {task}", figures.lung_attribution, gate.lung_attribution_min),
        Rule(
            f"influence of lung beyond the mean of untrained heads, {task}",
            figures.lung_attribution - figures.control_mean,
            0.0,
            beyond=True,
        ),
    ]


def is_judged(group: Subgroup, gate: GateSection) -> bool:
    """Whether a group is large enough that its figures say more than chance."""
    return group.images >= gate.subgroup_images_min


def _subgroup_rules(groups: Sequence[Subgroup], gate: GateSection) -> list[Rule]:
    rules = []
    for group in groups:
        if is_judged(group, gate) and group.name != "all":
            rules.append(Rule(f"AUC of adults, {group.name}", group.auc, gate.subgroup_auc_min))
            kept = ratio(group.auc, group.teacher_auc)
            rules.append(Rule(f"share of the teachers', {group.name}", kept, gate.subgroup_share_of_teacher_min))
    sexes = [group.auc for group in groups if group.name.startswith("sex ")]
    if len(sexes) > 1:
        rules.append(Rule("gap between the sexes, adults", max(sexes) - min(sexes), gate.sex_gap_max, at_most=True))
    return rules
