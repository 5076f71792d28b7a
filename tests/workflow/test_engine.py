"""Work is taken up, put off, given up and never lost."""

from collections.abc import Callable
from pathlib import Path

from appliance.workflow.engine import Pace, StudyWorkflows
from appliance.workflow.steps import Next
from tests.fakes.steps import RecordedSteps

FAST = Pace(poll_seconds=0.05, concurrency=2, delivery_retry_seconds=0.05)


def test_a_study_goes_through_its_steps_in_order(file: Path, tmp_path: Path, put: Callable[..., None]) -> None:
    """A study is analysed, reported, handed over and delivered to each destination."""
    steps = RecordedSteps(tmp_path / "journal", due=["pacs", "archive"])
    with StudyWorkflows(file, steps, ("pacs", "archive"), FAST) as workflows:
        put(workflows, "a" * 32)
        steps.wait_for("deliver pacs")
        steps.wait_for("deliver archive")
    assert [call[0] for call in steps.calls()[:3]] == ["analyse", "report", "hand_over"]
    assert steps.calls("deliver pacs") == [["deliver pacs", "a" * 32, 1, 1]]
