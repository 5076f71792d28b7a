"""The demo's small receiving PACS: keeps every object that it is sent as a file, and when it came."""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from pydicom.dataset import FileMetaDataset
from pydicom.filewriter import write_file_meta_info

from appliance.domain.instance import Instance
from appliance.imaging.header import read_instance


@dataclass(frozen=True, slots=True)
class Received:
    """One object at the PACS: its attributes, its file, and the monotonic time in seconds at which it was complete."""

    instance: Instance
    path: Path
    at: float


class FolderSink:
    """Implements `InstanceSink`: `FOLDER/<modality>-<SOP Instance UID>.dcm`, newest copy of an object kept."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._lock = threading.Lock()
        self._received: dict[str, Received] = {}

    def accept(
        self,
        chunks: Iterator[bytes],
        *,
        transfer_syntax_uid: str,
        sop_class_uid: str,
        sop_instance_uid: str,
        calling_ae: str,
    ) -> bool:
        """Write the object and remember it."""
        del calling_ae
        draft = self._folder / f".{sop_instance_uid}.part"
        with draft.open("wb") as stream:
            stream.write(_file_meta(transfer_syntax_uid, sop_class_uid, sop_instance_uid))
            stream.writelines(chunks)
        instance = read_instance(draft)
        path = draft.rename(self._folder / f"{instance.image.modality or 'XX'}-{sop_instance_uid}.dcm")
        with self._lock:
            is_new = sop_instance_uid not in self._received
            self._received[sop_instance_uid] = Received(instance, path, time.monotonic())
        return is_new

    def of_study(self, study_uid: str) -> list[Received]:
        """What came for one study, in order of arrival."""
        with self._lock:
            found = [each for each in self._received.values() if each.instance.identity.study_uid == study_uid]
        return sorted(found, key=lambda each: each.at)


def _file_meta(transfer_syntax_uid: str, sop_class_uid: str, sop_instance_uid: str) -> bytes:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class_uid
    meta.MediaStorageSOPInstanceUID = sop_instance_uid
    meta.TransferSyntaxUID = transfer_syntax_uid
    buffer = BytesIO()
    buffer.write(b"\0" * 128 + b"DICM")
    write_file_meta_info(buffer, meta, enforce_standard=True)
    return buffer.getvalue()
