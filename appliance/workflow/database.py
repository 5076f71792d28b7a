"""The database that work in progress lives in: the ledger's own file, so that both change in one transaction."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from dbos._serialization import DefaultSerializer
from sqlalchemy.exc import SQLAlchemyError

from appliance.domain.errors import StorageError

BUSY_MILLISECONDS = 30_000
"""How long a writer waits for another one before it gives up."""


def open_engine(file: Path) -> sa.Engine:
    """An engine on a SQLite file whose commits are on disk when they return.

    Args:
        file: The ledger's database; it must exist and be readable by the service's own user only.
    """
    engine = sa.create_engine(f"sqlite:///{file}", pool_size=10, max_overflow=10)
    sa.event.listen(engine, "connect", _make_durable)
    return engine


def _make_durable(connection: Any, _: Any) -> None:
    connection.isolation_level = "IMMEDIATE"
    for pragma in (
        f"busy_timeout={BUSY_MILLISECONDS}",
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
    ):
        connection.execute(f"PRAGMA {pragma}")


@contextmanager
def storage_errors() -> Iterator[None]:
    """Turn the database library's errors into ours.

    Raises:
        StorageError: Whatever the library raised.
    """
    try:
        yield
    except SQLAlchemyError as error:
        raise StorageError(
            f"The work in progress can't be read or written ({type(error).__name__}).", "Check the state folder's disk."
        ) from error


def join_logs() -> None:
    """Let the library's warnings go through our own log: it prints to the terminal only where nobody listens."""
    logger = logging.getLogger("dbos")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())


def refuse_pickles() -> None:
    """Make the library refuse rows that say they are pickled: reading one would run what it holds.

    Nothing of ours is written so, but other services write to the same file, one of them in reach of the network. The
    library has no switch for it and is a singleton of the process; so is this.
    """
    setattr(DefaultSerializer, "deserialize", _refuse)  # noqa: B010 - an assignment to a method is no typed Python


def _refuse(_: DefaultSerializer, __: str) -> Any:
    raise StorageError("A row of the work in progress is pickled, which nothing here writes.", "Find out who wrote it.")
