"""The web daemon makes what it needs at its first start, answers, and stops."""

import http.client
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from appliance.daemons.web import first_user, run, secret_key
from appliance.settings import Settings, WebSettings
from appliance.storage.users import Role, User, UserStore


@contextmanager
def running(state: Path) -> Iterator[int]:
    """The daemon in a thread; the port that it wrote down."""
    settings = Settings(state=state, web=WebSettings(port=0))
    stop, ready = threading.Event(), threading.Event()
    thread = threading.Thread(target=run, args=(settings, stop, ready.set))
    thread.start()
    try:
        assert ready.wait(30)
        yield int((state / "run" / "web.port").read_text())
    finally:
        stop.set()
        thread.join(30)
    assert not thread.is_alive()


def status_of(port: int, path: str) -> int:
    """The status of one GET."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


def test_the_first_start_makes_an_administrator_and_the_log_does_not_tell_the_password(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """After the first start the password of `admin` lies in a file of mode 0600, and nowhere else."""
    with running(tmp_path) as port:
        assert status_of(port, "/healthz") == 200
        assert status_of(port, "/") == 303
    file = tmp_path / "keys" / "initial-password"
    password = file.read_text().strip()
    assert len(password) >= 20
    printed = "".join(capfd.readouterr())
    assert str(file) in printed
    assert password not in printed
    for private in (file, tmp_path / "keys" / "web.key", tmp_path / "users.db"):
        assert stat.S_IMODE(private.stat().st_mode) == 0o600
    with UserStore(tmp_path / "users.db") as users:
        assert users.users() == [User("admin", Role.ADMIN)]


def test_a_later_start_keeps_users_and_key(tmp_path: Path) -> None:
    """The second start changes neither the users nor the key, and does not write the password file again."""
    with running(tmp_path):
        pass
    key = (tmp_path / "keys" / "web.key").read_bytes()
    (tmp_path / "keys" / "initial-password").unlink()
    with running(tmp_path) as port:
        assert status_of(port, "/log-in") == 200
    assert (tmp_path / "keys" / "web.key").read_bytes() == key
    assert not (tmp_path / "keys" / "initial-password").exists()


def test_a_start_that_was_cut_off_before_the_user_was_made_is_repeated(tmp_path: Path) -> None:
    """A password file without its user is replaced, so that file and user always fit."""
    file = tmp_path / "initial-password"
    file.write_text("left over\n")
    with UserStore(tmp_path / "users.db") as users:
        assert first_user(users, file) == file
        assert first_user(users, file) is None
    assert "left over" not in file.read_text()


def test_a_key_is_made_once(tmp_path: Path) -> None:
    """The key that signs cookies has 32 random bytes and stays."""
    made = secret_key(tmp_path / "web.key")
    assert len(made) == 32
    assert secret_key(tmp_path / "web.key") == made
