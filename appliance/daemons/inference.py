"""`insite inference`: opens the installed packs, replays their golden cases, and serves those that hold.

A pack that may not serve never stops the others: it is logged, and listed with its reason in `run/packs.json`.
"""

import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from appliance.domain.errors import PackError
from appliance.domain.manifest import PackManifest, VerifiedPack
from appliance.governance.serving import serve_best
from appliance.inference.runner import PackRunner
from appliance.inference.server import InferenceServer
from appliance.packs.open import PackProblem, installed_packs
from appliance.settings import Settings
from appliance.telemetry import Logger, logger_for

PACKS_FILE = Path("run", "packs.json")


@dataclass(frozen=True, slots=True)
class PackStatus:
    """One installed pack as the page and `insite status` show it.

    Attributes:
        name: The pack's name; the folder's where the manifest can't be trusted. The fields after it are empty then.
        precision: What it is served in; empty when refused.
        state: `active` or `refused`.
        reason: Why it was refused, with the way forward; for an active pack, why a better precision is not served.
    """

    name: str
    title: str
    release: int | None
    version: str
    digest: str
    validation: str
    precision: str
    state: str
    reason: str


def run(settings: Settings, stop: threading.Event, ready: Callable[[], None]) -> None:
    """Serve until `stop` is set; `ready` is called when the socket answers.

    Without a usable pack the daemon still answers, as not ready, so that its health says so.

    Raises:
        SettingsError: The socket can't be taken.
    """
    log = logger_for("inference")
    with PackRunner((), settings.inference.threads) as runner:
        statuses = list(_activated(settings, runner, stop, log))
        write_statuses(settings.state / PACKS_FILE, statuses)
        if stop.is_set():
            return
        if not runner.served():
            log.error("no pack serves", folder=str(settings.packs_folder), refused=len(statuses))
        with InferenceServer(runner, settings.inference_socket, version=version("insite"), log=log):
            log.info("serving", socket=str(settings.inference_socket), models=[each.name for each in runner.served()])
            ready()
            stop.wait()


def write_statuses(file: Path, statuses: Sequence[PackStatus]) -> None:
    """Replace the list in one move, so that a reader finds the old one or the new one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    with draft.open("w", encoding="utf-8") as stream:
        json.dump([asdict(status) for status in statuses], stream, indent=2)
        stream.flush()
        os.fsync(stream.fileno())
    draft.replace(file)


def _activated(settings: Settings, runner: PackRunner, stop: threading.Event, log: Logger) -> Iterator[PackStatus]:
    found = installed_packs(
        settings.packs_folder,
        settings.packs.trusted_keys,
        allow_unvalidated=settings.packs.allow_unvalidated,
    )
    for problem in found:
        if isinstance(problem, PackProblem):
            reason = str(problem.error)
            yield _refused(PackStatus(problem.name, "", None, "", "", "", "", "refused", reason), log)
    for pack in _newest_first(found):
        if stop.is_set():
            return
        yield _status(pack, runner, log)


def _newest_first(found: Sequence[VerifiedPack | PackProblem]) -> Sequence[VerifiedPack]:
    """By name, and of several releases of one name the newest first: an older one serves where a newer one can't."""
    packs = [each for each in found if isinstance(each, VerifiedPack)]
    return sorted(packs, key=lambda pack: (pack.manifest.name, -pack.manifest.release))


def _status(pack: VerifiedPack, runner: PackRunner, log: Logger) -> PackStatus:
    manifest = pack.manifest
    try:
        serving = serve_best(pack, runner)
    except PackError as error:
        return _refused(_listed(manifest, "", "refused", str(error)), log)
    for rejection in serving.rejected:
        log.error("precision rejected", pack=manifest.name, precision=rejection.precision, reason=rejection.reason)
    report = serving.report
    log.info(
        "pack active",
        pack=manifest.name,
        release=manifest.release,
        digest=manifest.digest,
        precision=report.provenance.precision,
        golden_cases=report.cases,
        worst_score_difference=round(report.worst_score_difference, 4),
        worst_mask_dice=round(report.worst_mask_dice, 4),
    )
    given_way = " ".join(f"{each.precision} was rejected: {each.reason}" for each in serving.rejected)
    return _listed(manifest, report.provenance.precision, "active", given_way)


def _refused(status: PackStatus, log: Logger) -> PackStatus:
    log.error("pack refused", pack=status.name, release=status.release, reason=status.reason)
    return status


def _listed(manifest: PackManifest, precision: str, state: str, reason: str) -> PackStatus:
    return PackStatus(
        name=manifest.name,
        title=manifest.title,
        release=manifest.release,
        version=manifest.version,
        digest=manifest.digest,
        validation=manifest.validation.value,
        precision=precision,
        state=state,
        reason=reason,
    )
