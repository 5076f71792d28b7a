"""Small DICOM data sets for tests: complete enough to be sent and kept, with pixels that mean nothing."""

from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian


def small_radiograph(sop_instance_uid: str = "1.2.3.1", **attributes: Any) -> Dataset:
    """A CR image of 8 x 8 pixels; an attribute given as None is left out."""
    values: dict[str, Any] = {
        "SOPClassUID": ComputedRadiographyImageStorage,
        "SOPInstanceUID": sop_instance_uid,
        "StudyInstanceUID": "1.2.3",
        "SeriesInstanceUID": "1.2.3.9",
        "PatientID": "P1",
        "PatientName": "Doe^Jane",
        "PatientBirthDate": "19500101",
        "PatientSex": "F",
        "StudyDate": "20200101",
        "Modality": "CR",
        "BodyPartExamined": "CHEST",
        "ViewPosition": "PA",
        "Manufacturer": "Acme",
        "Rows": 8,
        "Columns": 8,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 8,
        "BitsStored": 8,
        "HighBit": 7,
        "PixelRepresentation": 0,
        "PixelData": bytes(range(64)),
    }
    dataset = Dataset()
    for keyword, value in {**values, **attributes}.items():
        if value is not None:
            setattr(dataset, keyword, value)
    dataset["PixelData"].VR = "OB"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.get("SOPClassUID", ComputedRadiographyImageStorage)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.get("SOPInstanceUID", "1.2.3.1")
    return dataset


def write_radiograph(path: Path, sop_instance_uid: str = "1.2.3.1", **attributes: Any) -> Path:
    """The same as a file."""
    small_radiograph(sop_instance_uid, **attributes).save_as(path, enforce_file_format=True)
    return path
