"""Users log in with their password, and guessing is slowed down and locked."""

import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from argon2 import PasswordHasher

from appliance.domain.errors import InputError, StorageError
from appliance.storage.users import FAILURES_PER_ADDRESS, FAILURES_PER_NAME, LOCK, Role, User, UserStore, Verdict

NOW = datetime(2024, 3, 1, 12, 0, tzinfo=UTC)
GOOD = "correct horse battery"


def cheap(time_cost: int = 1) -> PasswordHasher:
    """A hasher for tests; never for a site."""
    return PasswordHasher(time_cost=time_cost, memory_cost=8, parallelism=1)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[UserStore]:
    """A store with one viewer."""
    with UserStore(tmp_path / "users.db", cheap()) as opened:
        opened.add_user("Vera", GOOD, Role.VIEWER)
        yield opened


def attempt(
    store: UserStore, password: str, *, name: str = "vera", address: str = "10.0.0.7", at: datetime = NOW
) -> Verdict:
    """One attempt to log in."""
    return store.verify(name, password, address=address, at=at)


def test_the_right_password_lets_in_whatever_the_case_of_the_name(store: UserStore) -> None:
    """A user logs in by name, in any case, and password."""
    assert attempt(store, GOOD, name=" VERA ") == Verdict(User("vera", Role.VIEWER))
    assert attempt(store, GOOD.upper()).user is None
    assert attempt(store, GOOD, name="nobody").user is None


def test_the_file_holds_no_password_and_belongs_to_its_owner(store: UserStore, tmp_path: Path) -> None:
    """Passwords are kept as Argon2 hashes in a file of mode 0600; a mistyped name leaves no trace of itself."""
    attempt(store, GOOD, name="my secret password")
    file = tmp_path / "users.db"
    content = file.read_bytes()
    assert GOOD.encode() not in content
    assert b"my secret password" not in content
    assert b"$argon2id$" in content
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_loose_mode_is_tightened(tmp_path: Path) -> None:
    """A user file that others could read is closed to them at the next start."""
    (tmp_path / "users.db").touch(mode=0o644)
    with UserStore(tmp_path / "users.db", cheap()):
        assert stat.S_IMODE((tmp_path / "users.db").stat().st_mode) == 0o600


@pytest.mark.parametrize("name", ["vera", "walt"])
def test_a_name_is_locked_after_failures_whether_it_exists_or_not(store: UserStore, name: str) -> None:
    """After five failures a name is locked for fifteen minutes, and the right password does not help."""
    for _ in range(FAILURES_PER_NAME):
        assert attempt(store, "wrong", name=name) == Verdict(None)
    assert attempt(store, GOOD, name=name) == Verdict(None, NOW + LOCK)
    assert attempt(store, GOOD, name=name, address="10.0.0.8").locked_until == NOW + LOCK
    assert (attempt(store, GOOD, name=name, at=NOW + LOCK).user is not None) == (name == "vera")


def test_an_address_is_locked_after_many_failures_of_many_names(store: UserStore) -> None:
    """Trying one password on many names locks the address, not the other users."""
    for number in range(FAILURES_PER_ADDRESS):
        assert attempt(store, "wrong", name=f"name {number}").locked_until is None
    assert attempt(store, GOOD).locked_until is not None
    assert attempt(store, GOOD, address="10.0.0.8").user is not None


def test_a_success_forgives_earlier_failures(store: UserStore) -> None:
    """Somebody who mistypes now and then is never locked."""
    for _ in range(4):
        for _ in range(FAILURES_PER_NAME - 1):
            attempt(store, "wrong")
        assert attempt(store, GOOD).user is not None


def test_old_failures_are_forgotten(store: UserStore) -> None:
    """Failures count for fifteen minutes after the last one."""
    for _ in range(FAILURES_PER_NAME - 1):
        attempt(store, "wrong")
    later = NOW + LOCK + timedelta(seconds=1)
    attempt(store, "wrong", at=later)
    assert attempt(store, GOOD, at=later).user is not None


@pytest.mark.parametrize(
    ("name", "password"),
    [("vera", GOOD), ("", GOOD), ("x" * 65, GOOD), ("a\nb", GOOD), ("new", "short"), ("new", "x" * 257)],
)
def test_unfit_users_are_refused(store: UserStore, name: str, password: str) -> None:
    """A taken or unfit name and a short or endless password are refused with a sentence."""
    with pytest.raises(InputError):
        store.add_user(name, password, Role.ADMIN)
    assert [user.name for user in store.users()] == ["vera"]


def test_passwords_change_and_users_go(store: UserStore) -> None:
    """A changed password replaces the old one, and a removed user is gone."""
    store.set_password("vera", GOOD + "!")
    assert attempt(store, GOOD).user is None
    assert attempt(store, GOOD + "!").user == store.user("Vera")
    with pytest.raises(InputError, match="no user walt"):
        store.set_password("walt", GOOD)
    store.remove_user("vera")
    store.remove_user("vera")
    assert store.user("vera") is None
    assert not store.users()


def test_users_survive_a_restart_and_hashes_are_renewed(tmp_path: Path) -> None:
    """Stronger hash parameters take effect at the next log-in, without anybody noticing."""
    file = tmp_path / "users.db"
    with UserStore(file, cheap()) as store:
        store.add_user("vera", GOOD, Role.ADMIN)
    with UserStore(file, cheap(2)) as store:
        assert attempt(store, GOOD).user == User("vera", Role.ADMIN)
        assert b"t=2" in file.read_bytes()
        assert attempt(store, GOOD).user is not None


def test_an_unusable_file_is_named(tmp_path: Path) -> None:
    """A file that is no database, or can't be made, is named with what to look at."""
    broken = tmp_path / "broken.db"
    broken.write_bytes(b"this is no database at all" * 100)
    for file in (broken, tmp_path / "absent" / "users.db"):
        with pytest.raises(StorageError, match=file.name):
            UserStore(file, cheap())


def test_a_file_that_breaks_while_open_is_a_storage_error(store: UserStore, tmp_path: Path) -> None:
    """A table that vanished is told as a storage error, not as a database's."""
    store._engine.dispose()
    (tmp_path / "users.db").unlink()
    with pytest.raises(StorageError, match=r"users\.db"):
        store.users()
    with pytest.raises(StorageError, match=r"users\.db"):
        store.remove_user("vera")
