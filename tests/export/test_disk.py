"""A full disk ends a command with a sentence, and never with a file that is there in part."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from appliance.domain.errors import StorageFullError
from export.disk import new_pictures, save_array, save_whole

SHAPE = (3, 64, 50)


def full(*_: object) -> None:
    """What the system says of a full disk."""
    raise OSError(errno.ENOSPC, "No space left on device")


def test_the_room_of_an_array_is_taken_before_it_is_written(tmp_path: Path) -> None:
    """The file is no hole: a disk that fills up later can't end the process beneath the map."""
    path = tmp_path / "images.npy"
    new_pictures(path, SHAPE)
    assert path.stat().st_blocks * 512 >= path.stat().st_size > np.prod(SHAPE)


def test_an_array_file_is_what_numpy_writes(tmp_path: Path) -> None:
    """Neither taking the room first nor writing it whole changes a byte."""
    values = np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(np.uint8)
    pictures = new_pictures(tmp_path / "new.npy", SHAPE)
    pictures[...] = values
    pictures.flush()
    np.save(tmp_path / "plain.npy", values)
    save_array(tmp_path / "whole.npy", values)
    contents = {path.read_bytes() for path in tmp_path.iterdir()}
    assert len(contents) == 1


def test_too_little_room_for_an_array_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """How much is needed is said, and nothing is left that would fill the disk."""
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StorageFullError, match=r"images\.npy needs .* MB.*Make room"):
        new_pictures(tmp_path / "images.npy", SHAPE)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_file_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint that can't be written whole leaves the one before it, and no part of itself."""
    path = tmp_path / "checkpoint.pt"
    save_whole(path, b"before")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageFullError, match=r"No space is left to write .*checkpoint\.pt\. Make room"):
        save_whole(path, b"after")
    with pytest.raises(StorageFullError, match=r"No space is left to write .*masks\.npy\."):
        save_array(tmp_path / "masks.npy", np.zeros(3))
    assert [each.name for each in tmp_path.iterdir()] == ["checkpoint.pt"]
    assert path.read_bytes() == b"before"


def test_another_failure_of_the_disk_is_no_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An input or output error is raised as it is."""

    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    monkeypatch.setattr(os, "posix_fallocate", broken)
    with pytest.raises(OSError, match="Input/output"):
        save_whole(tmp_path / "checkpoint.pt", b"after")
    with pytest.raises(OSError, match="Input/output"):
        new_pictures(tmp_path / "images.npy", SHAPE)
    assert not list(tmp_path.iterdir())
