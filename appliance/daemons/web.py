"""`insite web`: the status site over the ledger of this state folder."""

import os
import secrets
import threading
from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

from appliance.admin.app import Site, create_app
from appliance.admin.audit import AuditLog
from appliance.admin.server import listen, serve
from appliance.settings import Settings
from appliance.storage.ledger import SqlLedger
from appliance.storage.users import FILE_NAME, Role, UserStore
from appliance.telemetry import logger_for

FIRST_USER = "admin"


def run(settings: Settings, stop: threading.Event, ready: Callable[[], None]) -> None:
    """Serve the site until `stop` is set; `ready` is called when it answers.

    Raises:
        SettingsError: The address can't be listened on.
        StorageError: Ledger, users or keys can't be read.
    """
    log = logger_for("web")
    for folder in ("keys", "audit", "run"):
        (settings.state / folder).mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        ledger = stack.enter_context(SqlLedger.open(settings.ledger_file))
        users = stack.enter_context(UserStore(settings.state / FILE_NAME))
        password_file = first_user(users, settings.state / "keys" / "initial-password")
        if password_file is not None:
            log.warning("first user made; log in, change the password, remove the file", file=str(password_file))
        site = Site(
            ledger=ledger,
            users=users,
            packs_file=settings.state / "run" / "packs.json",
            audit=AuditLog(settings.state / "audit" / "web.jsonl"),
            clock=lambda: datetime.now().astimezone(),
            secret_key=secret_key(settings.state / "keys" / "web.key"),
            session_minutes=settings.web.session_minutes,
            secure_cookie=settings.web.secure_cookie,
            version=version("insite"),
        )
        listener = stack.enter_context(listen(settings.web.bind, settings.web.port))
        port = listener.getsockname()[1]
        (settings.state / "run" / "web.port").write_text(str(port), encoding="ascii")
        log.info("status site answers", bind=settings.web.bind, port=port)
        serve(create_app(site), listener, stop, ready)


def first_user(users: UserStore, password_file: Path) -> Path | None:
    """Make the first administrator where there is no user yet; returns where the password lies, never the password."""
    if users.users():
        return None
    password = secrets.token_urlsafe(15)
    password_file.unlink(missing_ok=True)
    _write_private(password_file, f"{password}\n".encode())
    users.add_user(FIRST_USER, password, Role.ADMIN)
    return password_file


def secret_key(file: Path) -> bytes:
    """The key that signs the cookies: read, or made at first start with mode 0600."""
    if not file.exists():
        _write_private(file, secrets.token_bytes(32))
    return file.read_bytes()


def _write_private(file: Path, data: bytes) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
