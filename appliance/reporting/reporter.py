"""Turns an analysis into DICOM files: the report always, the segmentation where there is one."""

import errno
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset

from appliance.domain.device import MODEL_NAME, DeviceIdentity
from appliance.domain.errors import ReportError, StorageError, StorageFullError
from appliance.domain.findings import ResultObject, StudyAnalysis
from appliance.reporting.naming import Naming, naming_of
from appliance.reporting.quiet import silence_libraries
from appliance.reporting.seg import segmentation_of
from appliance.reporting.sources import headers_of
from appliance.reporting.sr import report_of

PROFILE = "binary"
"""The only encoding of segmentations so far; part of every UID, because another encoding is another object."""
BUILD_ERRORS = (ValueError, TypeError, LookupError, AttributeError, OverflowError)
"""What the library raises on sources that can't carry a valid object."""


class DicomReporter:
    """Implements `Reporter`."""

    def __init__(self, device: DeviceIdentity) -> None:
        self._device = device

    def write(
        self,
        analysis: StudyAnalysis,
        sources: Mapping[str, Path],
        created: datetime,
        folder: Path,
        earlier: Sequence[ResultObject] = (),
    ) -> Sequence[ResultObject]:
        """Write one SR, and one SEG where a segmentation ran, into `folder`; same input, same bytes.

        Raises:
            ReportError: The sources can't carry the result.
            StorageFullError, StorageError: The disk did not take it; later it may.
        """
        if not sources:
            raise ReportError("A study without images can't be reported on.", "Send the study again.")
        naming = naming_of(analysis, f"{PROFILE} {self._device.version}")
        silence_libraries()
        headers = headers_of(sources)
        try:
            by_uid = {str(header.SOPInstanceUID): header for header in headers}
            made = {
                "SR": report_of(analysis, headers, self._device, naming, _predecessors(earlier, naming)),
                "SEG": segmentation_of(analysis, by_uid, self._device, naming),
            }
        except BUILD_ERRORS as error:
            raise ReportError(
                "No valid result object can be made from the source images.",
                "Look at the source's patient, study and series attributes.",
            ) from error
        return [self._save(kind, dataset, created, folder) for kind, dataset in made.items() if dataset is not None]

    def _save(self, kind: str, dataset: Dataset, created: datetime, folder: Path) -> ResultObject:
        self._finish(dataset, created)
        final = folder / f"{kind}.dcm"
        draft = folder / f".{kind}.dcm.part"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with draft.open("wb") as stream:
                dataset.save_as(stream, enforce_file_format=True)
                stream.flush()
                os.fsync(stream.fileno())
            draft.rename(final)
        except OSError as error:
            with suppress(OSError):
                draft.unlink()
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise StorageFullError(f"No space is left to write {final}.", "Free space on its disk.") from error
            raise StorageError(f"{final} can't be written: {error.strerror}.", "Check its owner and disk.") from error
        return ResultObject(kind, str(dataset.SOPInstanceUID), str(dataset.SOPClassUID), str(final))

    def _finish(self, dataset: Dataset, created: datetime) -> None:
        """Set what the library takes from the wall clock or leaves out.

        Dates and times are the site's own, as in the source images beside which they are read (PS3.3 C.12.1.1.8).
        """
        local = created.astimezone()
        date, time = local.strftime("%Y%m%d"), local.strftime("%H%M%S.%f")
        dataset.SpecificCharacterSet = "ISO_IR 192"
        dataset.ContentDate, dataset.ContentTime = date, time
        dataset.InstanceCreationDate, dataset.InstanceCreationTime = date, time
        dataset.SeriesDate, dataset.SeriesTime = date, time
        dataset.ManufacturerModelName = MODEL_NAME
        dataset.DeviceSerialNumber = self._device.serial
        dataset.DeviceUID = self._device.device_uid
        dataset.SoftwareVersions = self._device.version
        for contribution in dataset.get("ContributingEquipmentSequence", []):
            contribution.ContributionDateTime = local.strftime("%Y%m%d%H%M%S.%f")


def _predecessors(earlier: Sequence[ResultObject], naming: Naming) -> list[Dataset]:
    """The report that this one replaces, if there is one on disk that is not the very same."""
    last = [result for result in earlier if result.kind == "SR"][-1:]
    return [
        pydicom.dcmread(result.path, stop_before_pixels=True)
        for result in last
        if result.sop_instance_uid != naming.uid("SR") and Path(result.path).is_file()
    ]
