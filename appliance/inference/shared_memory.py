"""POSIX shared memory that clients register: read by copying, never mapped.

A region belongs to the client, which gives the daemon's group read access (and write access, for outputs). It can
change, shrink or unlink it at any moment. So nothing is mapped (a mapping that shrinks under its reader kills it), and
an input is copied before it is looked at: what was hashed is what the encoder sees.
"""

import errno
import os
import stat
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from appliance.domain.errors import (
    RegionAccessError,
    RegionExistsError,
    RegionFullError,
    RegionRangeError,
    SharedMemoryError,
    TooManyRegionsError,
    UnknownRegionError,
)
from appliance.inference.tensors import Array

FOLDER = Path("/dev/shm")  # noqa: S108 - where shm_open(3) puts regions on Linux
CAPACITY = 256
"""Regions at a time. Each holds a file descriptor, one more when it takes outputs: together half of the 1,024 that a
process may usually have, so that clients can't use up those that connections and packs need."""
OWNER_CAPACITY = 192
"""Of these, regions whose memory is of one user: a client that forgets to unregister leaves room for others'."""
LONGEST_KEY = 255

_CHMOD = "Give the daemon's group access: chgrp and chmod the file of the region in /dev/shm."
_ROOM = "Free memory in /dev/shm, or ask for the output in the answer."


@dataclass(frozen=True, slots=True)
class Region:
    """A registered region: `key` as given to shm_open, `offset` and `size` in bytes within it."""

    name: str
    key: str
    offset: int
    size: int


@dataclass(slots=True)
class _Open:
    region: Region
    descriptor: int
    owner: int
    writable: int | None = None


def own_groups() -> frozenset[int]:
    """The groups whose rights this process has."""
    return frozenset({os.getegid(), *os.getgroups()})


