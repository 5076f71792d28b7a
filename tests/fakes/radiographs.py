"""Small DICOM files of a procedural picture, each with the attributes that a test cares about."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian

ROOT = "1.2.826.0.1.3680043.8.498.77"


def chest_like(rows: int = 96, columns: int = 80, seed: int = 0) -> NDArray[np.uint16]:
    """A bright body with two dark ovals, uint16 [rows, columns], 12 bits; noise differs by seed."""
    y, x = np.mgrid[0:rows, 0:columns].astype(np.float64)
    y, x = y / rows, x / columns
    body = 0.1 + 0.7 * (np.abs(x - 0.5) < 0.42)
    for middle in (0.3, 0.7):
        body -= 0.5 * (((x - middle) / 0.13) ** 2 + ((y - 0.45) / 0.28) ** 2 < 1)
    body += np.random.default_rng(seed).normal(0, 0.01, body.shape)
    return np.asarray(np.clip(body, 0, 1) * 4095, dtype=np.uint16)


def radiograph_dataset(number: int = 1, pixels: NDArray[np.uint16] | None = None, **attributes: Any) -> Dataset:
    """A synthetic adult's frontal radiograph of study `number`; attributes go over it, None removes one."""
    picture = chest_like(seed=number) if pixels is None else pixels
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = ComputedRadiographyImageStorage, f"{ROOT}.{number}.1.1"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = f"{ROOT}.{number}", f"{ROOT}.{number}.1"
    dataset.PatientName, dataset.PatientID = f"SYNTHETIC^{number}", f"SYN-{number}"
    dataset.PatientBirthDate, dataset.PatientSex, dataset.PatientAge = "19600101", "O", "064Y"
    dataset.StudyDate, dataset.StudyTime, dataset.AccessionNumber = "20240301", "101500", ""
    dataset.StudyID, dataset.SeriesNumber, dataset.InstanceNumber = "1", 1, 1
    dataset.ReferringPhysicianName, dataset.Manufacturer = "", "Formula"
    dataset.Modality, dataset.BodyPartExamined, dataset.ViewPosition = "CR", "CHEST", "PA"
    dataset.PatientOrientation = ["L", "F"]
    dataset.PixelSpacing = [2.0, 2.0]
    dataset.ImageType = ["ORIGINAL", "PRIMARY"]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = picture.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.PixelData = picture.tobytes()
    for name, value in attributes.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return dataset


def write_radiograph(file: Path, number: int = 1, pixels: NDArray[np.uint16] | None = None, **attributes: Any) -> Path:
    """The same as a file."""
    radiograph_dataset(number, pixels, **attributes).save_as(file, enforce_file_format=True)
    return file
