"""`insite serve`: all four daemons on one state folder, from one terminal."""

import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from appliance.daemons.supervisor import Supervisor
from appliance.settings import Settings

READY_SECONDS = 120.0


def serve_until(stop: threading.Event, settings: Settings, arguments: Sequence[str]) -> None:
    """Start the daemons, say where they answer, keep them running until `stop` is set, stop them.

    Raises:
        InsiteError: A daemon did not come up.
    """
    (settings.state / "run").mkdir(parents=True, exist_ok=True)
    with Supervisor(arguments) as supervisor:
        supervisor.wait_ready(READY_SECONDS)
        sys.stdout.write(
            f"DICOM node  {settings.node.ae_title} on port {port_of(settings.state, 'node', settings.node.port)}\n"
            f"Status site http://{settings.web.bind}:{port_of(settings.state, 'web', settings.web.port)}/\n"
            f"State       {settings.state}\n"
            "Ctrl-C stops.\n"
        )
        sys.stdout.flush()
        supervisor.watch(stop)


def port_of(state: Path, daemon: str, configured: int) -> int:
    """The port that a daemon really listens on: what it wrote at its start, for a configured port of 0 as well."""
    try:
        return int((state / "run" / f"{daemon}.port").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return configured
