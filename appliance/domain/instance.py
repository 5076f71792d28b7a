"""One DICOM instance as the appliance knows it: identity, patient, acquisition, image attributes."""

import enum
from dataclasses import dataclass

from appliance.domain.identifiers import digest_of


class AgeSource(enum.Enum):
    """Where a patient's age comes from."""

    PATIENT_AGE = "PatientAge"
    BIRTH_DATE = "PatientBirthDate and a date of the study"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class InstanceIdentity:
    """The identifiers of one SOP instance (PS3.3 C.12.1, C.7.2.1, C.7.3.1), and the digest of its stored bytes.

    Attributes:
        content_sha256: Hex SHA-256 of the whole data set as stored, without preamble and file meta information.
    """

    sop_instance_uid: str
    sop_class_uid: str
    series_uid: str
    study_uid: str
    transfer_syntax_uid: str
    content_sha256: str


@dataclass(frozen=True, slots=True)
class Patient:
    """The patient module as received (PS3.3 C.7.1.1); `age_years` is derived, None when unknown.

    `name` is the PN value with its carets, decoded by the instance's character set; `birth_date` is `YYYYMMDD` or
    empty; `sex` is `M`, `F`, `O` or empty.
    """

    patient_id: str
    issuer: str
    name: str
    birth_date: str
    sex: str
    age_years: float | None
    age_source: AgeSource


@dataclass(frozen=True, slots=True)
class ImageAttributes:
    """What decides whether a task fits an image; empty string or None stands for an absent attribute.

    Attributes:
        patient_orientation: Row and column direction (0020,0020), for instance `("L", "F")`; empty when absent.
        pixel_spacing_mm: Row spacing, column spacing in mm, out of Pixel Spacing or Imager Pixel Spacing;
            None when absent or not positive (a spacing of zero counts as absent).
        frames: 1 when Number of Frames is absent.
        presentation_intent: (0008,0068), `FOR PRESENTATION`, `FOR PROCESSING` or empty.
    """

    modality: str
    body_part: str
    view_position: str
    laterality: str
    patient_orientation: tuple[str, ...]
    photometric: str
    rows: int
    columns: int
    frames: int
    samples_per_pixel: int
    bits_stored: int
    pixel_spacing_mm: tuple[float, float] | None
    presentation_intent: str
    manufacturer: str
    model_name: str
    study_date: str
    description: str
    has_pixels: bool


@dataclass(frozen=True, slots=True)
class Instance:
    """One received instance: who it is, whose it is, what it shows."""

    identity: InstanceIdentity
    patient: Patient
    image: ImageAttributes


@dataclass(frozen=True, slots=True)
class StudyKey:
    """What keeps two studies apart: the Study Instance UID and the patient's identity.

    Two patients under one Study Instance UID (a mistake that happens) are two studies here, never one.
    """

    study_uid: str
    patient_id: str
    issuer: str

    @property
    def token(self) -> str:
        """A short, path-safe, stable name of this study: hex, without patient data in the clear."""
        return digest_of("study", self.study_uid, self.patient_id, self.issuer)[:32]


def key_of(instance: Instance) -> StudyKey:
    """The study that an instance belongs to; a patient without an ID is told apart by name and birth date."""
    patient = instance.patient
    who = patient.patient_id or f"{patient.name}|{patient.birth_date}"
    return StudyKey(instance.identity.study_uid, who, patient.issuer)
