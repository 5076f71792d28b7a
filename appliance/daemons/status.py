"""`insite status`: what runs, what waits, which packs speak, read from the state folder and the daemons' own ports."""

import json
import socket
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from appliance.daemons.asked_daemon import asked_daemon
from appliance.daemons.serve import port_of
from appliance.domain.errors import InsiteError
from appliance.settings import Settings
from appliance.storage.ledger import SqlLedger

CONNECT_SECONDS = 2.0


def status_of(settings: Settings) -> dict[str, Any]:
    """The appliance's state as plain values, for JSON and for the table."""
    return {
        "state": str(settings.state),
        "daemons": {
            "inference": _inference_answers(settings),
            "node": _listens(settings.node.bind, port_of(settings.state, "node", settings.node.port)),
            "web": _listens(settings.web.bind, port_of(settings.state, "web", settings.web.port)),
        },
        "packs": _packs(settings.state),
        "studies": _counts(settings),
    }


def table_of(found: dict[str, Any]) -> RenderableType:
    """The same for a terminal."""
    daemons = Table("daemon", "answers", box=None, title=found["state"], title_justify="left")
    for name, answers in found["daemons"].items():
        daemons.add_row(name, "yes" if answers else "no")
    packs = Table("pack", "release", "state", "validation", "reason", box=None)
    for pack in found["packs"]:
        packs.add_row(*(str(pack.get(key, "")) for key in ("name", "release", "state", "validation", "reason")))
    studies = Table("studies", "count", box=None)
    for state, count in found["studies"].items():
        studies.add_row(state, str(count))
    return Group(daemons, "", packs, "", studies)


def _listens(bind: str, port: int) -> bool:
    host = "127.0.0.1" if bind in {"0.0.0.0", ""} else bind  # noqa: S104 - compared, not bound
    try:
        with socket.create_connection((host, port), CONNECT_SECONDS):
            return True
    except OSError:
        return False


def _inference_answers(settings: Settings) -> bool:
    """Whether the daemon that the worker asks serves a model."""
    try:
        with asked_daemon(settings, CONNECT_SECONDS) as client:
            return bool(client.served())
    except InsiteError:
        return False


def _packs(state: Path) -> list[dict[str, Any]]:
    try:
        listed: list[dict[str, Any]] = json.loads((state / "run" / "packs.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return listed


def _counts(settings: Settings) -> dict[str, int]:
    if not settings.ledger_file.exists():
        return {}
    with SqlLedger.open(settings.ledger_file) as ledger:
        return dict(ledger.counts())