class SharedRegions:
    """The regions that are registered; several threads may use it.

    Args:
        folder: Where the system keeps regions.
        user: Whose rights count; default: this process's. Root's power to open anything is not used.
        groups: The same, of groups.
    """

    def __init__(
        self, folder: Path = FOLDER, user: int | None = None, groups: Callable[[], frozenset[int]] = own_groups
    ) -> None:
        self._folder = folder
        self._user = os.geteuid() if user is None else user
        self._groups = groups
        self._lock = threading.Lock()
        self._open: dict[str, _Open] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.unregister("")

    def register(self, region: Region) -> None:
        """Open a region under its name, for reading.

        Raises:
            RegionExistsError: The name is taken by another region.
            TooManyRegionsError: `CAPACITY` are registered, or `OWNER_CAPACITY` of the user who owns this one's memory.
            UnknownRegionError: There is no such memory.
            RegionAccessError: Its owner does not let this daemon read it, or the key is no name of a region.
            RegionRangeError: It is smaller than said.
        """
        name = region.key.removeprefix("/")
        if not name or "/" in name or "\0" in name or name in {".", ".."} or len(name) > LONGEST_KEY:
            raise RegionAccessError(f"The key {region.key!r} is no name of shared memory.", "See shm_open(3).")
        descriptor = self._opened(region, self._folder / name)
        try:
            opened = _Open(region, descriptor, os.fstat(descriptor).st_uid)
            with self._lock:
                self._check_room(opened)
                self._open[region.name] = opened
        except BaseException:
            os.close(descriptor)
            raise

    def unregister(self, name: str) -> None:
        """Forget a region, all for an empty name; one that is not known is no error, as the protocol has it."""
        with self._lock:
            names = [name] if name else list(self._open)
            gone = [self._open.pop(each) for each in names if each in self._open]
        for each in gone:
            _close(each)

    def status(self, name: str) -> Sequence[Region]:
        """The region of a name, or all for an empty one; regions that their owner has removed are forgotten first.

        Raises:
            UnknownRegionError: No such name.
        """
        self.sweep()
        with self._lock:
            if name and name not in self._open:
                raise _unknown(name)
            return tuple(each.region for each in self._open.values() if name in {"", each.region.name})

    def sweep(self) -> None:
        """Forget regions whose memory was unlinked: their owner is gone, and only this descriptor keeps the memory."""
        with self._lock:
            gone = [name for name, each in self._open.items() if os.fstat(each.descriptor).st_nlink == 0]
            closed = [self._open.pop(name) for name in gone]
        for each in closed:
            _close(each)

    def read(self, name: str, offset: int, size: int) -> Array:
        """A copy of bytes of a region, uint8 [size].

        Raises:
            UnknownRegionError, RegionRangeError: As their names say.
            SharedMemoryError: The system can't read it.
        """
        with self._lock:
            each = self._find(name, offset, size)
            buffer = np.empty(size, np.uint8)
            try:
                found = os.preadv(each.descriptor, [buffer.data], each.region.offset + offset) if size else 0
            except OSError as error:
                raise SharedMemoryError(
                    f"The region {name} can't be read: {error.strerror}.", "Send the pixels in the request."
                ) from error
        if found != size:
            raise _shrunken(name)
        return buffer

    def write(self, name: str, offset: int, data: bytes | memoryview) -> None:
        """Put an output into a region.

        Raises:
            UnknownRegionError, RegionRangeError: As their names say.
            RegionAccessError: Its owner does not let this daemon write.
            RegionFullError: There is no memory left for it; a part may have been written.
            SharedMemoryError: It can't be written for another reason.
        """
        with self._lock:
            each = self._find(name, offset, len(data))
            found = os.fstat(each.descriptor)
            start = each.region.offset + offset
            if start + len(data) > found.st_size:  # its owner cut it: it is not for the daemon to make it grow again
                raise _shrunken(name)
            try:
                if each.writable is None:
                    self._check_rights(each.region, found, stat.S_IWUSR, stat.S_IWGRP, "write")
                    each.writable = os.open(f"/proc/self/fd/{each.descriptor}", os.O_WRONLY | os.O_CLOEXEC)
                _write_whole(each.writable, memoryview(data), start, name)
            except OSError as error:
                raise _unwritten(name, error) from error

    def _opened(self, region: Region, path: Path) -> int:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            raise UnknownRegionError(f"There is no shared memory {region.key}.", "Create it first.") from None
        except OSError as error:
            raise RegionAccessError(f"The shared memory {region.key}: {error.strerror}.", _CHMOD) from error
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise RegionAccessError(f"{region.key} is no shared memory.", "See shm_open(3).")  # noqa: TRY301 - closed below
            self._check_rights(region, found, stat.S_IRUSR, stat.S_IRGRP, "read")
            if region.size < 1 or region.offset + region.size > found.st_size:
                raise RegionRangeError(  # noqa: TRY301 - closed below
                    f"The shared memory {region.key} has {found.st_size} bytes.",
                    f"{region.size} from {region.offset} on do not fit.",
                )
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _check_room(self, new: _Open) -> None:
        if new.region.name in self._open:
            raise RegionExistsError(f"The region {new.region.name} is registered already.", "Unregister it first.")
        if len(self._open) >= CAPACITY:
            raise TooManyRegionsError(f"{CAPACITY} regions are registered.", "Unregister one first.")
        if sum(each.owner == new.owner for each in self._open.values()) >= OWNER_CAPACITY:
            raise TooManyRegionsError(
                f"{OWNER_CAPACITY} regions of the owner of {new.region.key} (user {new.owner}) are registered.",
                "Unregister one of them first.",
            )

    def _check_rights(self, region: Region, found: os.stat_result, own: int, group: int, what: str) -> None:
        if found.st_uid == self._user and found.st_mode & own:
            return
        if found.st_gid in self._groups() and found.st_mode & group:
            return
        raise RegionAccessError(
            f"The owner of the shared memory {region.key} does not let this daemon {what} it.", _CHMOD
        )

    def _find(self, name: str, offset: int, size: int) -> _Open:
        each = self._open.get(name)
        if each is None:
            raise _unknown(name)
        if offset < 0 or size < 0 or offset + size > each.region.size:
            raise RegionRangeError(
                f"The region {name} has {each.region.size} bytes.", f"{size} from {offset} on do not fit."
            )
        return each


def _write_whole(descriptor: int, data: memoryview, start: int, name: str) -> None:
    """Write every byte: the system may take a part, as when the memory behind a sparse region runs out."""
    done = 0
    while done < len(data):
        written = os.pwrite(descriptor, data[done:], start + done)
        if not written:
            raise RegionFullError(f"Only {done} of {len(data)} bytes went into the region {name}.", _ROOM)
        done += written


def _unwritten(name: str, error: OSError) -> SharedMemoryError:
    kind = RegionFullError if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.ENOMEM} else SharedMemoryError
    return kind(f"The output can't be written into the region {name}: {error.strerror}.", _ROOM)


def _shrunken(name: str) -> RegionRangeError:
    return RegionRangeError(
        f"The shared memory of the region {name} has become smaller than it was.", "Register it again."
    )


def _close(each: _Open) -> None:
    os.close(each.descriptor)
    if each.writable is not None:
        os.close(each.writable)


def _unknown(name: str) -> UnknownRegionError:
    return UnknownRegionError(f"No region {name} is registered.", "Register it with SystemSharedMemoryRegister.")
