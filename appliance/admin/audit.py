"""Who looked at what, and when: one JSON line an event, only ever appended, without patient data."""

import json
import os
import threading
from datetime import UTC, datetime
from pathlib import Path

from appliance.domain.errors import StorageError


class AuditLog:
    """Appends events to a file of mode 0600; a line is on disk when `record` returns.

    Studies are named by their token, which says nothing of the patient to somebody without the ledger.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._one_at_a_time = threading.Lock()

    def record(self, at: datetime, user: str, address: str, event: str, **facts: str | int) -> None:
        """Append one event.

        Args:
            at: When; aware.
            event: A stable word, for instance `viewed-study`.
            facts: What else is known, for instance `token` and `revision`; never a name or an identifier of a patient.

        Raises:
            StorageError: The line can't be written. What was to be audited must then not happen.
        """
        line = {"at": at.astimezone(UTC).isoformat(timespec="seconds"), "user": user, "address": address}
        data = json.dumps({**line, "event": event, **facts}, ensure_ascii=False).encode() + b"\n"
        try:
            with self._one_at_a_time:
                self._append(data)
        except OSError as error:
            raise StorageError(
                f"{self._file} can't be written: {error.strerror}.", "Nothing is shown that can't be audited."
            ) from error

    def _append(self, data: bytes) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            while data:
                data = data[os.write(descriptor, data) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
