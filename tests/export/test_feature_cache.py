"""Teachers are asked once, whatever happens to the process, the disk or the GPU's memory."""

import errno
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor

from appliance.domain.errors import InputError, StorageFullError
from export.disk import write_whole
from export.feature_cache import SHARD, Caching, FeatureStore, cache_features, shard_path
from export.progress import Shown, Silent
from export.teachers.contract import Seen, Teacher
from tests.export.cache_child import PICTURES, Counting, numbered_views

SHARDS = PICTURES // SHARD


def start(repository: Path, folder: Path, log: Path) -> subprocess.Popen[str]:
    """A process that caches."""
    child = repository / "tests" / "export" / "cache_child.py"
    command = [sys.executable, str(child), str(folder), str(log)]
    return subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": str(repository)}, stderr=subprocess.PIPE, text=True
    )


def test_a_killed_run_goes_on_and_does_nothing_twice(repository: Path, tmp_path: Path) -> None:
    """After kill -9 the finished shards are not touched, and no picture in them is shown to the teacher again."""
    folder, log = tmp_path / "cache", tmp_path / "seen.log"
    child = start(repository, folder, log)
    while not shard_path(folder, 1).is_file() and child.poll() is None:
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    _, problems = child.communicate()
    assert child.returncode == -signal.SIGKILL, problems
    finished = {path: path.stat() for path in folder.glob("*.safetensors")}
    assert 2 <= len(finished) < SHARDS
    done = {number for path in finished for number in range(int(path.stem) * SHARD, (int(path.stem) + 1) * SHARD)}
    log.rename(tmp_path / "before.log")
    again = start(repository, folder, log)
    _, problems = again.communicate(timeout=120)
    assert again.returncode == 0, problems
    asked = [int(line) for line in log.read_text().split()]
    assert sorted(asked) == sorted(set(range(PICTURES)) - done)
    for path, before in finished.items():
        assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert FeatureStore(folder).rows("pooled", range(PICTURES))[:, 0].tolist() == list(range(PICTURES))


def test_a_full_disk_keeps_what_is_finished(tmp_path: Path) -> None:
    """When the disk fills up the sentence says so, finished shards stay, and the next run goes on behind them."""
    log = tmp_path / "seen.log"

    def full_after_two(path: Path, data: bytes) -> None:
        if path.stem == "000002":
            raise OSError(errno.ENOSPC, "No space left on device")
        write_whole(path, data)

    plan = Caching(tmp_path / "cache", grid=2, batch=32, write=full_after_two)
    with pytest.raises(StorageFullError, match="lacks 3 shards"):
        cache_features("counting", lambda: Counting(log, 0), numbered_views(), plan, Silent())
    assert [path.name for path in sorted(plan.folder.iterdir())] == ["000000.safetensors", "000001.safetensors"]
    cache_features("counting", lambda: Counting(log, 0), numbered_views(), Caching(plan.folder, 2, 32), Silent())
    assert len(list(plan.folder.iterdir())) == SHARDS


def test_too_little_room_is_said_before_it_is_used_up(tmp_path: Path) -> None:
    """The first shard tells how much all will need; when that is not there, nothing is written."""
    plan = Caching(tmp_path / "cache", grid=2, batch=32, free=lambda _: 1000)
    with pytest.raises(StorageFullError, match="GB more"):
        cache_features("counting", lambda: Counting(tmp_path / "log", 0), numbered_views(), plan, Silent())
    assert not list(plan.folder.iterdir())


def test_room_is_asked_for_the_other_processes_too(tmp_path: Path) -> None:
    """One of eight processes, whose own shard would fit twice, stops where those of all eight do not fit."""
    alone = Caching(tmp_path / "alone", grid=2, batch=32)
    cache_features("counting", lambda: Counting(tmp_path / "log", 0), numbered_views(), alone, Silent())
    room = 2 * shard_path(alone.folder, 0).stat().st_size
    plan = Caching(tmp_path / "cache", grid=2, batch=32, part=0, parts=8, free=lambda _: room)
    with pytest.raises(StorageFullError, match="GB more"):
        cache_features("counting", lambda: Counting(tmp_path / "log", 0), numbered_views(), plan, Silent())
    assert not list(plan.folder.iterdir())


def test_another_disk_error_is_no_full_disk(tmp_path: Path) -> None:
    """An input or output error is not called a full disk."""

    def broken(path: Path, data: bytes) -> None:
        raise OSError(errno.EIO, "Input/output error")

    plan = Caching(tmp_path / "cache", grid=2, batch=32, write=broken)
    with pytest.raises(OSError, match="Input/output"):
        cache_features("counting", lambda: Counting(tmp_path / "log", 0), numbered_views(), plan, Silent())


def test_a_cut_write_leaves_nothing(tmp_path: Path) -> None:
    """A file that can't be written whole is not there."""
    target = tmp_path / "shard.safetensors"
    target.with_suffix(".partial").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_whole(target, b"data")
    assert not target.exists()


class _Small(Teacher):
    """A teacher on a GPU with room for a few pictures."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.batches: list[int] = []

    def see(self, images: Tensor) -> Seen:
        if len(images) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        self.batches.append(len(images))
        numbers = images[:, 0, 0, 0].float()
        return Seen(numbers.view(-1, 1, 1, 1).expand(-1, 4, 2, 2), numbers.view(-1, 1).expand(-1, 4))


def test_too_little_gpu_memory_makes_the_batch_smaller(tmp_path: Path) -> None:
    """Out of memory: the batch is halved until it fits, said aloud, and every picture is seen once."""
    teacher, console = _Small(5), Console(record=True, width=200, file=io.StringIO())
    cache_features("small", lambda: teacher, numbered_views(), Caching(tmp_path / "c", 2, 16), Shown(console))
    assert set(teacher.batches) == {4}
    assert sum(teacher.batches) == PICTURES
    said = console.export_text()
    assert "8 pictures at a time instead of 16" in said
    assert "4 pictures at a time instead of 8" in said
    assert f"features of small: {SHARDS} of {SHARDS}" in said


def test_a_gpu_without_room_for_one_picture_is_refused(tmp_path: Path) -> None:
    """When not even one picture fits there is nothing smaller to try."""
    with pytest.raises(InputError, match="Not even one picture"):
        cache_features("none", lambda: _Small(0), numbered_views(), Caching(tmp_path / "c", 2, 4), Silent())


def test_features_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    """A teacher that gives NaN is named."""

    class _Broken(Teacher):
        def see(self, images: Tensor) -> Seen:
            return Seen(torch.zeros(len(images), 4, 2, 2), torch.full((len(images), 4), torch.nan))

    with pytest.raises(InputError, match="broken gives pooled features that are not finite"):
        cache_features("broken", _Broken, numbered_views(), Caching(tmp_path / "c", 2, 4), Silent())


def test_several_processes_share_the_work(tmp_path: Path) -> None:
    """Each process asks for its own shards only; together they are all."""
    log = tmp_path / "seen.log"
    for part in range(2):
        plan = Caching(tmp_path / "cache", grid=2, batch=32, part=part, parts=2)
        cache_features("counting", lambda: Counting(log, 0), numbered_views(), plan, Silent())
    assert sorted(int(line) for line in log.read_text().split()) == list(range(PICTURES))
