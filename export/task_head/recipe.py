"""What a new task is: a short TOML file, read as strictly as a pack's recipe."""

import math
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from appliance.domain.errors import SettingsError
from appliance.domain.manifest import Code, EligibilityRules, TaskKind, UnknownAge, Validation
from export.recipe_tables import NAME, refuse_difference, section_from_table
from export.sources import Source, refuse_claim
from export.subgroups import SMALL

LINEAR, MLP, MIL, SEGMENTATION = "linear", "mlp", "mil", "segmentation"
HEADS = (LINEAR, MLP, MIL, SEGMENTATION)
AUDITED = (LINEAR, MLP)
"""Heads whose scores are held against a trivial classifier: they judge single images."""
ANY_AGE = -1.0
_BOUNDS = {
    "training": {
        "variants": (1, math.inf),
        "steps": (1, math.inf),
        "batch": (1, math.inf),
        "rate": (1e-9, 1.0),
        "weight_decay": (0.0, 1.0),
        "hidden": (1, math.inf),
        "tune_percent": (1, 99),
        "unreadable_percent_max": (0.0, 100.0),
        "mask_side": (1, math.inf),
    },
    "gate": {
        "sensitivity": (0.01, 1.0),
        "auc_low_min": (0.0, 1.0),
        "dice_min": (0.0, 1.0),
        "beyond_trivial_min": (-1.0, 1.0),
        "beyond_trivial_share_min": (0.0, 1.0),
    },
}
"""From and to, by section and key; what is not a number is in none of them."""


@dataclass(frozen=True, slots=True)
class TaskSection:
    """Who the task is.

    Attributes:
        head: `linear` or `mlp` (one image, its embedding), `mil` (the images of a volume together, by attention), or
            `segmentation` (a decoder on the feature maps).
        claim: `research-only`, or `validated` for a task whose gate says how good it must be; a joined pack claims no
            more than the weaker of base and task.
    """

    name: str
    title: str
    release: int
    head: str
    intended_use: str
    not_for: str
    claim: str


@dataclass(frozen=True, slots=True)
class SourceSection:
    """Where labels and images come from, and whether their licence allows research only."""

    name: str
    licence: str
    origin: str
    research_only: bool


@dataclass(frozen=True, slots=True)
class EligibilitySection:
    """Which images the task takes; ages in years, -1 for no bound."""

    modalities: tuple[str, ...]
    body_parts: tuple[str, ...]
    views: tuple[str, ...]
    min_age_years: float
    max_age_years: float
    unknown_age: str


@dataclass(frozen=True, slots=True)
class TrainingSection:
    """How the head is trained on the base's features.

    Attributes:
        variants: Pictures made of each training image: the plain one, then augmented ones.
        batch: Cases of a step; even, but for a segmentation, because both classes are drawn equally often.
        hidden: Width of the hidden layer of `mlp` and `mil`.
        tune_percent: Share of the training patients that choose the threshold, and nothing else.
        unreadable_percent_max: More unreadable images than this end the training.
        mask_side: Rows and columns of a segmentation's mask.
    """

    seed: int
    variants: int
    steps: int
    batch: int
    rate: float
    weight_decay: float
    hidden: int
    tune_percent: int
    unreadable_percent_max: float
    mask_side: int


@dataclass(frozen=True, slots=True)
class TaskGateSection:
    """What the validation patients must show: the lower end of the AUC's interval, or the mean Dice of drawn masks.

    The AUC is that of the graph which is served: for a `mil` head of each image alone, with its volume's label.

    `sensitivity` is what the threshold is chosen for, on the tuning patients.

    Attributes:
        beyond_trivial_min: How far the AUC within thirds of the trivial score must be above the trivial classifier's.
        beyond_trivial_share_min: In which share of bootstrap samples of patients it must be above. Both are asked of a
            `linear` or `mlp` head that claims to be validated; any other is audited, and not judged by it.
        patients_min: Validation patients of the rarer class, or with something drawn in their masks; of fewer no
            interval says much. A task that claims to be validated asks for at least `SMALL`.
    """

    sensitivity: float
    auc_low_min: float
    dice_min: float
    beyond_trivial_min: float = 0.0
    beyond_trivial_share_min: float = 0.9
    patients_min: int = SMALL


