"""The audit says who did what and when, and is only ever appended to."""

import json
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest

from appliance.admin.audit import AuditLog
from appliance.domain.errors import StorageError

NOW = datetime(2024, 3, 1, 12, 0, tzinfo=UTC)


def test_events_are_appended_one_json_line_each(tmp_path: Path) -> None:
    """Every event is one JSON line after the earlier ones, in a file that only its owner reads."""
    file = tmp_path / "audit" / "web.jsonl"
    AuditLog(file).record(NOW, "vera", "10.0.0.7", "viewed-study", token="abc", revision=2)  # noqa: S106 - a study's token
    AuditLog(file).record(NOW, "vera", "10.0.0.7", "logged-out")
    first, second = map(json.loads, file.read_text().splitlines())
    assert first == {
        "at": "2024-03-01T12:00:00+00:00",
        "user": "vera",
        "address": "10.0.0.7",
        "event": "viewed-study",
        "token": "abc",
        "revision": 2,
    }
    assert second["event"] == "logged-out"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_name_with_a_line_break_stays_on_one_line(tmp_path: Path) -> None:
    """Nobody can forge a line of the audit by a line break."""
    file = tmp_path / "web.jsonl"
    AuditLog(file).record(NOW, 'x\n{"user": "admin"}', "::1", "logged-in")
    assert len(file.read_text().splitlines()) == 1


def test_what_can_not_be_audited_is_an_error(tmp_path: Path) -> None:
    """When the audit can't be written, the caller is told and shows nothing."""
    with pytest.raises(StorageError, match="can't be written"):
        AuditLog(tmp_path).record(NOW, "vera", "::1", "viewed-study")
