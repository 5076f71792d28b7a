"""From a DICOM file to an `Instance`: who it is, whose it is, what it shows."""

import hashlib
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from appliance.domain.errors import UnreadableFileError
from appliance.domain.instance import ImageAttributes, Instance, InstanceIdentity, Patient
from appliance.imaging.age import age_of
from appliance.imaging.parsing import PIXEL_KEYWORDS, numbers_of, read_dataset, text_of, value_of, values_of, whole_of

REFERENCE_DATES = ("StudyDate", "AcquisitionDate", "SeriesDate", "ContentDate")
VIEW_FROM_CODE = {
    ("SCT", "399348003"): "AP",
    ("SRT", "R-10206"): "AP",
    ("SCT", "272479007"): "PA",
    ("SRT", "R-10214"): "PA",
    ("SCT", "399173006"): "LL",
    ("SRT", "R-10236"): "LL",
    ("SCT", "399198007"): "RL",
    ("SRT", "R-10232"): "RL",
}
"""View Code Sequence (PS3.16 CID 4010) in words of View Position (PS3.3 C.8.7.1.1.2, C.8.11.5.1.1)."""
CHEST_CODES = frozenset({("SCT", "51185008"), ("SRT", "T-D3000")})
"""Thorax in Anatomic Region Sequence (PS3.16 CID 4009)."""
CHUNK_BYTES = 1 << 20
GROUP_LENGTH_HEAD = b"\x02\0\0\0UL\x04\0"
"""File Meta Information Group Length (0002,0000), always Explicit VR Little Endian."""
LONG_VRS = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
"""VRs with a 32-bit length in Explicit VR (PS3.5 7.1.2)."""


def read_instance(path: Path) -> Instance:
    """Read one file's identity and attributes, without decoding pixels.

    Raises:
        UnreadableFileError: Not DICOM, truncated, a DICOMDIR, or without an identifying UID; the sentence says which.
    """
    dataset = read_dataset(path)
    meta = getattr(dataset, "file_meta", None)
    syntax = text_of(meta, "TransferSyntaxUID") if meta is not None else ""
    if text_of(meta, "MediaStorageSOPClassUID") == "1.2.840.10008.1.3.10":
        raise UnreadableFileError("The file is a DICOMDIR, an index, not an instance.", "Send the files that it lists.")
    return instance_from_dataset(dataset, content_digest(path), syntax or _syntax_found(dataset))


def instance_from_dataset(dataset: Dataset, content_sha256: str, transfer_syntax_uid: str) -> Instance:
    """The instance that a parsed data set describes.

    Raises:
        UnreadableFileError: A UID that identifies it is missing.
    """
    uids = {
        "SOPInstanceUID": "SOP Instance UID (0008,0018)",
        "SOPClassUID": "SOP Class UID (0008,0016)",
        "StudyInstanceUID": "Study Instance UID (0020,000D)",
        "SeriesInstanceUID": "Series Instance UID (0020,000E)",
    }
    found = {keyword: text_of(dataset, keyword) for keyword in uids}
    missing = [uids[keyword] for keyword, value in found.items() if not value]
    if missing:
        raise UnreadableFileError(f"The instance has no {', no '.join(missing)}.", "Send it with its identifiers.")
    identity = InstanceIdentity(
        sop_instance_uid=found["SOPInstanceUID"],
        sop_class_uid=found["SOPClassUID"],
        series_uid=found["SeriesInstanceUID"],
        study_uid=found["StudyInstanceUID"],
        transfer_syntax_uid=transfer_syntax_uid,
        content_sha256=content_sha256,
    )
    return Instance(identity, _patient(dataset), _image(dataset))


def content_digest(path: Path) -> str:
    """Hex SHA-256 of the data set's bytes: what follows preamble and file meta information (PS3.10 7.1)."""
    sha = hashlib.sha256()
    with path.open("rb") as stream:
        stream.seek(_dataset_offset(stream.read(65_536)))
        while chunk := stream.read(CHUNK_BYTES):
            sha.update(chunk)
    return sha.hexdigest()


