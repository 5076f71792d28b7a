"""What a golden study must show: the installed pack answers, the recorded scores come out, nothing is left open."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from appliance.daemons.golden_study import ended, require_answers, require_scores
from appliance.domain.errors import GateError, InsiteError
from appliance.domain.findings import ModelProvenance, StudyAnalysis, TaskOutcome, TaskState
from appliance.domain.instance import AgeSource, Patient, StudyKey, key_of
from appliance.domain.ports import StoredInstance
from appliance.governance.golden import GoldenCases, Tolerance
from appliance.storage.ledger import SqlLedger
from tests.fakes.chain import BASE, DIGEST, pack
from tests.fakes.instances import radiograph

PROVENANCE = ModelProvenance("chest", 1, DIGEST, BASE, "fp32")
CASES = GoldenCases(
    ("case",),
    np.zeros((1, 1, 64, 64), np.uint8),
    Tolerance(0.05, 0.98),
    {"fp32/guard/score": np.array([[0.10]], np.float32), "fp32/triage/score": np.array([[0.80]], np.float32)},
)


def _outcome(task: str, state: TaskState = TaskState.RAN, score: float | None = None, error: str = "") -> TaskOutcome:
    (manifest,) = [each for each in pack().tasks if each.name == task]
    ran = PROVENANCE if state is TaskState.RAN else None
    return TaskOutcome(
        task, "", manifest.kind, manifest.finding, state, error=error, score=score, provenance=ran, pack="chest"
    )


def _analysis(*outcomes: TaskOutcome) -> StudyAnalysis:
    nobody = Patient("", "", "", "", "", None, AgeSource.UNKNOWN)
    return StudyAnalysis(StudyKey("1.2", "A", ""), 1, nobody, (), outcomes, {"chest": DIGEST})


def test_recorded_scores_pass() -> None:
    """Scores within the pack's tolerance, and tasks that the guard refused, are as they must be."""
    require_scores(_analysis(_outcome("guard", score=0.12), _outcome("triage", score=0.78)), pack(), CASES)
    require_scores(_analysis(_outcome("guard", score=0.12), _outcome("triage", TaskState.REFUSED)), pack(), CASES)


@pytest.mark.parametrize(
    ("outcomes", "sentence"),
    [
        ((_outcome("guard", score=0.90),), "recorded was 0.100"),
        ((_outcome("guard", score=0.10), _outcome("triage", score=0.20)), "recorded was 0.800"),
        ((_outcome("guard", TaskState.REFUSED),), "guard did not look"),
        ((_outcome("guard"),), "without a score"),
    ],
    ids=["other guard score", "other score", "guard silent", "no score"],
)
def test_anything_else_fails(outcomes: tuple[TaskOutcome, ...], sentence: str) -> None:
    """A score that is off and a guard that did not look fail with their sentences."""
    with pytest.raises(GateError, match=sentence):
        require_scores(_analysis(*outcomes), pack(), CASES)


def test_a_failed_task_is_no_answer() -> None:
    """A study whose report says that a task failed proves nothing."""
    failed = _outcome("triage", TaskState.FAILED, error="No memory.")
    with pytest.raises(GateError, match=r"triage failed on the golden study\. No memory\."):
        require_answers(_analysis(_outcome("guard", score=0.1), failed), findings=False)


def test_a_sites_own_file_must_be_answered() -> None:
    """Of a real image some task must say something; refusals by all of them are no proof."""
    guard, triage = _outcome("guard", score=0.9), _outcome("triage", score=0.8)
    require_answers(_analysis(guard, triage), findings=True)
    with pytest.raises(GateError, match="No task answered"):
        require_answers(_analysis(guard, _outcome("triage", TaskState.REFUSED)), findings=True)


def test_no_answer_in_time_is_said(tmp_path: Path) -> None:
    """A study that nobody takes up is named with where it stands."""
    image = radiograph()
    with SqlLedger.open(tmp_path / "ledger.db") as ledger:
        ledger.add_instance(StoredInstance(image, tmp_path / "1.dcm", datetime.now(UTC), "TEST", own_result=False))
        with pytest.raises(InsiteError, match=r"no answer in 0 s; it is receiving"):
            ended(ledger, key_of(image).token, 0.0)
