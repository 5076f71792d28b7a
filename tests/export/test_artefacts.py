"""A step's artefact is finished or absent, and what its work made outlives a kill and a full disk."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.domain.errors import StorageFullError
from export import artefacts
from export.artefacts import DONE, STAMP, WORKED, artefact_digest, read_json, run_step

SHARDS = ("000000.safetensors", "inner/000001.safetensors")
EVENTS = 22
"""Hashes, synchronisations, renamings and removals behind the work of one step that replaces an older artefact."""
NOTED = 6
"""The renaming that notes that the work is finished, behind the synchronisation of what it made."""


class Killed(BaseException):
    """The process ends here."""


class Reaper:
    """Counts what is done to the disk once the work is finished, and ends it before number `at`."""

    def __init__(self, at: int = 0) -> None:
        self.at = at
        self.seen = 0
        self.armed = False

    def before(self, act: Callable[..., Any]) -> Callable[..., Any]:
        """The same act, told of before it happens."""

        def told(*arguments: Any, **options: Any) -> Any:
            self.seen += self.armed
            if self.armed and self.seen == self.at:
                raise Killed
            return act(*arguments, **options)

        return told


class Asked:
    """Work that takes long: writes the shards that are not there, and counts both."""

    def __init__(self, reaper: Reaper | None = None) -> None:
        self.reaper = reaper
        self.called = 0
        self.written = 0

    def __call__(self, folder: Path) -> None:
        """Write what is missing."""
        self.called += 1
        for number, name in enumerate(SHARDS):
            path = folder / name
            if not path.is_file():
                path.parent.mkdir(exist_ok=True)
                path.write_text(f"features {number}")
                self.written += 1
        if self.reaper is not None:
            self.reaper.armed = True


def watched(patch: pytest.MonkeyPatch, reaper: Reaper) -> None:
    """Let everything that finishes a step tell the reaper."""
    patch.setattr(artefacts, "file_sha256", reaper.before(artefacts.file_sha256))
    patch.setattr(os, "fsync", reaper.before(os.fsync))
    patch.setattr(shutil, "rmtree", reaper.before(shutil.rmtree))
    for name in ("rename", "replace", "unlink"):
        patch.setattr(Path, name, reaper.before(getattr(Path, name)))


def with_an_older_one(root: Path) -> Path:
    """A folder of artefacts that holds the step's, of other inputs."""
    run_step(root, "features", "before", lambda folder: write(folder / "old.safetensors"))
    return root


def write(path: Path) -> None:
    """An old shard."""
    path.write_text("old")


def files_of(root: Path) -> set[str]:
    """Every file in a folder of artefacts."""
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


WHOLE = {f"features/{name}" for name in (*SHARDS, DONE)}


def test_a_step_that_is_killed_after_its_work_keeps_it(tmp_path: Path) -> None:
    """Killed before any hash, synchronisation, renaming or removal, the next start ends in the same artefact."""
    quiet = Reaper()
    with pytest.MonkeyPatch.context() as patch:
        root = with_an_older_one(tmp_path / "quiet")
        watched(patch, quiet)
        expected = run_step(root, "features", "now", Asked(quiet))
    assert files_of(root) == WHOLE
    assert quiet.seen == EVENTS
    for at in range(1, EVENTS + 1):
        root = with_an_older_one(tmp_path / f"killed-{at}")
        reaper = Reaper(at)
        work = Asked(reaper)
        with pytest.MonkeyPatch.context() as patch:
            watched(patch, reaper)
            with pytest.raises(Killed):
                run_step(root, "features", "now", work)
        assert run_step(root, "features", "now", work) == expected, f"killed before event {at}"
        assert work.written == len(SHARDS), f"killed before event {at}"
        assert files_of(root) == WHOLE, f"killed before event {at}"
        assert work.called == (2 if at <= NOTED else 1), f"killed before event {at}"


def test_a_full_disk_at_the_end_keeps_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where `done.json` has no room the sentence says so, and with room the step ends without working again."""
    synchronise, work = os.fsync, Asked()

    def full(handle: int) -> None:
        if Path(f"/proc/self/fd/{handle}").readlink().name == "done.partial":
            raise OSError(errno.ENOSPC, "No space left on device")
        synchronise(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageFullError, match=r"No space is left to write .*done\.json.*Make room"):
        run_step(tmp_path, "features", "now", work)
    assert files_of(tmp_path) == {f"features.partial/{name}" for name in (*SHARDS, WORKED)}
    monkeypatch.undo()
    run_step(tmp_path, "features", "now", work)
    assert (work.called, files_of(tmp_path)) == (1, WHOLE)


def test_a_step_that_fails_is_called_again_with_what_it_left(tmp_path: Path) -> None:
    """A stamp says of which inputs the partial folder is; of others it is thrown away, finished or not."""

    def broken(folder: Path) -> None:
        (folder / SHARDS[0]).write_text("features 0")
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        run_step(tmp_path, "features", "now", broken)
    assert files_of(tmp_path) == {f"features.partial/{name}" for name in (SHARDS[0], STAMP)}
    again = Asked()
    run_step(tmp_path, "features", "now", again)
    assert (again.called, again.written) == (1, 1)
    worked = tmp_path / "features.partial"
    worked.mkdir()
    (worked / WORKED).write_text("of other inputs")
    (worked / "half.safetensors").write_text("half")
    anew = Asked()
    run_step(tmp_path, "features", "later", anew)
    assert (anew.written, files_of(tmp_path)) == (len(SHARDS), WHOLE)


def test_a_finished_artefact_is_as_good_with_its_marker(tmp_path: Path) -> None:
    """A kill before the last removals leaves it and the older artefact: both go with the next start."""
    digest = run_step(tmp_path, "features", "now", Asked())
    (tmp_path / "features" / WORKED).write_text("now")
    (tmp_path / "features.old").mkdir()
    write(tmp_path / "features.old" / "old.safetensors")
    assert artefact_digest(tmp_path / "features", "now") == digest
    never = Asked()
    assert run_step(tmp_path, "features", "now", never) == digest
    assert (never.called, files_of(tmp_path)) == (0, WHOLE)
    assert set(read_json(tmp_path / "features" / DONE)["files"]) == set(SHARDS)
