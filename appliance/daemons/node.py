"""`insite node`: receives studies from modalities and the PACS, and keeps them."""

import threading
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from appliance.network.scp import StoreServer
from appliance.pipeline.receive import Receiver
from appliance.settings import Settings
from appliance.storage.ledger import SqlLedger
from appliance.storage.spool import Spool
from appliance.telemetry import logger_for


def run(settings: Settings, stop: threading.Event, ready: Callable[[], None]) -> None:
    """Receive until `stop` is set; `ready` is called when associations are accepted.

    The port it listens on stands in `run/node.port` of the state folder.

    Raises:
        SettingsError: The address can't be listened on.
        StorageError: Ledger or spool can't be used.
    """
    log = logger_for("node")
    run_folder = settings.state / "run"
    run_folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        ledger = stack.enter_context(SqlLedger.open(settings.ledger_file))
        spool = Spool(settings.spool_folder, settings.node.min_free_mib)
        receiver = Receiver(spool, ledger, lambda: datetime.now(UTC))
        taken_up = receiver.take_up()
        server = stack.enter_context(StoreServer(settings.node, receiver))
        _publish(run_folder / "node.port", server.port)
        log.info("node answers", ae_title=settings.node.ae_title, port=server.port, taken_up=taken_up)
        ready()
        stop.wait()
        log.info("node stops")


def _publish(file: Path, port: int) -> None:
    """Write the port in one step: a reader finds the old number or the new one, never half of it."""
    new = file.with_suffix(".new")
    new.write_text(str(port), encoding="ascii")
    new.replace(file)
