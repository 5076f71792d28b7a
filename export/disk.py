"""Writes files whole or not at all, and says what to do when the disk is full."""

import errno
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from appliance.domain.errors import StorageFullError

FULL = (errno.ENOSPC, errno.EDQUOT)
_MAKE_ROOM = "Make room and run the same command again: what is finished is kept."


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that is there whole or not at all."""
    partial = path.with_suffix(".partial")
    try:
        with partial.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    partial.replace(path)


def save_whole(path: Path, data: bytes) -> None:
    """Write a file as `write_whole` does.

    Raises:
        StorageFullError: The disk is full; any other failure is raised as it is.
    """
    with _said_when_full(f"No space is left to write {path}."):
        write_whole(path, data)


def save_array(path: Path, values: NDArray[Any]) -> None:
    """Write what `np.load` reads; NumPy's own writer names no reason when the disk is full.

    Raises:
        StorageFullError: As `save_whole`.
    """
    stream = io.BytesIO()
    np.save(stream, values)
    save_whole(path, stream.getvalue())


def new_pictures(path: Path, shape: tuple[int, int, int]) -> np.memmap[Any, np.dtype[np.uint8]]:
    """A new array file uint8 [n, rows, columns] of zeros, memory-mapped, for which the disk has room.

    The room is taken before anything is written: a disk that is full beneath a map ends the process by a signal.

    Raises:
        StorageFullError: There is too little room; no file is left.
    """
    size = int(np.prod(shape))
    with _said_when_full(f"{path} needs {size / 1e6:.1f} MB, which its disk has not left."):
        try:
            pictures = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
            with path.open("r+b") as stream:
                os.posix_fallocate(stream.fileno(), 0, path.stat().st_size)
        except OSError:
            path.unlink(missing_ok=True)
            raise
    return pictures


@contextmanager
def _said_when_full(message: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise StorageFullError(message, _MAKE_ROOM) from error
