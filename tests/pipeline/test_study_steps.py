"""A study moves through the ledger step by step; each step may be repeated, and each ends somewhere."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from appliance.domain.errors import (
    DeliveryError,
    InferenceUnavailableError,
    PackError,
    ProvenanceError,
    ReportError,
    StorageFullError,
)
from appliance.domain.instance import key_of
from appliance.domain.lifecycle import StudyEvent, StudyState
from appliance.domain.ports import Destination, StoredInstance
from appliance.imaging.header import read_instance
from appliance.pipeline.deliver import StudyDelivery
from appliance.pipeline.hold import Hold
from appliance.pipeline.kept import KeptAnalyses
from appliance.pipeline.planned import PlannedPacks
from appliance.pipeline.report import StudyReporting
from appliance.pipeline.study_steps import StudyPipeline
from appliance.storage.ledger import SqlLedger
from appliance.workflow.steps import Next
from tests.fakes.chain import PlainReporter, ScriptedModels, ScriptedPeer, agreeable
from tests.fakes.radiographs import ROOT, write_radiograph

NOON = datetime(2024, 3, 1, 12, 0, tzinfo=UTC)
PACS = Destination("pacs", "PACS", "127.0.0.1", 104)


@dataclass
class Bench:
    """A pipeline over a real ledger, with stand-ins for models, reporter and peer."""

    ledger: SqlLedger
    folder: Path
    models: ScriptedModels
    reporter: PlainReporter
    peer: ScriptedPeer
    steps: StudyPipeline

    def arrive(self, number: int = 1) -> str:
        """An image of study 1, the n-th."""
        file = write_radiograph(self.folder / f"{number}.dcm", 1, SOPInstanceUID=f"{ROOT}.1.1.{number}")
        stored = StoredInstance(read_instance(file), file, NOON, "MODALITY", own_result=False)
        self.ledger.add_instance(stored)
        return key_of(stored.instance).token

    def settled(self) -> str:
        """A study that is queued."""
        token = self.arrive()
        self.ledger.apply(token, 1, StudyEvent.SETTLED)
        return token

    def state(self, token: str, revision: int = 1) -> StudyState:
        """Where a revision stands."""
        return self.ledger.study(token, revision).state

    def work(self) -> list[str]:
        """What lies between analysis and report."""
        return [path.name for path in (self.folder / "work").glob("*")]


@pytest.fixture
def bench(ledger: SqlLedger, tmp_path: Path) -> Bench:
    """A bench with agreeable stand-ins."""
    models, reporter, peer = agreeable(), PlainReporter(), ScriptedPeer()
    steps = StudyPipeline(
        ledger,
        PlannedPacks(models, lambda: [models.manifest], 16),
        KeptAnalyses(tmp_path / "work", lambda: NOON),
        StudyReporting(reporter, tmp_path / "results"),
        StudyDelivery(ledger, peer, {"pacs": PACS}, attempts=2),
        hold=Hold(tmp_path / "proving", lambda: datetime.now(UTC)),
    )
    return Bench(ledger, tmp_path, models, reporter, peer, steps)


def test_work_begun_before_a_change_waits_for_its_proof(bench: Bench) -> None:
    """While a release is being proved, neither analysis nor report of a patient's study goes on; then both do."""
    token = bench.settled()
    proving = bench.folder / "proving"
    proving.touch()
    assert bench.steps.analyse(token, 1) is Next.LATER
    assert bench.state(token) is StudyState.QUEUED
    proving.unlink()
    assert bench.steps.analyse(token, 1) is Next.GO_ON
    proving.touch()
    assert bench.steps.report(token, 1) is Next.LATER
    assert bench.state(token) is StudyState.REPORTING


