"""A pack's recipe as typed values: one TOML file, unknown and missing keys are errors."""

import dataclasses
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.domain.errors import SettingsError
from appliance.domain.manifest import InputSpec


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
    encoder that stands still. `nih_share` and `settling_nih_share` are shares of a batch.
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


@dataclass(frozen=True, slots=True)
class StudentSection(TeacherSection):
    """How the student is distilled: as a teacher is trained, and the weights of what the teachers say.

    With `starts_from_second_teacher` it starts from that teacher's weights, not from published ones: both must be of
    one architecture.
    """

    starts_from_second_teacher: bool
    soft_label_weight: float
    feature_weight: float
    soft_mask_weight: float


@dataclass(frozen=True, slots=True)
class GuardSection:
    """How many wrong pictures of each made kind the guard learns from and is measured on."""

    made_per_kind_train: int
    made_per_kind_val: int


@dataclass(frozen=True, slots=True)
class QuantiseSection:
    """How the encoder becomes INT8: how many training images calibrate it, and what the search may lose.

    Bounds hold on the `tune` patients against FP32: AUC of either triage task, mean Dice, and the mean absolute change
    of a score, which shows a loss long before an AUC over a few dozen patients does.
    """

    calibration_images: int
    auc_loss_max: float
    dice_loss_max: float
    score_shift_max: float


@dataclass(frozen=True, slots=True)
class OperatingSection:
    """What thresholds are chosen for, on the `tune` patients."""

    adult_sensitivity: float
    paediatric_sensitivity: float
    guard_pass_share: float


@dataclass(frozen=True, slots=True)
class GateSection:
    """Bounds on the validation patients; a pack that claims to be validated must keep all of them."""

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


def recipe_from_toml(path: Path) -> Recipe:
    """Read a recipe.

    Raises:
        SettingsError: No such file, no TOML, or a key that is unknown, missing or of another type; it is named.
    """
    try:
        document = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"The recipe {path} can't be read: {error}.", "Give an existing TOML file.") from error
    sections = {field.name: field.type for field in dataclasses.fields(Recipe)}
    _refuse_difference("the recipe", set(document), set(sections))
    return Recipe(**{name: _section(name, kind, document[name]) for name, kind in sections.items()})


def as_json(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain values, for digests and for the card."""
    return dataclasses.asdict(recipe)


def _section(name: str, kind: Any, values: object) -> Any:
    if not isinstance(values, dict):
        raise SettingsError(f"[{name}] of the recipe is not a table.", "Write it as a TOML table.")
    fields = {field.name: field.type for field in dataclasses.fields(kind)}
    _refuse_difference(f"[{name}]", set(values), set(fields))
    return kind(**{key: _value(f"{name}.{key}", fields[key], value) for key, value in values.items()})


def _value(name: str, kind: Any, value: object) -> object:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
        raise SettingsError(f"{name} of the recipe is {value!r}.", f"It must be of type {kind.__name__}.")
    return value


def _refuse_difference(where: str, given: set[str], known: set[str]) -> None:
    for key in sorted(given - known):
        raise SettingsError(f"Unknown key {key!r} in {where}.", f"Known: {', '.join(sorted(known))}.")
    for key in sorted(known - given):
        raise SettingsError(f"{where} lacks the key {key!r}.", "Add it to the recipe.")
