"""Transactions as the ledger hands them out, on a database file of the test's own."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.workflow.database import open_engine


@dataclass
class OpenTransaction:
    """Implements `Transaction`."""

    connection: Any


@contextmanager
def begun(file: Path) -> Iterator[OpenTransaction]:
    """A transaction on the file, committed at its end."""
    engine = open_engine(file)
    try:
        with engine.begin() as connection:
            yield OpenTransaction(connection)
    finally:
        engine.dispose()
