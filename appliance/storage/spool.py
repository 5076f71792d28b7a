"""Received files on disk: a data set is on stable storage, under its study, before anybody says that it is.

Folders: `incoming/` holds what is being received, `<study>/<series>/` what is kept, `conflicts/` what must not
replace something kept. A file in `incoming/` is `.part` while it grows and `.whole` from its last byte until its
owner is done with it, so that after a crash the leftovers there are exactly the unfinished work.
"""

import errno
import fcntl
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from appliance.domain.errors import StorageError, StorageFullError
from appliance.domain.identifiers import digest_of
from appliance.domain.instance import InstanceIdentity
from appliance.storage.part10 import DataSetOrigin, file_head

MIB = 1 << 20
CHECK_EVERY_BYTES = 16 * MIB
"""How much is written between two looks at the free space."""
NAME_DIGITS = 32
"""Hex digits of a file's and a folder's name: 128 bits of a digest."""
_FULL = {errno.ENOSPC, errno.EDQUOT}


@dataclass(frozen=True, slots=True)
class Incoming:
    """A whole data set on disk that nobody has answered for yet; `content_sha256` leaves out the file's head."""

    path: Path
    content_sha256: str


class Spool:
    """The folder of received files.

    Args:
        min_free_mib: MiB that must stay free on its disk; below it nothing more is taken.
    """

    def __init__(self, folder: Path, min_free_mib: int) -> None:
        self._folder = folder
        self._min_free = min_free_mib * MIB
        self._incoming = folder / "incoming"
        self._conflicts = folder / "conflicts"
        with _storage_errors(folder):
            for each in (folder, self._incoming, self._conflicts):
                each.mkdir(mode=0o770, parents=True, exist_ok=True)
                _sync_folder(each.parent)

    @contextmanager
    def receive(self, chunks: Iterator[bytes], origin: DataSetOrigin) -> Iterator[Incoming]:
        """Write an encoded data set as a DICOM file (PS3.10), byte for byte, and have it on disk.

        The incoming file is removed at the end of the `with`, unless the process dies in it.

        Raises:
            StorageFullError: Too little space is free, before or while writing.
            StorageError: The file can't be written.
        """
        part = self._incoming / f"{uuid.uuid4().hex}.part"
        whole = part.with_suffix(".whole")
        try:
            with _storage_errors(self._folder):
                stream = part.open("xb")
            with stream:
                with _storage_errors(self._folder):
                    fcntl.flock(stream, fcntl.LOCK_EX)
                    digest = self._write(stream, chunks, origin)
                    part.rename(whole)
                    _sync_folder(self._incoming)
                yield Incoming(whole, digest)
        finally:
            part.unlink(missing_ok=True)
            whole.unlink(missing_ok=True)

    def keep(self, incoming: Incoming, token: str, identity: InstanceIdentity) -> Path:
        """Give an incoming file its place under its study; returns when the place is on disk.

        The name covers the content too: the same bytes have the same place, other bytes never take it.

        Raises:
            StorageError: The file can't be placed.
        """
        folder = self._folder / token / digest_of("series", identity.series_uid)[:NAME_DIGITS]
        name = digest_of("instance", identity.sop_instance_uid, incoming.content_sha256)[:NAME_DIGITS]
        return self._place(incoming, folder / f"{name}.dcm")

    def set_aside(self, incoming: Incoming) -> Path:
        """Keep an incoming file that must not join its study.

        Raises:
            StorageError: The file can't be placed.
        """
        return self._place(incoming, self._conflicts / f"{incoming.content_sha256[:NAME_DIGITS]}.dcm")

    def discard(self, path: Path) -> None:
        """Remove a kept file that no row of the ledger names.

        Raises:
            StorageError: It can't be removed.
        """
        with _storage_errors(self._folder):
            path.unlink(missing_ok=True)
            _sync_folder(path.parent)

    def leftovers(self) -> Iterator[Incoming]:
        """Whole files that a crash left before they were answered for; each is removed after its turn.

        Files that were still growing are removed at once: nobody was told that they arrived. Files that another
        process is writing are left alone.

        Raises:
            StorageError: They can't be read or removed.
        """
        for path in sorted(self._incoming.iterdir()):
            with _storage_errors(self._folder):
                stream = path.open("rb")
            with stream:
                if not _lock_is_free(stream):
                    continue
                if path.suffix == ".whole":
                    with _storage_errors(self._folder):
                        digest = _digest_of_data_set(stream)
                    yield Incoming(path, digest)
            path.unlink(missing_ok=True)

    def _write(self, stream: BinaryIO, chunks: Iterator[bytes], origin: DataSetOrigin) -> str:
        self._require_space()
        stream.write(file_head(origin))
        digest = hashlib.sha256()
        since_check = 0
        for chunk in chunks:
            stream.write(chunk)
            digest.update(chunk)
            since_check += len(chunk)
            if since_check >= CHECK_EVERY_BYTES:
                self._require_space()
                since_check = 0
        stream.flush()
        os.fsync(stream.fileno())
        return digest.hexdigest()

    def _require_space(self) -> None:
        free = shutil.disk_usage(self._folder).free
        if free < self._min_free:
            raise StorageFullError(
                f"{free // MIB} MiB are free for {self._folder}; {self._min_free // MIB} MiB must stay free.",
                "Free space on that disk, or lower node.min_free_mib.",
            )

    def _place(self, incoming: Incoming, target: Path) -> Path:
        with _storage_errors(self._folder):
            target.parent.mkdir(mode=0o770, parents=True, exist_ok=True)
            try:
                os.link(incoming.path, target)
            except FileExistsError:
                _heal(target, incoming)
            for folder in (target.parent, target.parent.parent, self._folder):
                _sync_folder(folder)
        return target


def _lock_is_free(stream: BinaryIO) -> bool:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _heal(target: Path, incoming: Incoming) -> None:
    """Put the arriving bytes in the place of a kept file that no longer has them: its name says what it should hold."""
    with target.open("rb") as stream:
        if _digest_of_data_set(stream) == incoming.content_sha256:
            return
    healed = target.with_name(f".{target.name}.{incoming.path.name}")
    healed.unlink(missing_ok=True)
    os.link(incoming.path, healed)
    healed.replace(target)


def _digest_of_data_set(stream: BufferedReader) -> str:
    """SHA-256 of what follows the file meta information; its group length is the first element after the preamble."""
    stream.seek(140)
    length = int.from_bytes(stream.read(4), "little")
    stream.seek(144 + length)
    return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _storage_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageFullError(f"No space is left for {folder}.", "Free space on its disk.") from error
        raise StorageError(f"{folder} can't be used: {error.strerror}.", "Check its owner, rights and disk.") from error
