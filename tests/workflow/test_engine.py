"""Work is taken up in order, put off, given up with a reason, and forgotten once it is done."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import text

from appliance.domain.errors import StorageError, TransitionError
from appliance.workflow import engine
from appliance.workflow.engine import Pace, StudyWorkflows
from appliance.workflow.names import MAX_FAULTS
from appliance.workflow.steps import Next
from tests.fakes.steps import RecordedSteps
from tests.fakes.transactions import begun

FAST = Pace(poll_seconds=0.05, concurrency=2, delivery_retry_seconds=0.05)


@dataclass
class Running:
    """An engine at work, its scripted steps, and a way to put a study in."""

    steps: RecordedSteps
    workflows: StudyWorkflows
    file: Path

    def put(self, token: str, revision: int = 1, **answers: list[Next | Exception]) -> None:
        """Put a study to work, with the answers of its steps."""
        for step, script in answers.items():
            self.steps.answers[token, step.replace("_", " ")] = script
        with begun(self.file) as transaction:
            self.workflows.enqueue(transaction, token, revision)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One engine for all studies of this file: starting and stopping one takes seconds."""
    folder = tmp_path_factory.mktemp("engine")
    file = folder / "ledger.db"
    file.touch(mode=0o600)
    steps = RecordedSteps(folder / "journal", due=["pacs", "archive"])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(engine, "FIRST_PAUSE_SECONDS", 0.05)
        patched.setattr("dbos._workflow_commands._BACKGROUND_JOBS_INTERVAL_SEC", 0.05)
        with StudyWorkflows(file, steps, ("pacs", "archive"), FAST) as workflows:
            yield Running(steps, workflows, file)


def test_a_study_goes_through_its_steps_in_order(running: Running) -> None:
    """A study is analysed, reported, handed over, and delivered to each destination once."""
    running.put("plain")
    for destination in ("pacs", "archive"):
        running.steps.wait_for("plain", f"deliver {destination}")
    assert [call[0] for call in running.steps.calls("plain")[:3]] == ["analyse", "report", "hand over"]
    assert running.steps.calls("plain", "deliver pacs") == [["deliver pacs", 1, 1]]


def test_a_step_that_must_wait_is_asked_again(running: Running) -> None:
    """While something outside is missing the same step is asked again, and then work goes on."""
    running.put("waiting", analyse=[Next.LATER, Next.LATER, Next.GO_ON])
    running.steps.wait_for("waiting", "hand over")
    assert [call[0] for call in running.steps.calls("waiting")[:4]] == ["analyse"] * 3 + ["report"]


def test_a_study_that_ended_goes_no_further(running: Running) -> None:
    """A superseded or failed revision is neither reported nor delivered."""
    running.put("ended", analyse=[Next.STOP])
    running.put("after")
    running.steps.wait_for("after", "hand over")
    assert [call[0] for call in running.steps.calls("ended")] == ["analyse"]


def test_a_poison_study_ends_failed(running: Running) -> None:
    """A step that ends unexpectedly three times ends its study with a reason, and does not loop."""
    steps = ("analyse", "report", "hand over")
    for step in steps:
        running.put(f"poison in {step}", **{step.replace(" ", "_"): [ZeroDivisionError("secret")]})
    for step in steps:
        (failed,) = running.steps.wait_for(f"poison in {step}", "fail")
        assert "ZeroDivisionError" in str(failed)
        assert "secret" not in str(failed)
        assert len(running.steps.calls(f"poison in {step}", step)) == 3


def test_a_study_survives_a_fault_that_passes(running: Running) -> None:
    """One unexpected end of a step is tried again and forgiven."""
    running.put("unlucky", report=[ZeroDivisionError(), Next.GO_ON])
    running.steps.wait_for("unlucky", "deliver pacs")
    assert not running.steps.calls("unlucky", "fail")


def test_a_ledger_that_does_not_answer_is_no_fault_of_the_study(running: Running) -> None:
    """However often ledger or disk do not answer, the study waits and then goes on."""
    running.put("patient", report=[*[StorageError("full")] * (MAX_FAULTS + 1), Next.GO_ON])
    running.steps.wait_for("patient", "deliver pacs")
    assert not running.steps.calls("patient", "fail")