def _dataset_offset(head: bytes) -> int:
    """Where the file meta information ends: by its group length where it has one (PS3.10 7.1), else by its tags."""
    at = 132 if head[128:132] == b"DICM" else 0
    if head[at : at + 8] == GROUP_LENGTH_HEAD:
        return at + 12 + int.from_bytes(head[at + 8 : at + 12], "little")
    while head[at : at + 2] == b"\x02\0":
        if head[at + 4 : at + 6] in LONG_VRS:
            at += 12 + int.from_bytes(head[at + 8 : at + 12], "little")
        else:
            at += 8 + int.from_bytes(head[at + 6 : at + 8], "little")
    return at


def _syntax_found(dataset: Dataset) -> str:
    """The transfer syntax that a file without file meta information turned out to have."""
    implicit, little = dataset.original_encoding
    if implicit:
        return str(ImplicitVRLittleEndian)
    return str(ExplicitVRLittleEndian if little else ExplicitVRBigEndian)


def _patient(dataset: Dataset) -> Patient:
    age, source = age_of(
        text_of(dataset, "PatientAge"),
        text_of(dataset, "PatientBirthDate"),
        (text_of(dataset, keyword) for keyword in REFERENCE_DATES),
    )
    sex = text_of(dataset, "PatientSex").upper()
    return Patient(
        patient_id="\\".join(values_of(dataset, "PatientID")),
        issuer=text_of(dataset, "IssuerOfPatientID"),
        name=text_of(dataset, "PatientName"),
        birth_date=text_of(dataset, "PatientBirthDate"),
        sex=sex if sex in {"M", "F", "O"} else "",
        age_years=age,
        age_source=source,
    )


def _image(dataset: Dataset) -> ImageAttributes:
    return ImageAttributes(
        modality=text_of(dataset, "Modality").upper(),
        body_part=_body_part(dataset),
        view_position=_view(dataset),
        laterality=text_of(dataset, "ImageLaterality") or text_of(dataset, "Laterality"),
        patient_orientation=values_of(dataset, "PatientOrientation"),
        photometric=text_of(dataset, "PhotometricInterpretation").upper(),
        rows=whole_of(dataset, "Rows", 0),
        columns=whole_of(dataset, "Columns", 0),
        frames=max(whole_of(dataset, "NumberOfFrames", 1), 1),
        samples_per_pixel=whole_of(dataset, "SamplesPerPixel", 1),
        bits_stored=whole_of(dataset, "BitsStored", 0),
        pixel_spacing_mm=spacing_of(dataset),
        presentation_intent=text_of(dataset, "PresentationIntentType").upper(),
        manufacturer=text_of(dataset, "Manufacturer"),
        model_name=text_of(dataset, "ManufacturerModelName"),
        study_date=text_of(dataset, "StudyDate"),
        description=text_of(dataset, "StudyDescription") or text_of(dataset, "SeriesDescription"),
        has_pixels=any(keyword in dataset for keyword in PIXEL_KEYWORDS),
    )


def spacing_of(dataset: Dataset) -> tuple[float, float] | None:
    """Row and column spacing in mm out of Pixel Spacing, else Imager Pixel Spacing; zero, less or broken is absent."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing"):
        match numbers_of(dataset, keyword):
            case (float(row), float(column)) if 0 < row < float("inf") and 0 < column < float("inf"):
                return row, column
    return None


def _body_part(dataset: Dataset) -> str:
    stated = text_of(dataset, "BodyPartExamined").upper()
    if stated:
        return stated
    region = value_of(dataset, "AnatomicRegionSequence")
    if region is None:
        return ""
    return "CHEST" if _code(region) in CHEST_CODES else text_of(region, "CodeMeaning").upper()


def _view(dataset: Dataset) -> str:
    stated = text_of(dataset, "ViewPosition").upper()
    if stated:
        return stated
    view = value_of(dataset, "ViewCodeSequence")
    return "" if view is None else VIEW_FROM_CODE.get(_code(view), text_of(view, "CodeMeaning").upper())


def _code(item: Any) -> tuple[str, str]:
    return text_of(item, "CodingSchemeDesignator"), text_of(item, "CodeValue")
