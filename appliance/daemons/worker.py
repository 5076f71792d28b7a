"""`insite worker`: takes up complete studies and carries them to delivered results."""

import fcntl
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path

from appliance.daemons.asked_daemon import asked_daemon
from appliance.domain.errors import SettingsError, StorageError
from appliance.domain.manifest import PackManifest, VerifiedPack
from appliance.domain.ports import Inference, Ledger
from appliance.network.scu import DicomSender
from appliance.packs.open import installed_packs
from appliance.pipeline.assemble import Assembler
from appliance.pipeline.deliver import StudyDelivery
from appliance.pipeline.hold import HOLD_FILE, Hold
from appliance.pipeline.kept import KeptAnalyses
from appliance.pipeline.planned import PlannedPacks
from appliance.pipeline.report import StudyReporting
from appliance.pipeline.study_steps import StudyPipeline
from appliance.reporting.reporter import DicomReporter
from appliance.settings import Settings
from appliance.storage.device import device_identity
from appliance.storage.ledger import SqlLedger
from appliance.telemetry import logger_for
from appliance.workflow.engine import Pace, StudyWorkflows

TEND_SECONDS = 60.0
FORGET_SECONDS = 86_400.0
FORGET_AFTER = timedelta(days=7)
"""How long the engine's own rows of ended work are kept; the ledger keeps the truth."""


def run(settings: Settings, stop: threading.Event, ready: Callable[[], None]) -> None:
    """Work until `stop` is set; `ready` is called when studies are taken up.

    Raises:
        SettingsError: Another worker runs on this state folder, or `inference.server` can't be asked as it is set.
        StorageError: The ledger can't be opened.
    """
    (settings.state / "run").mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.enter_context(_alone(settings.state / "run" / "worker.lock"))
        ledger = stack.enter_context(SqlLedger.open(settings.ledger_file))
        inference = stack.enter_context(asked_daemon(settings, settings.inference.timeout_seconds))
        steps = study_steps(settings, ledger, inference)
        pace = Pace(settings.worker.poll_seconds, settings.worker.concurrency, settings.worker.delivery_retry_seconds)
        names = tuple(destination.name for destination in settings.destinations)
        workflows = stack.enter_context(StudyWorkflows(settings.ledger_file, steps, names, pace))
        quiet = timedelta(seconds=settings.study.quiet_seconds)
        assembler = Assembler(ledger, workflows, quiet, _now, hold_of(settings))
        ready()
        _work(stop, assembler, workflows, settings.worker.poll_seconds)
    _leave(workflows)


def _leave(workflows: StudyWorkflows) -> None:
    """End the process where a step outlasted the stop, for instance on a peer that went silent.

    The interpreter would wait for the step's thread, longer than a service manager waits for the process. A step may be
    killed at any instruction, and is resumed at the next start.
    """
    if workflows.unfinished:
        logger_for("worker").warning("work is left for the next start", workflows=sorted(workflows.unfinished))
        sys.stderr.flush()
        os._exit(0)


def study_steps(settings: Settings, ledger: Ledger, inference: Inference) -> StudyPipeline:
    """The steps of a study, wired to this machine's packs, disk and peers."""
    device = device_identity(settings.state, settings.node.ae_title, version("insite"))
    destinations = {each.name: each.destination() for each in settings.destinations}
    return StudyPipeline(
        ledger,
        PlannedPacks(inference, lambda: _manifests(settings), settings.study.max_images),
        KeptAnalyses(settings.state / "work", _now),
        StudyReporting(DicomReporter(device), settings.results_folder),
        StudyDelivery(ledger, DicomSender(settings.node.ae_title), destinations, settings.worker.delivery_attempts),
        hold=hold_of(settings),
    )


def hold_of(settings: Settings) -> Hold:
    """What keeps studies waiting while a change of release is being proved."""
    return Hold(settings.state / HOLD_FILE, _now)


def _work(stop: threading.Event, assembler: Assembler, workflows: StudyWorkflows, poll_seconds: float) -> None:
    """Sweep, and now and then tidy up; a database that is busy now is asked again at the next turn."""
    log = logger_for("worker")
    tend_due = forget_due = time.monotonic()
    while True:
        try:
            assembler.sweep()
            if time.monotonic() >= tend_due:
                workflows.tend()
                tend_due = time.monotonic() + TEND_SECONDS
            if time.monotonic() >= forget_due:
                workflows.forget(_now() - FORGET_AFTER)
                forget_due = time.monotonic() + FORGET_SECONDS
        except StorageError as error:
            log.warning("sweep failed; the next one tries again", error=str(error))
        if stop.wait(poll_seconds):
            return


def _manifests(settings: Settings) -> Sequence[PackManifest]:
    found = installed_packs(
        settings.packs_folder, settings.packs.trusted_keys, allow_unvalidated=settings.packs.allow_unvalidated
    )
    return [pack.manifest for pack in found if isinstance(pack, VerifiedPack)]


def _now() -> datetime:
    return datetime.now(UTC)


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Hold a lock that the system releases with the process, however it ends.

    Two workers on one state folder would take each other's work for that of a dead one.
    """
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SettingsError(f"Another worker runs on {file.parent.parent}.", "Stop it first.") from None
        yield
    finally:
        os.close(descriptor)
