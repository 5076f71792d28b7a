"""Keeps the daemon's packs: opens, replays and serves them, at the start and while it runs.

A pack that may not serve never stops the others, and a release that may not serve leaves its place to the one before
it: both are logged, and listed with their reason in `run/packs.json`.
"""

import json
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

from appliance.domain.errors import PackError, UnknownModelError
from appliance.domain.manifest import PackManifest, VerifiedPack
from appliance.governance.load_marks import LoadMarks
from appliance.governance.measured import Measured, machine_name
from appliance.governance.selection import Selected, in_order, read_selection
from appliance.governance.serving import Serving, serve_best
from appliance.inference.cpus import usable_cpus
from appliance.inference.repository import IndexEntry
from appliance.inference.runner import PackRunner
from appliance.packs.open import PackProblem, installed_packs
from appliance.settings import Settings
from appliance.telemetry import Logger

PACKS_FILE = Path("run", "packs.json")
MEASURED_FILE = Path("run", "measured.json")
LOADING_FOLDER = Path("run", "loading")


@dataclass(frozen=True, slots=True)
class PackStatus:
    """One installed pack as the page and `insite status` show it.

    Attributes:
        name: The pack's name; the folder's where the manifest can't be trusted. The fields after it are empty then.
        precision: What it is served in; empty when refused.
        state: `active`, `installed` (another release serves), `shadow` or `refused`.
        reason: Why it was refused, with the way forward; for an active pack, why it is not served in a better way.
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


class PackKeeper:
    """Implements the protocol's `Repository` on the installed packs of one state folder.

    Args:
        settings: Where packs lie and whom to trust.
        runner: Who serves them; owned by the caller.
        trial: Makes a runner of the same runtimes in which a pack is replayed before it serves.
    """

    def __init__(
        self,
        settings: Settings,
        runner: PackRunner,
        trial: Callable[[], PackRunner],
        log: Logger,
    ) -> None:
        self._settings = settings
        self._runner = runner
        self._trial = trial
        self._log = log
        self._changed: Callable[[], None] = lambda: None
        self._serves: Callable[[VerifiedPack], None] = lambda _: None
        self._busy = threading.Lock()
        self._statuses: dict[tuple[str, int | None], PackStatus] = {}
        self._loading = ""
        self._found: Sequence[VerifiedPack | PackProblem] = ()
        threads = settings.inference.threads or usable_cpus()
        self._measured = Measured(settings.state / MEASURED_FILE, machine_name(threads), runner.traffic)
        self._marks = load_marks(settings)
        self._without_all: set[str] = set()

    def when_changed(self, changed: Callable[[], None]) -> None:
        """Say whom to tell that packs came or went."""
        self._changed = changed

    def when_serving(self, serves: Callable[[VerifiedPack], None]) -> None:
        """Say whom to tell of each pack that serves: those that do already, and those that will."""
        self._serves = serves
        serving = self._serving()
        for pack in self._found:
            if isinstance(pack, VerifiedPack) and (pack.manifest.name, pack.manifest.digest) in serving:
                serves(pack)

    def start(self, stop: threading.Event) -> None:
        """Serve every pack that may; write the list."""
        self._write()  # a list of an earlier start says nothing about this one
        found = self._found = self._installed()
        self._note_problems(found)
        selection = self._selection()
        for name in dict.fromkeys(pack.manifest.name for pack in found if isinstance(pack, VerifiedPack)):
            if stop.is_set():
                return
            self._serve_first(name, found, selection.get(name, Selected()))
            with suppress(PackError):  # it is listed as refused; what serves does not depend on it
                self._shadow(name, found, selection.get(name, Selected()))
        self._write()

    def index(self) -> Sequence[IndexEntry]:
        """Packs that do not serve, with the reason; those that do are listed by the runner, model by model."""
        entries = [
            IndexEntry(status.name, "" if status.release is None else str(status.release), "UNAVAILABLE", status.reason)
            for status in self.statuses()  # a copy: a pack may be loaded meanwhile, in another thread
            if status.state != "active"
        ]
        loading = self._loading
        return [IndexEntry(loading, "", "LOADING", "Being verified."), *entries] if loading else entries

    def load(self, name: str) -> None:
        """Verify and replay the selected release of a pack, and serve it; see `Repository.load`."""
        pack_name = name.partition(".")[0]
        with self._busy:
            self._loading = pack_name
            try:
                with self._runner.loading(pack_name):
                    self._load(pack_name)
            finally:
                self._loading = ""
                self._write()
        self._changed()

    def refresh(self, name: str) -> None:
        """Choose anew how a pack is served: an engine of it has become ready, or is ready no more."""
        with self._busy:
            with suppress(PackError):  # listed with its reason; what serves goes on
                for pack in _of_name(self._installed(), name):
                    if (name, pack.manifest.digest) in self._serving():
                        self._swap(pack, ())
            self._write()
        self._changed()

    def move(self, name: str) -> None:
        """Choose anew how a pack and its shadow are served: the device that computed them is lost."""
        self.refresh(name)
        if self._runner.shadow_on_device(name):
            with self._busy:
                self._runner.drop_shadow(name)
                with suppress(PackError):  # listed with its reason; nobody waits for a shadow
                    self._shadow(name, self._installed(), self._selection().get(name, Selected()))
                self._write()

    def unload(self, name: str) -> None:
        """Stop serving a pack; see `Repository.unload`."""
        pack_name = name.partition(".")[0]
        with self._busy:
            if pack_name not in {model.provenance.pack for model in self._runner.served()}:
                raise UnknownModelError(f"The pack {pack_name} is not served.", "The repository's index lists packs.")
            self._runner.remove(pack_name)
            self._runner.drop_shadow(pack_name)
            for state in ("active", "shadow"):
                self._stand_by(pack_name, state, "It was unloaded.")
            self._write()
        self._changed()

    def statuses(self) -> Sequence[PackStatus]:
        """The packs as they were found, served and refused."""
        return tuple(self._statuses.values())

    def _load(self, name: str) -> None:
        found = self._installed()
        self._forget_removed(name, found)
        selected = self._selection().get(name, Selected())
        packs = in_order(_of_name(found, name), selected)
        wanted = next((pack for pack in packs if selected.active in {None, pack.manifest.release}), None)
        if wanted is None:
            self._note_problems(found)
            for problem in found:
                if isinstance(problem, PackProblem) and name in {problem.name, problem.name.rpartition("-")[0]}:
                    raise problem.error
            raise UnknownModelError(f"No pack {name} is installed.", "`insite packs list` lists what is.")
        serves = (wanted.manifest.name, wanted.manifest.digest) in self._serving()
        if not serves or self._may_serve_better(wanted.manifest.digest):
            self._swap(wanted, _standing_by(_of_name(found, name), selected, [wanted]))
        self._shadow(name, found, selected)

    def _may_serve_better(self, digest: str) -> bool:
        """Whether a way to serve a pack was left out for a crash, and somebody has lifted the mark since."""
        return digest in self._without_all and not self._marks.holds(digest)

    def _serving(self) -> set[tuple[str, str]]:
        return {(model.provenance.pack, model.provenance.pack_digest) for model in self._runner.served()}

    def _shadow(self, name: str, found: Sequence[VerifiedPack | PackProblem], selected: Selected) -> None:
        """Bring the shadow of a pack in line with what was selected; one that fails is listed, and harms nobody.

        Raises:
            PackError: It may not run.
        """
        running = {each.pack: each.release for each in self._runner.shadows()}
        if running.get(name) == selected.shadow:
            return
        self._runner.drop_shadow(name)
        self._stand_by(name, "shadow", "It no longer runs in shadow.")
        for pack in _of_name(found, name):
            if pack.manifest.release == selected.shadow:
                try:
                    with self._trial() as trial:
                        serving = serve_best(pack, trial, self._measured, self._marks)
                        self._runner.adopt_shadow(trial, name)
                except PackError as error:
                    self._note(_listed(pack.manifest, "", "refused", str(error)))
                    raise
                precision = serving.report.provenance.precision
                self._note(_listed(pack.manifest, precision, "shadow", "It answers unseen, for comparison."))

    def _serve_first(self, name: str, found: Sequence[VerifiedPack | PackProblem], selected: Selected) -> None:
        """Serve the first release that may, and list the others."""
        installed = _of_name(found, name)
        tried: list[VerifiedPack] = []
        for pack in in_order(installed, selected):
            tried.append(pack)
            try:
                self._swap(pack, _standing_by(installed, selected, tried))
            except PackError:
                continue
            return
        for pack in _standing_by(installed, selected, tried):
            reason = (
                f"Release {selected.active} was chosen and does not serve. `insite packs activate` chooses another."
            )
            self._note(_listed(pack.manifest, "", "installed", reason))

    def _swap(self, pack: VerifiedPack, others: Sequence[VerifiedPack]) -> None:
        """Replay a pack beside what serves, then let it take that one's place.

        Raises:
            PackError: It may not serve; it is listed as refused, unless it serves already, and what served goes on.
        """
        name = pack.manifest.name
        try:
            with self._trial() as trial:
                serving = serve_best(pack, trial, self._measured, self._marks)
                self._runner.adopt(trial, name)
        except PackError as error:
            self._note_failed(pack.manifest, str(error))
            raise
        self._note_active(pack.manifest, serving)
        self._serves(pack)
        for other in others:
            self._note(_listed(other.manifest, "", "installed", f"Release {pack.manifest.release} serves."))

    def _note_active(self, manifest: PackManifest, serving: Serving) -> None:
        for rejection in serving.rejected:
            self._log.error(
                "precision rejected", pack=manifest.name, precision=rejection.precision, reason=rejection.reason
            )
        if any(rejection.crashed for rejection in serving.rejected):
            self._without_all.add(manifest.digest)
        else:
            self._without_all.discard(manifest.digest)
        report = serving.report
        self._log.info(
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
        self._stand_by(manifest.name, "active", f"Release {manifest.release} serves.")
        self._note(_listed(manifest, report.provenance.precision, "active", given_way))

    def _note_failed(self, manifest: PackManifest, reason: str) -> None:
        """List a release as refused; one that serves already stays active, and says why it is not served anew."""
        listed = self._statuses.get((manifest.name, manifest.release))
        if listed is None or (manifest.name, manifest.digest) not in self._serving():
            self._note(_listed(manifest, "", "refused", reason))
            return
        self._log.error("pack not served anew", pack=manifest.name, release=manifest.release, reason=reason)
        self._note(replace(listed, reason=reason))

    def _note_problems(self, found: Sequence[VerifiedPack | PackProblem]) -> None:
        for problem in found:
            if isinstance(problem, PackProblem):
                self._note(PackStatus(problem.name, "", None, "", "", "", "", "refused", str(problem.error)))

    def _forget_removed(self, name: str, found: Sequence[VerifiedPack | PackProblem]) -> None:
        there = {pack.manifest.release for pack in _of_name(found, name)}
        for key, status in list(self._statuses.items()):
            if status.name == name and status.state in {"installed", "refused"} and status.release not in there:
                del self._statuses[key]

    def _note(self, status: PackStatus) -> None:
        if status.state == "refused":
            self._log.error("pack refused", pack=status.name, release=status.release, reason=status.reason)
        self._statuses[status.name, status.release] = status

    def _stand_by(self, name: str, state: str, reason: str) -> None:
        """List a pack that was in a state as merely installed."""
        for key, status in list(self._statuses.items()):
            if (status.name, status.state) == (name, state):
                self._statuses[key] = replace(status, state="installed", precision="", reason=reason)

    def _installed(self) -> Sequence[VerifiedPack | PackProblem]:
        packs = self._settings.packs
        return installed_packs(
            self._settings.packs_folder, packs.trusted_keys, allow_unvalidated=packs.allow_unvalidated
        )

    def _selection(self) -> dict[str, Selected]:
        try:
            return dict(read_selection(self._settings.packs_folder))
        except PackError as error:
            self._log.error("no selection; the newest releases serve", reason=str(error))
            return {}

    def _write(self) -> None:
        try:
            write_statuses(self._settings.state / PACKS_FILE, self.statuses())
        except OSError as error:  # a full disk stops no inference; who serves is told over the protocol all the same
            self._log.error("the list of packs can't be written", reason=str(error))


def load_marks(settings: Settings) -> LoadMarks:
    """Where the daemon marks what it is loading."""
    return LoadMarks(settings.state / LOADING_FOLDER, version("insite"))


def write_statuses(file: Path, statuses: Sequence[PackStatus]) -> None:
    """Replace the list in one move, so that a reader finds the old one or the new one.

    Raises:
        OSError: The disk is full or the folder can't be written; nothing is left half-written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with draft.open("w", encoding="utf-8") as stream:
            json.dump([asdict(status) for status in statuses], stream, indent=2)
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)


def _of_name(found: Sequence[VerifiedPack | PackProblem], name: str) -> Sequence[VerifiedPack]:
    return [pack for pack in found if isinstance(pack, VerifiedPack) and pack.manifest.name == name]


def _standing_by(
    installed: Sequence[VerifiedPack], selected: Selected, tried: Sequence[VerifiedPack]
) -> Sequence[VerifiedPack]:
    return [pack for pack in installed if pack not in tried and pack.manifest.release != selected.shadow]


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
