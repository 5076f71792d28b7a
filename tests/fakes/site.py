"""A site over a ledger in memory, with a viewer, an administrator, a clock to turn and a client that fills forms."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from argon2 import PasswordHasher
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from appliance.admin.app import Site, create_app
from appliance.admin.audit import AuditLog
from appliance.storage.users import Role, UserStore
from tests.fakes.memory_ledger import MemoryLedger
from tests.fakes.scene import PACKS, fill

PASSWORD = "correct horse battery"  # noqa: S105 - a test's password


@dataclass
class Clock:
    """A clock that stands still until a test turns it."""

    now: datetime = datetime(2024, 3, 1, 12, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        """The time now."""
        return self.now

    def turn(self, minutes: float) -> None:
        """Let time pass."""
        self.now += timedelta(minutes=minutes)


class Browser:
    """A test client that fills the site's forms as a browser does."""

    def __init__(self, client: FlaskClient) -> None:
        self.client = client

    def get(self, path: str, **headers: str) -> TestResponse:
        """GET with headers, underscores for hyphens."""
        sent = {key.replace("_", "-"): value for key, value in headers.items()}
        return self.client.get(path, headers=sent, buffered=True)

    def token(self, page: str = "/log-in") -> str:
        """The token of the first form on a page."""
        found = re.search(r'name="csrf" value="([^"]+)"', self.get(page).text)
        assert found
        return found.group(1)

    def post(self, path: str, at: str = "/", **fields: str) -> TestResponse:
        """POST a form with the token that stands on the page `at`."""
        return self.client.post(path, data={"csrf": self.token(at), **fields})

    def log_in(self, name: str, password: str = PASSWORD, page: str = "") -> TestResponse:
        """Fill the log-in form."""
        return self.post("/log-in", "/log-in", name=name, password=password, page=page)


@dataclass
class Scene:
    """Everything that a test of the site looks at."""

    app: Flask
    site: Site
    ledger: MemoryLedger
    clock: Clock
    token: str
    audit_file: Path

    def browser(self, name: str = "") -> Browser:
        """A fresh browser, logged in when a name is given."""
        browser = Browser(self.app.test_client())
        if name:
            assert browser.log_in(name).status_code == 303
        return browser

    def audited(self) -> list[dict[str, object]]:
        """The lines of the audit."""
        return [json.loads(line) for line in self.audit_file.read_text(encoding="utf-8").splitlines()]


@contextmanager
def scene_in(folder: Path) -> Iterator[Scene]:
    """A site over one study of every kind, everything that it keeps in a folder; hashes are cheap."""
    hasher = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    with UserStore(folder / "users.db", hasher) as users:
        users.add_user("vera", PASSWORD, Role.VIEWER)
        users.add_user("admin", PASSWORD, Role.ADMIN)
        ledger, clock = MemoryLedger(), Clock()
        token = fill(ledger, folder)
        packs, audit_file = folder / "packs.json", folder / "audit" / "web.jsonl"
        packs.write_text(json.dumps(PACKS))
        site = Site(
            ledger, users, packs, AuditLog(audit_file), clock, b"k" * 32, 30, secure_cookie=False, version="0.1.0"
        )
        yield Scene(create_app(site), site, ledger, clock, token, audit_file)
