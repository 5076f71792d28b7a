"""The headers that results are made from: patient and study of the source images, cleaned to stay valid."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.uid import UID, SegmentationStorage

from appliance.domain.errors import ReportError

READ_ERRORS = (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, NotImplementedError)
IDENTITY = ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID")
DATE, TIME, AGE = r"\d{8}", r"\d{2}(\d{2}(\d{2}(\.\d{1,6})?)?)?", r"\d{3}[DWMY]"
PATTERNS = {
    "PatientBirthDate": DATE,
    "PatientSex": "[MFO]",
    "StudyDate": DATE,
    "StudyTime": TIME,
    "PatientAge": AGE,
    "Modality": r"[A-Z0-9_ ]{1,16}",
}
"""Values that break their VR (PS3.5 6.2) are left empty in results."""
LENGTHS = {
    "PatientName": 64,
    "PatientID": 64,
    "IssuerOfPatientID": 64,
    "AccessionNumber": 16,
    "StudyID": 16,
    "ReferringPhysicianName": 64,
    "StudyDescription": 64,
}
NAMES = frozenset({"PatientName", "ReferringPhysicianName"})
REQUIRED = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "AccessionNumber",
            "StudyID", "ReferringPhysicianName")  # fmt: skip
"""Type 2 attributes of the patient and study modules (PS3.3 C.7.1.1, C.7.2.1): present in results, empty if unknown."""
PATIENT_AND_STUDY = ("StudyInstanceUID", *REQUIRED, *sorted({*PATTERNS, *LENGTHS} - {*REQUIRED, "Modality"}))
"""What results share with their sources."""
IMAGE = ("Rows", "Columns", "PatientOrientation", "Manufacturer", "ManufacturerModelName")
PLANE = ("FrameOfReferenceUID", "ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing", "SliceThickness")
"""What places an image in space (PS3.3 C.7.4.1, C.7.6.2): taken over as a whole, or not at all."""


IDENTIFIERS = frozenset({"PatientID", "IssuerOfPatientID", "AccessionNumber", "StudyID"})
"""Values that name a patient or an order: whole in results, or empty."""


def headers_of(sources: Mapping[str, Path]) -> list[Dataset]:
    """A clean header of each source, sorted by SOP Instance UID.

    Raises:
        ReportError: A file can't be read any more.
    """
    return [_header(sources[uid]) for uid in sorted(sources)]


def is_image(sop_class_uid: str) -> bool:
    """Whether a content item of type IMAGE may refer to this SOP class (PS3.3 C.18.4); others are evidence only."""
    return "Image" in UID(sop_class_uid).name or sop_class_uid == SegmentationStorage


def _header(path: Path) -> Dataset:
    try:
        raw = pydicom.dcmread(path, force=True, stop_before_pixels=True)
        return _cleaned(raw)
    except READ_ERRORS as error:
        raise ReportError("A source image can't be read for its report.", "Check the spool's disk.") from error


def _cleaned(raw: Dataset) -> Dataset:
    clean = Dataset()
    for keyword in IDENTITY:
        setattr(clean, keyword, str(raw.get(keyword)).strip())
    for keyword in {*REQUIRED, *PATTERNS, *LENGTHS}:
        value = _text(raw, keyword)
        if keyword in PATTERNS and not re.fullmatch(PATTERNS[keyword], value):
            value = ""
        value = _fitted(keyword, value)
        if value or keyword in REQUIRED:
            setattr(clean, keyword, value)
    for keyword in (*IMAGE, *(PLANE if _is_placed(raw) else ())):
        if raw.get(keyword) not in (None, ""):
            setattr(clean, keyword, raw.get(keyword))
    return clean


def _is_placed(raw: Dataset) -> bool:
    spacing = raw.get("PixelSpacing")
    return all(raw.get(keyword) for keyword in PLANE) and all(float(each) > 0 for each in spacing or [0])


def _fitted(keyword: str, value: str) -> str:
    """A value cut to what its VR holds; each of a name's three writings may be as long as that (PS3.5 6.2.1.1).

    An identifier is never cut: a part of one may be somebody else's.
    """
    length = LENGTHS.get(keyword, 64)
    if keyword in IDENTIFIERS:
        return value if len(value) <= length else ""
    if keyword in NAMES:
        return "=".join(writing[:length] for writing in value.split("=")[:3])
    return value[:length]


def _text(raw: Dataset, keyword: str) -> str:
    try:
        value = raw.get(keyword)
    except READ_ERRORS:
        return ""
    if isinstance(value, MultiValue | Sequence) and not isinstance(value, str):
        value = value[0] if len(value) == 1 or (value and keyword not in IDENTIFIERS) else ""
    return re.sub(r"[\x00-\x1f\x7f\\]", " ", str(value or "")).strip()
