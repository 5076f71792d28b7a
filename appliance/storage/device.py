"""Who this installation is: a serial and a UID, made at first start and kept for good."""

import json
import os
import uuid
from pathlib import Path

from appliance.domain.device import DeviceIdentity
from appliance.domain.errors import StorageError

FILE_NAME = "device.json"


def device_identity(state: Path, ae_title: str, version: str) -> DeviceIdentity:
    """Read this installation's identity, or make it when the state folder has none yet.

    Several daemons may ask at the same first start: one of them makes the file, all read the same.

    Raises:
        StorageError: The file can't be read or made.
    """
    file = state / FILE_NAME
    try:
        if not file.exists():
            _make(file)
        kept = json.loads(file.read_text(encoding="utf-8"))
        return DeviceIdentity(kept["serial"], kept["device_uid"], version, ae_title)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(
            f"{file} can't be read or made: {error}.",
            "Restore it from a backup; without one, remove it and the appliance takes a new identity.",
        ) from error


def _make(file: Path) -> None:
    made = uuid.uuid4()
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    file.parent.mkdir(parents=True, exist_ok=True)
    with draft.open("w", encoding="utf-8") as stream:
        json.dump({"serial": made.hex[:12], "device_uid": f"2.25.{made.int}"}, stream)
        stream.flush()
        os.fsync(stream.fileno())
    try:
        os.link(draft, file)
    except FileExistsError:
        return
    finally:
        draft.unlink()
