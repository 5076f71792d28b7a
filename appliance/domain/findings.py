"""What was found, refused or failed: the outcome of every known task for one study."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from appliance.domain.instance import AgeSource, InstanceIdentity, Patient, StudyKey
from appliance.domain.manifest import Code, OperatingPoint, TaskKind, Validation


class TaskState(enum.Enum):
    """A task ran, was refused for a reason, or failed: never silence."""

    RAN = "ran"
    REFUSED = "refused"
    FAILED = "failed"


class RefusalCode(enum.Enum):
    """Why a task did not run; the value is the stable word in JSON, logs and SR."""

    NO_IMAGES = "no-images"
    NO_PIXELS = "no-pixels"
    PIXELS_UNREADABLE = "pixels-unreadable"
    MODALITY = "modality"
    BODY_PART = "body-part"
    VIEW = "view"
    MULTI_FRAME = "multi-frame"
    COLOUR = "colour"
    FOR_PROCESSING = "for-processing"
    ORIENTATION = "orientation"
    AGE_UNKNOWN = "age-unknown"
    AGE_OUT_OF_RANGE = "age-out-of-range"
    NO_CONTRAST = "no-contrast"
    NOT_RECOGNISED = "not-recognised"
    OUT_OF_DISTRIBUTION = "out-of-distribution"
    GUARD_UNAVAILABLE = "guard-unavailable"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A reason with its sentence, for page, SR and JSON."""

    code: RefusalCode
    sentence: str


@dataclass(frozen=True, slots=True)
class ModelProvenance:
    """Which model computed a result: what every inference response carries.

    Attributes:
        release: The pack's integer release (the Open Inference Protocol's model version).
        pack_digest, base_digest: Hex SHA-256.
        precision: `int8`, `fp32`, …
    """

    pack: str
    release: int
    pack_digest: str
    base_digest: str
    precision: str


@dataclass(frozen=True, eq=False, slots=True)
class SegmentationMask:
    """A binary mask on the pixel grid of its source image, as stored in the file.

    Attributes:
        pixels: bool [rows, columns], the source's own Rows and Columns, before any display rotation.
        area_mm2: Area in mm², None when the source has no pixel spacing.
    """

    pixels: NDArray[np.bool_]
    area_mm2: float | None


@dataclass(frozen=True, slots=True)
class TaskOutcome:
    """What one task says of one study.

    Attributes:
        image: The image that the outcome speaks of; None when no image was looked at.
        score: Probability in [0, 1]; None for a segmentation or where the task did not run.
        positive: Score at or above the operating point; None where there is no score.
        notes: Sentences that a reader must see, for instance that the age is unknown.
        error: For FAILED: what went wrong, without exception text.
        pack: Name of the pack that the task belongs to, also where it did not run.
    """

    task: str
    title: str
    kind: TaskKind
    finding: Code
    state: TaskState
    refusal: Refusal | None = None
    error: str = ""
    image: InstanceIdentity | None = None
    score: float | None = None
    operating_point: OperatingPoint | None = None
    positive: bool | None = None
    provenance: ModelProvenance | None = None
    mask: SegmentationMask | None = None
    notes: tuple[str, ...] = ()
    pack: str = ""

    @property
    def reason(self) -> str:
        """Why the task did not run, in a sentence; empty when it ran."""
        if self.refusal is not None:
            return self.refusal.sentence
        return self.error


@dataclass(frozen=True, slots=True)
class StudyAnalysis:
    """Every known task's outcome for one revision of one study, with the images it was computed from.

    Attributes:
        sources: Identities of all images of the study at this revision, sorted by SOP Instance UID.
        pack_digests: Pack name to pack digest, of every pack that was asked, also where all its tasks refused.
        gate_reports: Pack name to gate report identifier.
        validations: Pack name to the word of its `Validation`.
    """

    key: StudyKey
    revision: int
    patient: Patient
    sources: tuple[InstanceIdentity, ...]
    outcomes: tuple[TaskOutcome, ...]
    pack_digests: Mapping[str, str] = field(default_factory=dict)
    gate_reports: Mapping[str, str] = field(default_factory=dict)
    validations: Mapping[str, str] = field(default_factory=dict)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What must stand wherever results of packs that are not validated are shown."""
        return tuple(
            f"Pack {name} is {word}: what it says means nothing for a patient."
            for name, word in sorted(self.validations.items())
            if word != Validation.VALIDATED.value
        )

    @property
    def age_unknown(self) -> bool:
        """Whether the patient's age could not be established."""
        return self.patient.age_source is AgeSource.UNKNOWN


@dataclass(frozen=True, slots=True)
class ResultObject:
    """One DICOM object that the appliance made: its kind (`SR`, `SEG`), identifiers and file."""

    kind: str
    sop_instance_uid: str
    sop_class_uid: str
    path: str
