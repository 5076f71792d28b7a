"""A synthetic chest radiograph, drawn by formula: no patient's image, and named synthetic wherever it is shown."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian

SIDE = 512
STUDY_UID = "1.2.826.0.1.3680043.8.498.1"
SERIES_UID = "1.2.826.0.1.3680043.8.498.1.1"
SOP_UID = "1.2.826.0.1.3680043.8.498.1.1.1"


def lungs() -> NDArray[np.bool_]:
    """Where the phantom's lungs lie, bool [512, 512]."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    right = _inside(x, y, (0.32, 0.47), (0.135, 0.27))
    left = _inside(x, y, (0.68, 0.47), (0.135, 0.27)) & ~_inside(x, y, (0.56, 0.62), (0.13, 0.14))
    return (right | left) & (y < 0.70 + 0.12 * (x - 0.5) ** 2)


def picture() -> NDArray[np.uint16]:
    """The phantom's pixels, uint16 [512, 512], 12 bits, high values white."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    image = np.full((SIDE, SIDE), 0.04)
    image += 0.46 * _soft(x, y, (0.5, 0.56), (0.43, 0.56))
    image -= 0.33 * _blurred(lungs())
    image += 0.20 * _soft(x, y, (0.555, 0.62), (0.13, 0.15))
    image += 0.16 * np.exp(-(((x - 0.5) / 0.035) ** 2))
    for rib in range(8):
        middle = 0.20 + 0.065 * rib
        arc = middle + 0.55 * (np.abs(x - 0.5) - 0.18) ** 2 * 2.2
        image += 0.055 * np.exp(-(((y - arc) / 0.010) ** 2)) * _soft(x, y, (0.5, 0.5), (0.36, 0.36))
    image += 0.10 * np.exp(-(((y - 0.155 - 0.35 * np.abs(x - 0.5)) / 0.014) ** 2)) * (np.abs(x - 0.5) < 0.36)
    image += np.random.default_rng(7).normal(0, 0.008, image.shape)
    return np.asarray(np.clip(image, 0, 1) * 4095, dtype=np.uint16)


def write_phantom(file: Path, *, patient_name: str = "PHANTOM^SYNTHETIC", patient_id: str = "SYNTHETIC-1") -> Path:
    """Write the phantom as a DICOM file of an adult's frontal chest radiograph."""
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = ComputedRadiographyImageStorage, SOP_UID
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = STUDY_UID, SERIES_UID
    dataset.PatientName, dataset.PatientID = patient_name, patient_id
    dataset.PatientBirthDate, dataset.PatientSex, dataset.PatientAge = "19600101", "O", "064Y"
    dataset.StudyDate, dataset.StudyTime, dataset.AccessionNumber = "20240301", "101500", ""
    dataset.StudyID, dataset.SeriesNumber, dataset.InstanceNumber = "1", 1, 1
    dataset.ReferringPhysicianName, dataset.Manufacturer = "", "Formula"
    dataset.Modality, dataset.BodyPartExamined, dataset.ViewPosition = "CR", "CHEST", "PA"
    dataset.StudyDescription = dataset.SeriesDescription = "Chest PA (synthetic phantom)"
    dataset.PatientOrientation = ["L", "F"]
    dataset.PixelSpacing = [0.7, 0.7]
    dataset.ImageType = ["DERIVED", "PRIMARY"]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = SIDE, SIDE
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.WindowCenter, dataset.WindowWidth = 1900, 3800
    dataset.PixelData = picture().tobytes()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.save_as(file, enforce_file_format=True)
    return file


def _inside(
    x: NDArray[np.float64], y: NDArray[np.float64], middle: tuple[float, float], half: tuple[float, float]
) -> NDArray[np.bool_]:
    return np.asarray(((x - middle[0]) / half[0]) ** 2 + ((y - middle[1]) / half[1]) ** 2 < 1)


def _soft(
    x: NDArray[np.float64], y: NDArray[np.float64], middle: tuple[float, float], half: tuple[float, float]
) -> NDArray[np.float64]:
    radius = np.sqrt(((x - middle[0]) / half[0]) ** 2 + ((y - middle[1]) / half[1]) ** 2)
    return np.asarray(1 / (1 + np.exp((radius - 1) * 30)))


def _blurred(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    soft = mask.astype(np.float64)
    for axis in (0, 1):
        soft = np.mean([np.roll(soft, shift, axis) for shift in range(-6, 7)], axis=0)
    return soft
