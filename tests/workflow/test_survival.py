"""Work survives the death of its process, ends when it is the cause of it, and talks to nobody outside."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from appliance.domain.errors import StorageError
from appliance.workflow.database import open_engine, refuse_pickles, storage_errors
from tests.fakes.steps import RecordedSteps
from tests.fakes.transactions import begun


def child(repository: Path, **order: Any) -> subprocess.CompletedProcess[str]:
    """A process that runs the engine as ordered, when it has ended."""
    command = [sys.executable, "-m", "tests.fakes.workflow_child", json.dumps(order)]
    return subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(("step", "times"), [("report", 1), ("deliver pacs", 2)])
def test_a_study_is_taken_up_where_its_worker_died(repository: Path, tmp_path: Path, step: str, times: int) -> None:
    """A worker killed within a step repeats that step after its restart, and none before it."""
    died = child(repository, folder=str(tmp_path), put=["a"], die_in=step)
    assert died.returncode == -signal.SIGKILL, died.stderr
    again = child(repository, folder=str(tmp_path), die_in=step, until=["a", "deliver pacs"], times=times)
    assert again.returncode == 0, again.stderr
    names = [call[0] for call in RecordedSteps(tmp_path / "journal").calls("a")]
    order = ["analyse", "report", "hand over", "deliver pacs"]
    assert names == sorted([*order, step], key=order.index)


@pytest.mark.parametrize(("step", "end"), [("analyse", "fail"), ("deliver pacs", "abandon pacs")])
def test_work_that_kills_its_worker_is_ended(repository: Path, tmp_path: Path, step: str, end: str) -> None:
    """Work over which the process dies again and again ends with a reason, and the worker goes on."""
    order: dict[str, Any] = {"folder": str(tmp_path), "die_in": step, "deaths": 99, "recoveries": 0}
    assert child(repository, put=["a"], **order).returncode == -signal.SIGKILL
    assert child(repository, until=["a", end], **order).returncode == 0
    (ended,) = RecordedSteps(tmp_path / "journal").calls("a", end)
    assert "ended again and again" in str(ended)


def test_the_engine_connects_to_nobody(repository: Path, tmp_path: Path) -> None:
    """The durable engine opens no connection and looks up no name while it starts, works and stops."""
    connects = tmp_path / "connects"
    done = child(repository, folder=str(tmp_path), put=["a"], until=["a", "deliver pacs"], connects=str(connects))
    assert done.returncode == 0, done.stderr
    assert not connects.exists(), connects.read_text()
    assert "console.dbos.dev" not in done.stderr


def test_commits_are_on_disk_when_they_return(file: Path) -> None:
    """Work in progress is written with a write-ahead log and full synchronisation."""
    with begun(file) as transaction:
        pragmas = {name: transaction.connection.execute(text(f"PRAGMA {name}")).scalar() for name in PRAGMAS}
    assert pragmas == PRAGMAS


PRAGMAS = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 30000}


def test_the_librarys_errors_become_ours() -> None:
    """A database that does not answer is a storage error, which callers wait out."""
    with pytest.raises(StorageError, match="OperationalError"), storage_errors():
        raise OperationalError("statement", {}, Exception("disk I/O error"))


def test_a_pickled_row_is_never_read(file: Path) -> None:
    """A row that somebody wrote as a pickle is refused instead of executed."""
    from dbos._serialization import DefaultSerializer  # noqa: PLC0415 - the library's private door, looked at here only

    open_engine(file).dispose()
    refuse_pickles()
    with pytest.raises(StorageError):
        DefaultSerializer().deserialize("gASVBQAAAAAAAACMAWGULg==")
