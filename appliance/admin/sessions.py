"""Who is logged in at this moment: kept in memory, so that a restart and a log-out really end every session."""

import secrets
import threading
from dataclasses import dataclass
from datetime import datetime, timedelta

LONGEST = timedelta(hours=12)
"""A shift: after it everybody logs in again, however busy."""


@dataclass
class _Session:
    name: str
    opened_at: datetime
    clicked_at: datetime


class Sessions:
    """Open sessions by their random identifier, which lives in the signed cookie.

    Args:
        idle: Time without a click after which a session ends.
    """

    def __init__(self, idle: timedelta) -> None:
        self._idle = idle
        self._open: dict[str, _Session] = {}
        self._one_at_a_time = threading.Lock()

    def open(self, name: str, at: datetime) -> str:
        """Start a session of a user and return its identifier; ended ones are swept away."""
        identifier = secrets.token_urlsafe(32)
        with self._one_at_a_time:
            for ended in [key for key, session in self._open.items() if self._ended(session, at)]:
                del self._open[ended]
            self._open[identifier] = _Session(name, at, at)
        return identifier

    def name_of(self, identifier: str, at: datetime, *, click: bool) -> str | None:
        """Whose session this is, or None when there is none or it ended.

        Args:
            click: Whether a person asked; a page that refreshes itself does not keep a session open.
        """
        with self._one_at_a_time:
            session = self._open.get(identifier)
            if session is None:
                return None
            if self._ended(session, at):
                del self._open[identifier]
                return None
            if click:
                session.clicked_at = at
            return session.name

    def close(self, identifier: str) -> None:
        """End one session; an unknown one is no error."""
        with self._one_at_a_time:
            self._open.pop(identifier, None)

    def close_all_of(self, name: str) -> None:
        """End every session of a user."""
        with self._one_at_a_time:
            for identifier in [key for key, session in self._open.items() if session.name == name]:
                del self._open[identifier]

    def _ended(self, session: _Session, at: datetime) -> bool:
        return at - session.clicked_at >= self._idle or at - session.opened_at >= LONGEST
