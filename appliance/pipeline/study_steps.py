"""The steps of one study as the workflow engine calls them: each looks where the study stands, works, moves it on."""

from collections.abc import Sequence

from appliance.domain.errors import (
    InferenceUnavailableError,
    PackError,
    ProvenanceError,
    ReportError,
    StorageError,
    UnknownStudyError,
)
from appliance.domain.findings import ResultObject
from appliance.domain.lifecycle import StudyEvent, StudyState
from appliance.domain.ports import Ledger, StoredInstance
from appliance.imaging.header import content_digest
from appliance.pipeline.deliver import StudyDelivery
from appliance.pipeline.hold import Hold
from appliance.pipeline.kept import KeptAnalyses
from appliance.pipeline.planned import PlannedPacks
from appliance.pipeline.report import StudyReporting
from appliance.telemetry import logger_for
from appliance.workflow.steps import Next

ANALYSIS = frozenset({StudyState.QUEUED, StudyState.ANALYSING})
REPORT = frozenset({StudyState.REPORTING})
IN_WORK = ANALYSIS | REPORT | {StudyState.DELIVERING}


class StudyPipeline:
    """Implements `StudySteps` over the ledger, which alone knows where a study stands."""

    def __init__(
        self,
        ledger: Ledger,
        packs: PlannedPacks,
        kept: KeptAnalyses,
        reporting: StudyReporting,
        delivery: StudyDelivery,
        *,
        hold: Hold,
    ) -> None:
        self._hold = hold
        self._ledger = ledger
        self._packs = packs
        self._kept = kept
        self._reporting = reporting
        self._delivery = delivery
        self._log = logger_for("pipeline")

    def analyse(self, token: str, revision: int) -> Next:
        """Look at the images and keep what was found; without the inference daemon, wait and say so."""
        standing = self._standing(token, revision, ANALYSIS)
        if standing is not None:
            return standing
        self._ledger.apply(token, revision, StudyEvent.STARTED)
        images = self._ledger.instances(token, revision)
        lost = sum(not _is_as_received(stored) for stored in images)
        if lost:
            what = f"{lost} of {len(images)} images are no longer on disk as received."
            self.fail(token, revision, f"{what} Send them again, then try the study again.")
            return Next.STOP
        try:
            self._look(token, revision, images)
        except (InferenceUnavailableError, ProvenanceError, PackError, StorageError) as error:
            self._log.warning("analysis waits", study=token, revision=revision, error=str(error))
            self._ledger.apply(token, revision, StudyEvent.STARTED, reason=_waiting_sentence(error))
            return Next.LATER
        return Next.GO_ON

    def report(self, token: str, revision: int) -> Next:
        """Make the result objects."""
        standing = self._standing(token, revision, REPORT)
        if standing is not None:
            return standing
        analysis = self._ledger.analysis(token, revision)
        if analysis is None:
            self.fail(token, revision, "The analysis is missing from the ledger. Analyse the study again.")
            return Next.STOP
        try:
            kept = self._kept.restore(token, analysis)
        except StorageError as error:
            self.fail(token, revision, str(error))
            return Next.STOP
        try:
            images = self._ledger.instances(token, revision)
            objects = self._reporting.write(token, kept, images, self._earlier_objects(token, revision))
        except ReportError as error:
            self.fail(token, revision, str(error))
            return Next.STOP
        except StorageError as error:
            self._log.warning("report waits", study=token, revision=revision, error=str(error))
            self._ledger.apply(token, revision, StudyEvent.ANALYSED, reason=_waiting_sentence(error))
            return Next.LATER
        self._ledger.record_objects(token, revision, objects)
        self._ledger.apply(token, revision, StudyEvent.REPORTED)
        self._kept.drop(token, revision)
        self._log.info("study reported", study=token, revision=revision, objects=[each.kind for each in objects])
        return Next.GO_ON

    def hand_over(self, token: str, revision: int) -> Sequence[str]:
        """Note a delivery for every destination; a study without any is done, its results stay on disk."""
        if self._state(token, revision) is not StudyState.DELIVERING:
            return []
        return self._delivery.hand_over(token, revision)

    def deliver(self, token: str, revision: int, destination: str, attempt: int) -> Next:
        """Send the result objects to one destination."""
        if self._state(token, revision) is None:
            return Next.STOP
        return Next.GO_ON if self._delivery.deliver(token, revision, destination, attempt) else Next.LATER

    def fail(self, token: str, revision: int, reason: str) -> None:
        """End the revision as failed, unless it has ended already or is unknown by now."""
        if self._state(token, revision) in IN_WORK:
            self._ledger.apply(token, revision, StudyEvent.FAILED, reason=reason)
            self._kept.drop(token, revision)
            self._log.error("study failed", study=token, revision=revision, reason=reason)

    def abandon(self, token: str, revision: int, destination: str, reason: str) -> None:
        """End one delivery as dead, unless it has ended already or its study is unknown by now."""
        if self._state(token, revision) is not None:
            self._delivery.abandon(token, revision, destination, reason)

    def _look(self, token: str, revision: int, images: Sequence[StoredInstance]) -> None:
        key = self._ledger.study(token, revision).key
        analysis = self._packs.analyser().analyse(key, revision, images)
        self._kept.keep(token, analysis)
        self._ledger.record_analysis(token, revision, analysis)
        self._ledger.apply(token, revision, StudyEvent.ANALYSED)
        self._log.info(
            "study analysed",
            study=token,
            revision=revision,
            tasks={outcome.task: outcome.state.value for outcome in analysis.outcomes},
        )

    def _state(self, token: str, revision: int) -> StudyState | None:
        """Where a revision stands; None where the ledger does not know it, so that nobody waits for it."""
        try:
            return self._ledger.study(token, revision).state
        except UnknownStudyError:
            return None

    def _earlier_objects(self, token: str, revision: int) -> list[ResultObject]:
        return [made for number in range(1, revision) for made in self._ledger.objects(token, number)]

    def _standing(self, token: str, revision: int, here: frozenset[StudyState]) -> Next | None:
        """What a step answers without working: it was done before a resumption, or the revision has ended."""
        state = self._state(token, revision)
        if state not in IN_WORK:
            return Next.STOP
        if state not in here:
            return Next.GO_ON
        newest = self._ledger.study(token)
        if self._hold.keeps(newest.key):
            return Next.LATER
        if newest.revision > revision:
            self._ledger.apply(token, revision, StudyEvent.SUPERSEDED)
            self._kept.drop(token, revision)
            self._log.info("study superseded", study=token, revision=revision)
            return Next.STOP
        return None


def _is_as_received(stored: StoredInstance) -> bool:
    return stored.path.is_file() and content_digest(stored.path) == stored.instance.identity.content_sha256


def _waiting_sentence(error: Exception) -> str:
    if isinstance(error, InferenceUnavailableError):
        return f"Waiting for the inference daemon. {error.message}"
    if isinstance(error, ProvenanceError):
        return f"Waiting for a server of the installed model pack. {error.message}"
    if isinstance(error, PackError):
        return "Waiting for the model pack, which is being exchanged."
    return "Waiting for the disk or the database."
