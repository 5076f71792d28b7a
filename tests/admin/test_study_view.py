"""Which image a study's page shows, and what it says of patient and revisions."""

from dataclasses import replace
from pathlib import Path

import pytest

from appliance.admin.packs_list import PackList
from appliance.admin.study_view import shown_image, view_of
from appliance.domain.findings import TaskOutcome, TaskState
from appliance.domain.instance import AgeSource, Instance, key_of
from appliance.domain.lifecycle import StudyEvent
from appliance.domain.manifest import TaskKind
from appliance.domain.ports import StoredInstance
from tests.fakes.memory_ledger import MemoryLedger
from tests.fakes.scene import BEGINNING, PATH_TO_DONE, analysis_of, instance, outcomes_of

NO_PACKS = PackList(())


def numbered(number: int, **image: object) -> Instance:
    """One of several images of one study."""
    made = instance(1, "A^B", **image)
    return replace(
        made, identity=replace(made.identity, sop_instance_uid=f"1.2.3.1.{number}", content_sha256=str(number))
    )


def stored(made: Instance) -> StoredInstance:
    """The image as the ledger has it."""
    return StoredInstance(made, Path("/absent"), BEGINNING, "CR1", own_result=False)


def test_the_image_that_the_tasks_speak_of_is_shown() -> None:
    """The segmented image comes first, then any that a task looked at, then any with pixels, then none."""
    made = [numbered(1, has_pixels=False), numbered(2), numbered(3), numbered(4)]
    images = [stored(each) for each in made]
    segmentation, triage, refused = outcomes_of(made[2])
    about = replace(triage, image=made[3].identity)
    assert shown_image(images, (about, segmentation), None) == 3
    assert shown_image(images, (about, refused), None) == 4
    assert shown_image(images, (refused,), None) == 2
    assert shown_image(images[:1], (), None) is None
    assert shown_image(images[:1], (segmentation,), None) is None


@pytest.mark.parametrize(("wanted", "shown"), [(4, 4), (1, 1), (0, 2), (9, 2)])
def test_the_wanted_image_is_shown_where_there_is_one(wanted: int, shown: int) -> None:
    """A number that no image has falls back to the image of the tasks."""
    images = [stored(numbered(1, has_pixels=False)), *(stored(numbered(number)) for number in (2, 3, 4))]
    assert shown_image(images, (), wanted) == shown


def ledger_of(made: Instance, outcomes: tuple[TaskOutcome, ...] = ()) -> tuple[MemoryLedger, str]:
    """A ledger with one finished study of one image."""
    ledger, token = MemoryLedger(), key_of(made).token
    ledger.add_instance(stored(made))
    for event in PATH_TO_DONE:
        ledger.apply(token, 1, event)
    ledger.record_analysis(token, 1, analysis_of(made, outcomes))
    return ledger, token


def test_a_late_image_makes_a_revision_and_the_earlier_one_stays_readable() -> None:
    """Every revision has its own page; only the current one can be asked for again."""
    ledger, token = ledger_of(numbered(1))
    ledger.add_instance(stored(numbered(2)))
    first, current = view_of(ledger, NO_PACKS, token, 1, None), view_of(ledger, NO_PACKS, token, None, None)
    assert (first.record.revision, first.again, len(first.images)) == (1, "", 1)
    assert (current.record.revision, current.again, len(current.images)) == (2, "", 2)
    assert [record.revision for record, _ in current.revisions] == [1, 2]
    for event in (StudyEvent.SETTLED, StudyEvent.FAILED):
        ledger.apply(token, 2, event)
    assert view_of(ledger, NO_PACKS, token, None, None).again == "Try again"


@pytest.mark.parametrize(
    ("kind", "positive", "verdict"),
    [
        (TaskKind.CLASSIFICATION, True, "at or above the operating point 0.42"),
        (TaskKind.CLASSIFICATION, False, "below the operating point 0.42"),
        (TaskKind.GUARD, True, "recognised; the operating point 0.42"),
        (TaskKind.GUARD, False, "not recognised; the operating point 0.42"),
    ],
)
def test_a_score_is_read_against_its_operating_point(kind: TaskKind, positive: bool, verdict: str) -> None:  # noqa: FBT001 - a case
    """A finding at its operating point is flagged; a guard that knows the image is no finding."""
    made = numbered(1)
    outcome = replace(outcomes_of(made)[1], kind=kind, positive=positive)
    ledger, token = ledger_of(made, (outcome,))
    (row,) = view_of(ledger, NO_PACKS, token, None, None).findings
    assert row.verdict == verdict
    assert row.flagged == (kind is TaskKind.CLASSIFICATION and positive)


def test_unknown_facts_of_the_patient_are_said() -> None:
    """What is not known of the patient is said to be unknown."""
    made = numbered(1, study_date="")
    nobody = replace(made.patient, patient_id="", birth_date="", sex="", age_years=None, age_source=AgeSource.UNKNOWN)
    ledger, token = ledger_of(replace(made, patient=nobody))
    facts = view_of(ledger, NO_PACKS, token, None, None).patient_facts
    assert facts == ("no patient ID", "birth date unknown", "sex unknown", "age unknown")


def test_an_infant_is_counted_in_months() -> None:
    """Under two years the age is given in months."""
    made = numbered(1)
    ledger, token = ledger_of(replace(made, patient=replace(made.patient, age_years=0.5, issuer="HOSP")))
    facts = view_of(ledger, NO_PACKS, token, None, None).patient_facts
    assert facts[0] == "ID P001 (HOSP)"
    assert facts[-1] == "6 months at the examination"


def test_the_notes_of_all_tasks_are_shown_once() -> None:
    """A sentence that several tasks give stands once on the page."""
    made = numbered(1)
    outcomes = tuple(replace(each, state=TaskState.RAN, notes=("Age unknown.",)) for each in outcomes_of(made))
    ledger, token = ledger_of(made, outcomes)
    assert view_of(ledger, NO_PACKS, token, None, None).notes == ("Age unknown.",)