def test_a_study_goes_from_queue_to_done(bench: Bench) -> None:
    """Analysed, reported, handed over, delivered: the ledger says each, and nothing is left between."""
    token = bench.settled()
    assert bench.steps.analyse(token, 1) is Next.GO_ON
    assert bench.state(token) is StudyState.REPORTING
    assert bench.steps.report(token, 1) is Next.GO_ON
    assert bench.state(token) is StudyState.DELIVERING
    assert bench.steps.hand_over(token, 1) == ["pacs"]
    assert bench.steps.deliver(token, 1, "pacs", 1) is Next.GO_ON
    assert bench.state(token) is StudyState.DONE
    assert len(bench.peer.taken["pacs"]) == 1
    assert bench.work() == []
    analysis = bench.ledger.analysis(token, 1)
    assert analysis is not None
    assert {outcome.task for outcome in analysis.outcomes} == {"guard", "triage", "pneumonia", "lungs"}


def test_steps_that_were_done_are_passed_over(bench: Bench) -> None:
    """A resumed study does nothing twice: no second analysis, no second report, no second sending."""
    token = bench.settled()
    for _ in range(2):
        bench.steps.analyse(token, 1)
    asked = len(bench.models.asked)
    for _ in range(2):
        assert bench.steps.report(token, 1) is Next.GO_ON
    assert bench.steps.analyse(token, 1) is Next.GO_ON
    bench.steps.hand_over(token, 1)
    for attempt in (1, 2):
        assert bench.steps.deliver(token, 1, "pacs", attempt) is Next.GO_ON
    assert bench.steps.hand_over(token, 1) == []
    assert bench.steps.analyse(token, 1) is Next.STOP
    assert len(bench.models.asked) == asked
    assert len(bench.peer.taken["pacs"]) == 1


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (InferenceUnavailableError("down"), "daemon"),
        (ProvenanceError("Release 2 answered."), "Release 2 answered."),
        (PackError("gone"), "being exchanged"),
    ],
)
def test_a_study_waits_for_the_inference_daemon(bench: Bench, error: Exception, word: str) -> None:
    """While the daemon is away the study says that it waits; afterwards it goes on, nothing refused."""
    token = bench.settled()
    answers = dict(bench.models.answers)
    bench.models.answers["guard"] = error
    assert bench.steps.analyse(token, 1) is Next.LATER
    record = bench.ledger.study(token)
    assert record.state is StudyState.ANALYSING
    assert word in record.reason
    assert bench.ledger.analysis(token, 1) is None
    bench.models.answers = answers
    assert bench.steps.analyse(token, 1) is Next.GO_ON
    assert bench.ledger.study(token).reason == ""


def test_a_late_image_supersedes_the_revision_in_work(bench: Bench) -> None:
    """A revision that is overtaken ends at the next step, with nothing sent; the newer one has all images."""
    token = bench.settled()
    bench.steps.analyse(token, 1)
    bench.arrive(2)
    assert bench.steps.report(token, 1) is Next.STOP
    assert bench.state(token) is StudyState.SUPERSEDED
    assert bench.work() == []
    bench.ledger.apply(token, 2, StudyEvent.SETTLED)
    assert bench.steps.analyse(token, 2) is Next.GO_ON
    analysis = bench.ledger.analysis(token, 2)
    assert analysis is not None
    assert len(analysis.sources) == 2


def test_a_revision_that_is_being_delivered_is_delivered(bench: Bench) -> None:
    """What has been reported goes out, although a newer revision follows."""
    token = bench.settled()
    bench.steps.analyse(token, 1)
    bench.steps.report(token, 1)
    bench.arrive(2)
    assert bench.steps.hand_over(token, 1) == ["pacs"]
    bench.steps.deliver(token, 1, "pacs", 1)
    assert bench.state(token) is StudyState.DONE


@pytest.mark.parametrize("damage", [Path.unlink, lambda file: file.write_bytes(file.read_bytes()[:-2] + b"xx")])
def test_images_that_vanished_or_changed_on_the_disk_end_the_study(
    bench: Bench, damage: Callable[[Path], object]
) -> None:
    """A study whose files are not those that were received fails with a sentence, instead of being read."""
    token = bench.settled()
    damage(bench.folder / "1.dcm")
    assert bench.steps.analyse(token, 1) is Next.STOP
    record = bench.ledger.study(token)
    assert record.state is StudyState.FAILED
    assert record.reason.startswith("1 of 1 images are no longer on disk as received.")
    assert bench.models.asked == []


