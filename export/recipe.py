"""A pack's recipe as typed values: one TOML file, unknown and missing keys are errors."""

import dataclasses
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from appliance.domain.errors import SettingsError
from appliance.domain.manifest import InputSpec, Validation
from export.recipe_foundation import (
    AgglomerationSection,
    FoundationTeacher,
    agglomeration_from_table,
    check_foundation,
    foundation_from_tables,
)
from export.recipe_tables import NAME, refuse_difference, section_from_table

VALIDATED = Validation.VALIDATED.value
_OPTIONAL = ("source", "foundation", "agglomeration")
LOWER_PRECISIONS = ("int8", "fp16")
"""What the encoder is made into beside FP32, and a recipe may require."""
_LEFT_OUT = {
    "quantise": ("aware_steps", "keep"),
    "gate": ("required_precisions", "adult_auc_aim", "adult_auc_low_aim", "sex_gap_aim"),
}
"""Keys by section that are no part of a recipe which does not set them."""
_SHARES = ("blanked", "occluded")
"""Of the student's section, left out where they are 0."""
PIECES = 8
"""Rows and columns of the pieces into which `attribution` and `distil` cut a picture, and its mask."""


@dataclass(frozen=True, slots=True)
class PackSection:
    """Who the pack is; `seed` fixes every random choice of the export.

    `claim` is what the pack says of itself when its gate passes: `validated` asks for every accuracy rule, `untrained`
    and `research-only` for whole graphs only, and need `--allow-unvalidated` on the appliance.
    """

    name: str
    title: str
    release: int
    version: str
    licence: str
    claim: str
    seed: int


@dataclass(frozen=True, slots=True)
class DataSection:
    """How rows become samples; `tune_percent` of the training patients choose thresholds, never weights."""

    tune_percent: int
    mask_side: int
    unreadable_percent_max: float
    adult_min_age_years: float


@dataclass(frozen=True, slots=True)
class DataSource:
    """A data set of one's own beside the built-in ones: a table `[[source]]`. Its radiographs carry no label.

    Attributes:
        name: What it is called in reports.
        title: What the column `dataset` of `labels.csv` calls it, and NOTICE.
        licence: In words; goes into card, NOTICE and bill of materials.
        origin: Who made it, and where it is found.
        research_only: Whether that licence keeps it from a pack that claims to be validated.
    """

    name: str
    title: str
    licence: str
    origin: str
    research_only: bool


@dataclass(frozen=True, slots=True)
class TeacherSection:
    """How the teacher is trained; rates are AdamW learning rates, `frozen_blocks` counts from the stem.

    After `steps` with full augmentation come `settling_steps` from the averaged weights with augmentation of
    `settling_strength`, at rates times `settling_rate`; last come `finishing_steps` of the lung decoder alone, on an
    encoder that stands still. `nih_share` and `settling_nih_share` are shares of a batch. A teacher is trained
    `trainings` times by other chance, and all of them answer; a student once.
    """

    architecture: str
    steps: int
    batch: int
    backbone_rate: float
    head_rate: float
    weight_decay: float
    frozen_blocks: int
    ema_decay: float
    nih_share: float
    settling_steps: int
    settling_strength: float
    settling_rate: float
    settling_nih_share: float
    finishing_steps: int
    trainings: int = field(default=1, kw_only=True)


@dataclass(frozen=True, slots=True)
class StudentSection(TeacherSection):
    """How the student is distilled: as a teacher is trained, and the weights of what the teachers say.

    With `starts_from_second_teacher` it starts from that teacher's weights, not from published ones: both must be of
    one architecture. In a share `blanked` of children's pictures the student sees pieces outside the lungs blanked,
    while the teachers see the whole: what lies there should not decide about a child's lungs. In a share `occluded` of
    them a few pieces anywhere are blanked for the teachers, too.
    """

    starts_from_second_teacher: bool
    soft_label_weight: float
    feature_weight: float
    soft_mask_weight: float
    blanked: float = field(default=0.0, kw_only=True)
    occluded: float = field(default=0.0, kw_only=True)


