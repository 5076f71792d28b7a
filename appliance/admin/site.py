"""What the site needs from outside, handed in by the daemon that builds it."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from appliance.admin.audit import AuditLog
from appliance.domain.ports import Ledger
from appliance.storage.users import UserStore


@dataclass(frozen=True)
class Site:
    """The outside things of one site.

    Attributes:
        packs_file: What the inference daemon says of its packs, as JSON; may be absent.
        clock: The time now, aware; its zone is the one that pages show times in.
        secret_key: Signs the cookie.
        session_minutes: Minutes without a click after which a log-in ends.
        secure_cookie: Whether the cookie travels over TLS only.
        version: The software's version, for the foot of the page.
    """

    ledger: Ledger
    users: UserStore
    packs_file: Path
    audit: AuditLog
    clock: Callable[[], datetime]
    secret_key: bytes
    session_minutes: int
    secure_cookie: bool
    version: str
