"""The demo's small receiving PACS: keeps every object that it is sent as a file, and when it came."""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from appliance.domain.instance import Instance
from appliance.imaging.header import read_instance
from appliance.storage.part10 import DataSetOrigin, file_head


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
        draft = self._folder / f".{sop_instance_uid}.part"
        with draft.open("wb") as stream:
            origin = DataSetOrigin(sop_class_uid, sop_instance_uid, transfer_syntax_uid, calling_ae)
            stream.write(file_head(origin))
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
