"""The ledger's database file: opened for several processes at once, every commit on disk when it returns."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from appliance.domain.errors import StorageError, StorageFullError
from appliance.storage.schema import METADATA, SCHEMA_VERSION

BUSY_MILLISECONDS = 30_000
"""How long a writer waits for another process's transaction."""
FILE_MODE = 0o660
"""Owner and group: the appliance's services share a group, nobody else may read patient data."""


def open_database(file: Path) -> Engine:
    """Open the database, making file and tables where they are missing.

    Raises:
        StorageError: It can't be opened, is no database, or was made by a later version.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        _make(file)
    except OSError as error:
        raise StorageError(f"{file} can't be opened: {error.strerror}.", "Check owner, rights and disk.") from error
    engine = create_engine(f"sqlite:///{file}", connect_args={"check_same_thread": False})
    event.listen(engine, "connect", _configure)
    event.listen(engine, "begin", _begin)
    with storage_errors(file):
        _prepare(engine, file)
    return engine


def _make(file: Path) -> None:
    """Make the file with its mode; one that exists is not touched, because closing it would drop SQLite's locks."""
    with suppress(FileExistsError):
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, FILE_MODE)
        os.fchmod(descriptor, FILE_MODE)
        os.close(descriptor)


def _prepare(engine: Engine, file: Path) -> None:
    with write(engine) as connection:
        found = int(connection.execute(text("PRAGMA user_version")).scalar_one())
        if found > SCHEMA_VERSION:
            raise StorageError(
                f"{file} was written by a later version of Insite (schema {found}, this one knows {SCHEMA_VERSION}).",
                "Run that version, or restore a backup from before the upgrade.",
            )
        METADATA.create_all(connection)
        connection.execute(text(f"PRAGMA user_version={SCHEMA_VERSION}"))


def _configure(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout={BUSY_MILLISECONDS}")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")


def _begin(connection: Connection) -> None:
    """Take the write lock at the start of a writing transaction: upgrading a read lock may fail at once."""
    mode = "IMMEDIATE" if connection.get_execution_options().get("writes") else "DEFERRED"
    connection.exec_driver_sql(f"BEGIN {mode}")


@contextmanager
def write(engine: Engine) -> Iterator[Connection]:
    """A transaction that holds the write lock from its start, commits at the end and rolls back on an exception."""
    with engine.connect().execution_options(writes=True) as connection, connection.begin():
        yield connection


@contextmanager
def read(engine: Engine) -> Iterator[Connection]:
    """A transaction that sees one state of the database."""
    with engine.connect() as connection, connection.begin():
        yield connection


@contextmanager
def storage_errors(file: Path) -> Iterator[None]:
    """Turn the library's errors into ours, at the one edge of this room.

    Raises:
        StorageFullError: The disk is full.
        StorageError: Anything else.
    """
    try:
        yield
    except OperationalError as error:
        if getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            raise StorageFullError(f"No space is left to write {file}.", "Free space on its disk.") from error
        raise StorageError(f"{file} can't be used: {error.orig}.", "Check its owner, rights and disk.") from error
    except SQLAlchemyError as error:
        raise StorageError(f"{file} can't be used: {error}.", "Restore it from a backup.") from error
