"""Who may log in: names, roles, Argon2 hashes and failed attempts, in an SQLite file of their own.

Passwords are never kept; names that failed are kept only as digests, because people type passwords into name fields.
"""

import enum
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerifyMismatchError
from sqlalchemy import Column, Engine, Integer, MetaData, String, Table, create_engine, delete, event, insert, select
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from appliance.domain.errors import InputError, StorageError
from appliance.domain.identifiers import digest_of

FILE_NAME = "users.db"
LEAST_PASSWORD = 12
"""Characters; NIST SP 800-63B asks for at least 8, OWASP for 12 where there is no second factor."""
LONGEST_PASSWORD = 256
LONGEST_NAME = 64
FAILURES_PER_NAME = 5
FAILURES_PER_ADDRESS = 30
"""A proxy or a reading room's computer stands for many people, so an address may fail more often than a name."""
LOCK = timedelta(minutes=15)
"""How long a name or an address is locked after its last failure, and how long a failure is remembered."""


class Role(enum.Enum):
    """What a user may do: look, or also send results again."""

    VIEWER = "viewer"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class User:
    """Somebody who may log in."""

    name: str
    role: Role


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer to an attempt: the user, or nobody; `locked_until` (UTC) when no attempt is looked at for now."""

    user: User | None
    locked_until: datetime | None = None


_METADATA = MetaData()
_USERS = Table(
    "users",
    _METADATA,
    Column("name", String, primary_key=True),
    Column("role", String, nullable=False),
    Column("hash", String, nullable=False),
)
_FAILURES = Table(
    "failures",
    _METADATA,
    Column("who", String, primary_key=True),
    Column("count", Integer, nullable=False),
    Column("last_at", Integer, nullable=False),
)


class UserStore:
    """The users of one appliance; used by several threads, closed by `with`.

    Args:
        file: The SQLite file; made with mode 0600 when absent.
        hasher: Argon2 parameters; tests pass cheap ones.
    """

    def __init__(self, file: Path, hasher: PasswordHasher | None = None) -> None:
        self._file = file
        self._hasher = hasher or PasswordHasher()
        self._one_at_a_time = threading.Lock()
        self._engine = _engine(file)
        self._nobody = self._hasher.hash("nobody has this password")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._engine.dispose()

    def add_user(self, name: str, password: str, role: Role) -> User:
        """Add a user; names are compared without regard to case.

        Raises:
            InputError: The name is empty, too long or taken, or the password is too short.
        """
        folded = _folded(name)
        if not folded or len(folded) > LONGEST_NAME or not folded.isprintable():
            raise InputError("That is no user name.", f"Use 1 to {LONGEST_NAME} printable characters.")
        row = {"name": folded, "role": role.value, "hash": self._hash(password)}
        try:
            self._write(insert(_USERS).values(row))
        except IntegrityError:
            raise InputError(f"A user {folded} exists already.", "Choose another name.") from None
        return User(folded, role)

    def set_password(self, name: str, password: str) -> None:
        """Give a user another password.

        Raises:
            InputError: The password is too short, or there is no such user.
        """
        changed = self._write(_USERS.update().where(_USERS.c.name == _folded(name)).values(hash=self._hash(password)))
        if changed == 0:
            raise InputError(f"There is no user {_folded(name)}.", "Add the user first.")

    def remove_user(self, name: str) -> None:
        """Remove a user, who is logged out at the next click; an unknown name is no error."""
        self._write(delete(_USERS).where(_USERS.c.name == _folded(name)))

    def user(self, name: str) -> User | None:
        """The user of this name as they are now, or None."""
        rows = self._read(select(_USERS.c.name, _USERS.c.role).where(_USERS.c.name == _folded(name)))
        return User(rows[0].name, Role(rows[0].role)) if rows else None

    def users(self) -> Sequence[User]:
        """Everybody, by name."""
        rows = self._read(select(_USERS.c.name, _USERS.c.role).order_by(_USERS.c.name))
        return [User(row.name, Role(row.role)) for row in rows]

    def verify(self, name: str, password: str, *, address: str, at: datetime) -> Verdict:
        """Look at one attempt to log in; one at a time, so that parallel guesses are counted and memory is bounded.

        An unknown name takes as long as a wrong password, and is locked in the same way.

        Args:
            address: Where the attempt comes from.
            at: Now; aware.
        """
        folded = _folded(name)
        counters = {
            digest_of("name", folded): FAILURES_PER_NAME,
            digest_of("address", address): FAILURES_PER_ADDRESS,
        }
        with self._one_at_a_time:
            locked = self._locked_until(counters, at)
            if locked is not None:
                return Verdict(None, locked)
            user = self._matching(folded, password)
            if user is None:
                self._count_failure(counters, at)
            else:
                self._write(delete(_FAILURES).where(_FAILURES.c.who == digest_of("name", folded)))
            return Verdict(user)

    def _matching(self, name: str, password: str) -> User | None:
        rows = self._read(select(_USERS).where(_USERS.c.name == name))
        kept = rows[0].hash if rows else self._nobody
        try:
            self._hasher.verify(kept, password[:LONGEST_PASSWORD])
        except (VerifyMismatchError, InvalidHashError):
            return None
        if not rows:
            return None
        if self._hasher.check_needs_rehash(kept):
            renewed = self._hasher.hash(password)
            self._write(_USERS.update().where(_USERS.c.name == name).values(hash=renewed))
        return User(rows[0].name, Role(rows[0].role))

    def _locked_until(self, counters: dict[str, int], at: datetime) -> datetime | None:
        since = int((at - LOCK).timestamp())
        rows = self._read(select(_FAILURES).where(_FAILURES.c.who.in_(counters), _FAILURES.c.last_at > since))
        ends = [row.last_at for row in rows if row.count >= counters[row.who]]
        return datetime.fromtimestamp(max(ends), UTC) + LOCK if ends else None

    def _count_failure(self, counters: dict[str, int], at: datetime) -> None:
        now, since = int(at.timestamp()), int((at - LOCK).timestamp())
        self._write(delete(_FAILURES).where(_FAILURES.c.last_at <= since))
        for who in counters:
            more = _FAILURES.update().where(_FAILURES.c.who == who).values(count=_FAILURES.c.count + 1, last_at=now)
            if self._write(more) == 0:
                self._write(insert(_FAILURES).values(who=who, count=1, last_at=now))

    def _hash(self, password: str) -> str:
        if not LEAST_PASSWORD <= len(password) <= LONGEST_PASSWORD:
            raise InputError(
                f"A password has {LEAST_PASSWORD} to {LONGEST_PASSWORD} characters.", "A sentence is easy to remember."
            )
        return self._hasher.hash(password)

    def _read(self, statement: Any) -> Sequence[Any]:
        try:
            with self._engine.connect() as connection:
                return connection.execute(statement).all()
        except SQLAlchemyError as error:
            raise _unusable(self._file) from error

    def _write(self, statement: Any) -> int:
        try:
            with self._engine.begin() as connection:
                return int(connection.execute(statement).rowcount)
        except IntegrityError:
            raise
        except SQLAlchemyError as error:
            raise _unusable(self._file) from error


def _folded(name: str) -> str:
    return name.strip().casefold()


def _unusable(file: Path) -> StorageError:
    return StorageError(f"{file} can't be read or written.", "Check its owner, its mode and the space on its disk.")


def _engine(file: Path) -> Engine:
    try:
        with suppress(FileExistsError):
            os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        file.chmod(0o600)
    except OSError as error:
        raise _unusable(file) from error
    engine = create_engine(f"sqlite:///{file}", connect_args={"timeout": 10})
    event.listen(engine, "connect", _durable)
    try:
        _METADATA.create_all(engine)
    except SQLAlchemyError as error:
        engine.dispose()
        raise _unusable(file) from error
    return engine


def _durable(connection: Any, _record: Any) -> None:
    connection.execute("PRAGMA synchronous=FULL")
