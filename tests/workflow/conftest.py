"""A database file and a way to put studies to work in it."""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from appliance.workflow.database import open_engine
from appliance.workflow.engine import Pace, StudyWorkflows

FAST = Pace(poll_seconds=0.05, concurrency=2, delivery_retry_seconds=0.05)


@dataclass
class OpenTransaction:
    """A transaction of the test's own, as the ledger would hand out."""

    connection: Any


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A database file that exists."""
    file = tmp_path / "ledger.db"
    file.touch(mode=0o600)
    return file


@pytest.fixture
def put(file: Path) -> Callable[..., None]:
    """Puts a study to work as the ledger would: within a transaction on the same file."""

    def put_in(workflows: StudyWorkflows, token: str, revision: int = 1) -> None:
        with begun(file) as transaction:
            workflows.enqueue(transaction, token, revision)

    return put_in


@contextmanager
def begun(file: Path):
    """A transaction on the file, committed at its end."""
    engine = open_engine(file)
    try:
        with engine.begin() as connection:
            yield OpenTransaction(connection)
    finally:
        engine.dispose()