@dataclass(frozen=True, slots=True)
class TaskRecipe:
    """Everything that decides what a task becomes, but its data and its base."""

    task: TaskSection
    source: SourceSection
    finding: Code
    eligibility: EligibilitySection
    training: TrainingSection
    gate: TaskGateSection

    @property
    def kind(self) -> TaskKind:
        """What the appliance does with the head's output."""
        return TaskKind.SEGMENTATION if self.task.head == SEGMENTATION else TaskKind.CLASSIFICATION

    @property
    def credited(self) -> Source:
        """The data as NOTICE and the bill of materials name it."""
        section, use = self.source, f"Labels and images of the task {self.task.name}."
        return Source(section.name, section.licence, section.origin, use, research_only=section.research_only)

    @property
    def rules(self) -> EligibilityRules:
        """The eligibility as the manifest has it."""
        section = self.eligibility
        low, high = (None if age == ANY_AGE else age for age in (section.min_age_years, section.max_age_years))
        return EligibilityRules(
            section.modalities, section.body_parts, section.views, low, high, UnknownAge(section.unknown_age)
        )


_SECTIONS = {
    "task": TaskSection,
    "source": SourceSection,
    "finding": Code,
    "eligibility": EligibilitySection,
    "training": TrainingSection,
    "gate": TaskGateSection,
}


def task_recipe_from_toml(path: Path) -> TaskRecipe:
    """Read a task's recipe.

    Raises:
        SettingsError: No such file, no TOML, a key that is unknown, missing or has a value that it can't have, or a
            claim that the data's licence, the head or the gate does not allow.
    """
    try:
        document = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise SettingsError(f"The task's recipe {path} can't be read: {error}.", "Give a TOML file.") from error
    refuse_difference("the task's recipe", set(document), set(_SECTIONS))
    recipe = TaskRecipe(**{name: section_from_table(name, kind, document[name]) for name, kind in _SECTIONS.items()})
    for key in ("name", "licence", "origin"):
        if not getattr(recipe.source, key).strip():
            raise SettingsError(f"source.{key} of the task's recipe is empty.", "Say whose data it is.")
    claims = (Validation.VALIDATED.value, Validation.RESEARCH_ONLY.value)
    if not re.fullmatch(NAME, recipe.task.name):
        raise SettingsError(f"task.name of the task's recipe is {recipe.task.name!r}.", f"It must be like {NAME}.")
    for name, value, known in (
        ("task.head", recipe.task.head, HEADS),
        ("task.claim", recipe.task.claim, claims),
        ("eligibility.unknown_age", recipe.eligibility.unknown_age, tuple(each.value for each in UnknownAge)),
    ):
        if value not in known:
            raise SettingsError(f"{name} of the task's recipe is {value!r}.", f"Known: {', '.join(known)}.")
    if recipe.task.head == MIL and recipe.task.claim == Validation.VALIDATED.value:
        raise SettingsError(
            f"A {MIL} head can't claim to be validated: there is no shortcut audit of volumes.",
            f"Set task.claim to {Validation.RESEARCH_ONLY.value}, or label single images.",
        )
    _check_numbers(recipe)
    refuse_claim(Validation(recipe.task.claim), [recipe.credited], "task")
    if recipe.task.claim == Validation.VALIDATED.value and recipe.gate.patients_min < SMALL:
        raise SettingsError(
            f"A task can't claim to be validated with gate.patients_min = {recipe.gate.patients_min} in its recipe.",
            f"Give at least {SMALL}, or claim {Validation.RESEARCH_ONLY.value}.",
        )
    return recipe


def _check_numbers(recipe: TaskRecipe) -> None:
    """Refuse numbers that no training and no gate can mean."""
    for section, keys in _BOUNDS.items():
        for key, (low, high) in keys.items():
            value = getattr(getattr(recipe, section), key)
            if not low <= value <= high:
                bounds = f"At least {low:g}." if high == math.inf else f"From {low:g} to {high:g}."
                raise SettingsError(f"{section}.{key} of the task's recipe is {value}.", bounds)
    if recipe.task.head != SEGMENTATION and recipe.training.batch % 2:
        raise SettingsError(
            f"training.batch of the task's recipe is {recipe.training.batch}.",
            "An even number: both classes are drawn equally often.",
        )
    key, chance = ("dice_min", 0.0) if recipe.task.head == SEGMENTATION else ("auc_low_min", 0.5)
    if recipe.task.claim == Validation.VALIDATED.value and getattr(recipe.gate, key) <= chance:
        raise SettingsError(
            f"gate.{key} of the task's recipe is {getattr(recipe.gate, key):g}, which chance reaches, but the task "
            "claims to be validated.",
            f"Ask for more, or set task.claim to {Validation.RESEARCH_ONLY.value}.",
        )