def test_a_destination_that_refuses_holds_up_no_other(running: Running) -> None:
    """Deliveries to one destination are tried again while another has long had its results."""
    running.put("stuck", deliver_pacs=[Next.LATER, Next.LATER, Next.GO_ON])
    running.steps.wait_for("stuck", "deliver archive")
    assert running.steps.wait_for("stuck", "deliver pacs", 3) == [["deliver pacs", 1, n] for n in (1, 2, 3)]
    assert running.steps.calls("stuck", "deliver archive") == [["deliver archive", 1, 1]]


def test_a_delivery_that_keeps_ending_unexpectedly_is_abandoned(running: Running) -> None:
    """A delivery whose code fails three times is dead, with a reason."""
    running.put("cursed", deliver_pacs=[ZeroDivisionError()])
    (abandoned,) = running.steps.wait_for("cursed", "abandon pacs")
    assert "ZeroDivisionError" in str(abandoned)


def test_the_same_revision_twice_is_worked_once(running: Running) -> None:
    """Putting a revision to work again changes nothing."""
    running.put("twice")
    running.steps.wait_for("twice", "deliver pacs")
    running.put("twice")
    running.put("afterwards")
    running.steps.wait_for("afterwards", "deliver pacs")
    assert len(running.steps.calls("twice", "analyse")) == 1


def test_one_study_is_worked_on_by_one_revision_at_a_time(running: Running, tmp_path: Path) -> None:
    """The next revision of a study is refused while the earlier one is in work, and taken afterwards."""
    gate = tmp_path / "gate"
    running.steps.gates["busy"] = gate
    running.put("busy")
    running.steps.wait_for("busy", "analyse")
    with pytest.raises(TransitionError):
        running.put("busy", 2)
    gate.touch()
    running.steps.wait_for("busy", "hand over")
    while not running.steps.calls("busy", "analyse")[1:]:
        with contextlib.suppress(TransitionError):
            running.put("busy", 2)
        time.sleep(0.05)
    assert running.steps.wait_for("busy", "analyse", 2)[1] == ["analyse", 2]


def test_work_that_the_engine_dropped_is_begun_again(running: Running) -> None:
    """A delivery whose row says that it failed, or that it runs while nobody runs it, is tried once more."""
    running.put("dropped")
    running.steps.wait_for("dropped", "deliver pacs")
    running.steps.wait_for("dropped", "deliver archive")
    until(lambda: mark(running.file, "dlv:dropped:1:pacs:1", "ERROR"))
    until(lambda: mark(running.file, "dlv:dropped:1:archive:1", "PENDING"))
    assert running.workflows.tend() == 1
    assert running.workflows.tend() == 1
    assert running.steps.wait_for("dropped", "deliver pacs", 2)[1] == ["deliver pacs", 1, 1]
    until(lambda: mark(running.file, "dlv:dropped:1:archive:1", "SUCCESS"))


def test_work_that_the_engine_drops_again_and_again_is_ended(running: Running) -> None:
    """Work that fails outside its steps three times ends, and the ledger is told."""
    running.put("hopeless", analyse=[Next.STOP])
    identifier = "study:hopeless:1"
    for faults in range(MAX_FAULTS):
        until(partial(mark, running.file, identifier + "+" * faults, "ERROR"))
        assert running.workflows.tend() == 1
    assert len(running.steps.wait_for("hopeless", "fail")) == 1


def mark(file: Path, identifier: str, status: str) -> bool:
    """Give an ended workflow another status, as a crash of the engine would have left it."""
    change = text(
        "UPDATE workflow_status SET status = :status, output = NULL WHERE workflow_uuid = :id AND status = 'SUCCESS'"
    )
    with begun(file) as transaction:
        return bool(transaction.connection.execute(change, {"status": status, "id": identifier}).rowcount)


def until(met: Callable[[], bool]) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + 30
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_ended_work_is_forgotten(running: Running) -> None:
    """The engine's rows of ended work are deleted once they are old enough."""
    running.put("old")
    running.steps.wait_for("old", "deliver archive")
    assert running.workflows.forget(datetime.now(UTC) - timedelta(days=1)) == 0
    assert running.workflows.forget(datetime.now(UTC) + timedelta(days=1)) > 0
