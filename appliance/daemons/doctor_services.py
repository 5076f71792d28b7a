"""What the doctor asks of the services and the peers: packs, golden cases, ports, the queue, C-ECHO."""

import fcntl
import socket
from collections.abc import Iterator
from datetime import datetime, timedelta

from appliance.daemons.asked_daemon import asked_daemon
from appliance.daemons.doctor_check import Check, failed, failed_by, ok, warning
from appliance.daemons.pulse import EVERY_ADDRESS, node_peer
from appliance.daemons.serve import port_of
from appliance.domain.errors import DeliveryError, InferenceError, PackError, SettingsError, StorageError
from appliance.domain.lifecycle import OPEN_STATES, StudyState
from appliance.domain.manifest import VerifiedPack
from appliance.governance.activation import activate
from appliance.network.scu import DicomSender
from appliance.packs.open import PackProblem, installed_packs
from appliance.settings import Settings
from appliance.storage.ledger import SqlLedger

CONNECT_SECONDS = 5.0
LONG = timedelta(hours=1)
"""A study that waits longer than this is worth a look."""


def packs(settings: Settings) -> Iterator[Check]:
    """Each installed pack: signature, digests, gate; then its golden cases, answered by the daemon that serves us."""
    found = installed_packs(
        settings.packs_folder, settings.packs.trusted_keys, allow_unvalidated=settings.packs.allow_unvalidated
    )
    if not found:
        yield failed("packs", f"There is no pack in {settings.packs_folder}.", "Install one, or correct packs.folder.")
    for each in found:
        if isinstance(each, PackProblem):
            yield failed_by(f"pack {each.name}", each.error)
        else:
            manifest = each.manifest
            sentence = f"Release {manifest.release}, {manifest.validation.value}, signed by a trusted key, unaltered."
            yield ok(f"pack {manifest.name}", sentence)
            yield _golden(each, settings)


def _golden(pack: VerifiedPack, settings: Settings) -> Check:
    name = f"inference {pack.manifest.name}"
    try:
        with asked_daemon(settings, settings.inference.timeout_seconds) as client:
            report = activate(pack, client)
    except (PackError, InferenceError, SettingsError) as error:
        return failed_by(name, error)
    return ok(
        name,
        f"{report.cases} golden cases answered in {report.provenance.precision}; largest difference of a score "
        f"{report.worst_score_difference:.3f}.",
    )


def node(settings: Settings) -> Iterator[Check]:
    """Whether the node answers a C-ECHO on its own port."""
    caller, peer = node_peer(settings)
    try:
        DicomSender(caller).echo(peer)
    except DeliveryError as error:
        yield failed("node", error.message, "Look at its log: journalctl -u insite-node.")
    else:
        yield ok("node", f"{peer.ae_title} answers C-ECHO on port {peer.port}.")


def web(settings: Settings) -> Iterator[Check]:
    """Whether the status site's port takes connections."""
    host = EVERY_ADDRESS.get(settings.web.bind, settings.web.bind)
    port = port_of(settings.state, "web", settings.web.port)
    try:
        with socket.create_connection((host, port), CONNECT_SECONDS):
            yield ok("web", f"The status site takes connections on port {port}.")
    except OSError as error:
        sentence = f"The status site does not answer on {host} port {port}: {error.strerror or error}."
        yield failed("web", sentence, "Look at its log: journalctl -u insite-web.")


def worker(settings: Settings) -> Iterator[Check]:
    """Whether a worker holds its lock; it has no port to ask."""
    file = settings.state / "run" / "worker.lock"
    way_forward = "Look at its log: journalctl -u insite-worker."
    try:
        with file.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        yield ok("worker", "The worker runs.")
    except OSError as error:
        yield failed("worker", f"{file} can't be opened: {error.strerror}.", way_forward)
    else:
        yield failed("worker", "The worker does not run.", way_forward)


def queue(settings: Settings, now: datetime) -> Iterator[Check]:
    """How many studies wait and since when, and how many ended without results at their destination."""
    if not settings.ledger_file.exists():
        yield failed("queue", f"There is no ledger {settings.ledger_file}.", "Start the services.")
        return
    try:
        with SqlLedger.open(settings.ledger_file) as ledger:
            counts, records = dict(ledger.counts()), ledger.studies()
    except StorageError as error:
        yield failed_by("queue", error)
        return
    waiting = [record for record in records if record.state in OPEN_STATES]
    oldest = min((record.last_received_at for record in waiting), default=now)
    sentence = f"{len(waiting)} studies are under way, {counts.get(StudyState.DONE.value, 0)} done."
    if now - oldest > LONG:
        minutes = (now - oldest) // timedelta(minutes=1)
        yield warning("queue", f"{sentence} The oldest has waited {minutes} minutes.", "Look at its page.")
    else:
        yield ok("queue", sentence)
    for state in (StudyState.FAILED, StudyState.UNDELIVERED):
        if number := counts.get(state.value, 0):
            yield warning(
                "queue", f"{number} studies are {state.value}.", "Their pages say why; send them again there."
            )


def destinations(settings: Settings) -> Iterator[Check]:
    """Whether each configured peer answers a C-ECHO."""
    sender = DicomSender(settings.node.ae_title)
    for each in settings.destinations:
        name = f"destination {each.name}"
        try:
            sender.echo(each.destination())
        except DeliveryError as error:
            yield failed_by(name, error)
        else:
            yield ok(name, f"{each.ae_title} at {each.host} port {each.port} answers C-ECHO.")
    if not settings.destinations:
        yield warning("destinations", "No destination is configured; results stay here.", "Set destinations.")