@dataclass(frozen=True, slots=True)
class GuardSection:
    """How many wrong pictures of each made kind the guard learns from and is measured on."""

    made_per_kind_train: int
    made_per_kind_val: int


@dataclass(frozen=True, slots=True)
class QuantiseSection:
    """How the encoder becomes INT8: how many training images calibrate it, and what the search may lose.

    Bounds hold on the `tune` patients against FP32: AUC of either triage task, mean Dice, and the mean absolute change
    of a score, which shows a loss long before an AUC over a few dozen patients does. Where no setting is inside, the
    encoder is fine-tuned for `aware_steps` with its rounding switched on, and searched again; 0 leaves that out.
    `keep` names the setting to use, in the words of the search; empty, it is the fastest inside the bounds, which hangs
    on the clock.
    """

    calibration_images: int
    auc_loss_max: float
    dice_loss_max: float
    score_shift_max: float
    aware_steps: int = 0
    keep: str = ""


@dataclass(frozen=True, slots=True)
class OperatingSection:
    """What thresholds are chosen for, on the `tune` patients."""

    adult_sensitivity: float
    paediatric_sensitivity: float
    guard_pass_share: float


@dataclass(frozen=True, slots=True)
class GateSection:
    """Bounds on the validation patients; a pack that claims to be validated must keep all of them.

    Attributes:
        waived: Names of rules that may be broken, because somebody answers for it in `provenance.note`; report and card
            show each as not met.
        required_precisions: Of `int8` and `fp16`, those without which no pack is made; any other is left out when it
            is outside its bounds.
        adult_auc_aim, adult_auc_low_aim, sex_gap_aim: What is aimed at beyond the bounds; shown in the report and not
            judged. 0 where there is no aim.
    """

    adult_auc_min: float
    adult_auc_low_min: float
    paediatric_auc_min: float
    dice_min: float
    dice_p5_min: float
    ece_max: float
    share_of_teacher_min: float
    guard_pass_min: float
    guard_refusal_min: float
    int8_auc_loss_max: float
    int8_dice_loss_max: float
    int8_speed_min: float
    subgroup_images_min: int
    subgroup_auc_min: float
    subgroup_share_of_teacher_min: float
    sex_gap_max: float
    beyond_trivial_min: float
    beyond_trivial_share_min: float
    disturbed_auc_loss_max: float
    lung_attribution_min: float
    waived: tuple[str, ...] = ()
    required_precisions: tuple[str, ...] = ()
    adult_auc_aim: float = 0.0
    adult_auc_low_aim: float = 0.0
    sex_gap_aim: float = 0.0


