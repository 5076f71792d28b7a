"""`insite node`: receives studies from modalities and the PACS, and keeps them."""

import threading
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime

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
        (run_folder / "node.port").write_text(str(server.port), encoding="ascii")
        log.info("node answers", ae_title=settings.node.ae_title, port=server.port, taken_up=taken_up)
        ready()
        stop.wait()
        log.info("node stops")