def test_what_can_not_be_reported_ends_failed(bench: Bench) -> None:
    """A reporter that can't make the objects, or masks that are gone, end the study with a reason."""
    token = bench.settled()
    bench.steps.analyse(token, 1)
    bench.reporter.error = ReportError("The source has no study UID.")
    assert bench.steps.report(token, 1) is Next.STOP
    assert bench.ledger.study(token).reason == "The source has no study UID."
    assert bench.state(token) is StudyState.FAILED


def test_masks_that_are_gone_end_the_study(bench: Bench) -> None:
    """A report is never made without the masks of its analysis."""
    token = bench.settled()
    bench.steps.analyse(token, 1)
    for path in (bench.folder / "work").iterdir():
        path.unlink()
    assert bench.steps.report(token, 1) is Next.STOP
    assert bench.state(token) is StudyState.FAILED


def test_an_analysis_that_is_gone_ends_the_study(bench: Bench) -> None:
    """A report is never made without an analysis."""
    token = bench.settled()
    for event in (StudyEvent.STARTED, StudyEvent.ANALYSED):
        bench.ledger.apply(token, 1, event)
    assert bench.steps.report(token, 1) is Next.STOP
    assert bench.state(token) is StudyState.FAILED


def test_a_full_disk_makes_a_study_wait(bench: Bench) -> None:
    """Without space the report is made later, and the page says what it waits for."""
    token = bench.settled()
    bench.steps.analyse(token, 1)
    bench.reporter.error = StorageFullError("No space.")
    assert bench.steps.report(token, 1) is Next.LATER
    assert bench.ledger.study(token).reason == "Waiting for the disk or the database."
    bench.reporter.error = None
    assert bench.steps.report(token, 1) is Next.GO_ON


def test_a_destination_that_is_away_is_asked_again(bench: Bench) -> None:
    """A delivery that did not work is due later."""
    token = bench.settled()
    bench.steps.analyse(token, 1)
    bench.steps.report(token, 1)
    bench.steps.hand_over(token, 1)
    bench.peer.errors["pacs"] = [DeliveryError("No answer.")]
    assert bench.steps.deliver(token, 1, "pacs", 1) is Next.LATER
    assert bench.state(token) is StudyState.DELIVERING


def test_failing_and_abandoning_end_only_what_is_open(bench: Bench) -> None:
    """A study that has ended keeps its end."""
    token = bench.settled()
    bench.steps.fail(token, 1, "The process died.")
    bench.steps.fail(token, 1, "Again.")
    assert bench.ledger.study(token).reason == "The process died."
    bench.steps.abandon(token, 1, "pacs", "The process died.")
    assert bench.state(token) is StudyState.FAILED


def test_a_retried_study_sends_the_same_bytes(bench: Bench) -> None:
    """A retry of a study whose results have not changed sends the objects made before."""
    token = bench.settled()
    for revision in (1, 2):
        bench.steps.analyse(token, revision)
        bench.steps.report(token, revision)
        bench.steps.hand_over(token, revision)
        bench.steps.deliver(token, revision, "pacs", 1)
        bench.ledger.apply(token, revision, StudyEvent.RETRIED)
        bench.ledger.apply(token, revision + 1, StudyEvent.SETTLED)
    first, second = bench.peer.taken["pacs"]
    assert first == second


def test_work_on_a_study_that_the_ledger_does_not_know_ends(bench: Bench) -> None:
    """Work that is left over from a study that was removed does nothing and does not wait."""
    assert bench.steps.analyse("unknown", 1) is Next.STOP
    assert bench.steps.report("unknown", 1) is Next.STOP
    assert bench.steps.hand_over("unknown", 1) == []
    assert bench.steps.deliver("unknown", 1, "pacs", 1) is Next.STOP
    bench.steps.fail("unknown", 1, "The process died.")
    bench.steps.abandon("unknown", 1, "pacs", "The process died.")
    assert bench.ledger.deliveries("unknown", 1) == []
