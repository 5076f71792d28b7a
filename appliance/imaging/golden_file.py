"""DICOM files for a golden study: a pack's golden case as a radiograph, or a site's own file under the trial's name."""

from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, generate_uid

from appliance.domain.errors import UnreadableFileError
from appliance.domain.golden_study import ISSUER, PATIENT_ID, PATIENT_NAME
from appliance.imaging.parsing import PARSE_ERRORS

ROOT = "2.25."
AGE = "050Y"
"""An age that tasks for adults take."""


def write_golden_case(pixels: NDArray[np.uint8], body_part: str, file: Path) -> Path:
    """Write a golden input as a Computed Radiography image (PS3.3 A.2), so that it takes the way of any other.

    Args:
        pixels: uint8 [rows, columns], upright, MONOCHROME2: a model input, which the display path hands on unchanged.
        body_part: Body Part Examined (0018,0015), one that the pack's tasks take.
    """
    dataset = Dataset()
    dataset.SOPClassUID = ComputedRadiographyImageStorage
    dataset.StudyDate = dataset.StudyTime = dataset.AccessionNumber = dataset.ReferringPhysicianName = ""
    dataset.PatientBirthDate, dataset.PatientSex, dataset.PatientAge = "", "", AGE
    dataset.StudyID, dataset.SeriesNumber, dataset.InstanceNumber = "1", 1, 1
    dataset.StudyDescription = "Golden case of a model pack: synthetic, nobody's picture"
    dataset.Manufacturer, dataset.Modality = "Insite golden case", "CR"
    dataset.BodyPartExamined, dataset.ViewPosition = body_part, "PA"
    dataset.PatientOrientation, dataset.ImageType = ["L", "F"], ["DERIVED", "SECONDARY"]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    dataset.add_new("PixelData", "OB", pixels.tobytes())
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return _written(dataset, file)


def write_renamed(source: Path, file: Path) -> Path:
    """Write a copy of a DICOM file whose patient, study, series and instance are the trial's own.

    Everything else stays, the pixels as they are encoded.

    Raises:
        UnreadableFileError: The source is no DICOM file that can be copied.
    """
    try:
        dataset = pydicom.dcmread(source)
        for keyword in ("PatientBirthDate", "OtherPatientIDs", "OtherPatientNames", "AccessionNumber"):
            if keyword in dataset:
                setattr(dataset, keyword, "")
        return _written(dataset, file)
    except PARSE_ERRORS as error:
        raise UnreadableFileError(
            f"{source} can't be used as a golden study: {error}.", "Name another file."
        ) from error


def _written(dataset: Dataset, file: Path) -> Path:
    dataset.PatientID, dataset.IssuerOfPatientID, dataset.PatientName = PATIENT_ID, ISSUER, PATIENT_NAME
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID = (
        generate_uid(prefix=ROOT) for _ in range(3)
    )
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.save_as(file, enforce_file_format=True)
    return file