@dataclass(frozen=True, slots=True)
class ProvenanceSection:
    """What a reader of the card must know of how the shipped weights were made, beyond the recipe's numbers."""

    note: str


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides what a pack becomes."""

    pack: PackSection
    input: InputSpec
    data: DataSection
    teacher: TeacherSection
    second_teacher: TeacherSection
    student: StudentSection
    guard: GuardSection
    quantise: QuantiseSection
    operating: OperatingSection
    gate: GateSection
    provenance: ProvenanceSection
    source: tuple[DataSource, ...] = ()
    foundation: tuple[FoundationTeacher, ...] = ()
    agglomeration: AgglomerationSection | None = None


def recipe_from_toml(path: Path) -> Recipe:
    """Read a recipe.

    Raises:
        SettingsError: No such file, no TOML, or a key that is unknown, missing or of another type; it is named.
    """
    return recipe_and_bytes(path)[0]


def recipe_and_bytes(path: Path) -> tuple[Recipe, bytes]:
    """Read a recipe, and what was read: hours later the file may be another one.

    Raises:
        SettingsError: As `recipe_from_toml`.
    """
    try:
        content = path.read_bytes()
        document = tomllib.loads(content.decode())
    except (OSError, ValueError) as error:  # no UTF-8 and no TOML are both values that do not fit
        raise SettingsError(f"The recipe {path} can't be read: {error}.", "Give an existing TOML file.") from error
    sections = {each.name: each.type for each in dataclasses.fields(Recipe) if each.name not in _OPTIONAL}
    refuse_difference("the recipe", set(document) - set(_OPTIONAL), set(sections))
    recipe = Recipe(
        **{name: section_from_table(name, kind, document[name]) for name, kind in sections.items()},
        source=_sources(document.get("source", [])),
        foundation=foundation_from_tables(document.get("foundation", [])),
        agglomeration=agglomeration_from_table(document.get("agglomeration")),
    )
    check_sources(recipe)
    check_foundation(recipe.foundation, recipe.agglomeration, recipe.pack.claim)
    if recipe.foundation and recipe.student.starts_from_second_teacher:
        raise SettingsError(
            "The student can't start from the second teacher and from foundation teachers.",
            "Set student.starts_from_second_teacher = false.",
        )
    if any(teacher.answers for teacher in recipe.foundation) and recipe.student.soft_label_weight <= 0:
        raise SettingsError(
            "Foundation teachers are to give soft labels, of which the student learns nothing.",
            "Set student.soft_label_weight above 0, or remove `answers`.",
        )
    check_trained(recipe)
    for name in recipe.gate.required_precisions:
        if name not in LOWER_PRECISIONS:
            raise SettingsError(
                f"gate.required_precisions of the recipe names {name!r}.", f"Known: {', '.join(LOWER_PRECISIONS)}."
            )
    check_mask_side(recipe)
    if recipe.quantise.aware_steps < 0:
        given = recipe.quantise.aware_steps
        raise SettingsError(f"quantise.aware_steps of the recipe is {given}.", "At least 0, which leaves it out.")
    return recipe, content


def as_json(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain values, for digests and for the card; what it leaves out is left out."""
    values = dataclasses.asdict(recipe)
    for section, names in _LEFT_OUT.items():
        for name in names:
            if not values[section][name]:
                del values[section][name]
    for section in ("teacher", "second_teacher", "student"):
        if values[section]["trainings"] == 1:
            del values[section]["trainings"]
    for name in _SHARES:
        if not getattr(recipe.student, name):
            del values["student"][name]
    return {name: value for name, value in values.items() if name not in _OPTIONAL or value}


def check_trained(recipe: Recipe) -> None:
    """Refuse a teacher that is never trained, a student that is trained more than once, and a share that is none.

    Raises:
        SettingsError: Names the section.
    """
    for name, most in (("teacher", None), ("second_teacher", None), ("student", 1)):
        given = getattr(recipe, name).trainings
        if given < 1 or (most is not None and given > most):
            bound = "At least 1." if most is None else "A student is trained once."
            raise SettingsError(f"{name}.trainings of the recipe is {given}.", bound)
    for name in _SHARES:
        share = getattr(recipe.student, name)
        if not 0.0 <= share <= 1.0:
            raise SettingsError(f"student.{name} of the recipe is {share}.", "A share, from 0 to 1.")


def check_mask_side(recipe: Recipe) -> None:
    """Refuse masks that can't be cut into pieces, which else is found out at the end of the line.

    Raises:
        SettingsError: The side is no positive multiple of `PIECES`.
    """
    given = recipe.data.mask_side
    if given < PIECES or given % PIECES:
        raise SettingsError(f"data.mask_side of the recipe is {given}.", f"It must be a multiple of {PIECES}.")


def check_sources(recipe: Recipe) -> None:
    """Refuse a data set without a plain name, and one whose licence forbids what the pack claims.

    Raises:
        SettingsError: Names it.
    """
    for source in recipe.source:
        if not re.fullmatch(NAME, source.name):
            raise SettingsError(f"The source {source.name!r} has no plain name.", f"Names are of the form {NAME}.")
        if source.research_only and recipe.pack.claim == VALIDATED:
            raise SettingsError(
                f"The source {source.name} is for research only ({source.licence}), but the pack claims to be "
                f"{VALIDATED}.",
                'Set claim = "research-only", or leave the source out.',
            )


def _sources(tables: object) -> tuple[DataSource, ...]:
    if not isinstance(tables, list):
        raise SettingsError("source of the recipe is no list of tables.", "Write each as [[source]].")
    return tuple(section_from_table("source", DataSource, table) for table in tables)
