"""The ledger: what it keeps, what it refuses, and that several processes may use it at once."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import insert, text

from appliance.domain.errors import (
    IdentityConflictError,
    StorageError,
    StorageFullError,
    TransitionError,
    UnknownStudyError,
)
from appliance.domain.findings import (
    ModelProvenance,
    Refusal,
    RefusalCode,
    ResultObject,
    SegmentationMask,
    StudyAnalysis,
    TaskOutcome,
    TaskState,
)
from appliance.domain.instance import Instance, key_of
from appliance.domain.lifecycle import DeliveryState, StudyEvent, StudyState
from appliance.domain.manifest import Code, OperatingPoint, TaskKind
from appliance.domain.ports import DeliveryRecord, Incident, Ledger, StoredInstance
from appliance.storage.database import _make, open_database, storage_errors, write
from appliance.storage.ledger import SqlLedger
from appliance.storage.schema import INCIDENTS
from tests.fakes.instances import radiograph

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


def image(sop: str = "1.2.3", *, sha: str = "0", patient: str = "P1") -> Instance:
    """A radiograph with these identifiers."""
    made = radiograph()
    return replace(
        made,
        identity=replace(made.identity, sop_instance_uid=sop, content_sha256=sha * 64),
        patient=replace(made.patient, patient_id=patient),
    )


def stored(instance: Instance, minutes: float = 0, *, own_result: bool = False) -> StoredInstance:
    """The same, received some minutes after noon."""
    return StoredInstance(instance, Path("/spool/a.dcm"), NOON + timedelta(minutes=minutes), "CR1", own_result)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[SqlLedger]:
    """An empty ledger."""
    with SqlLedger.open(tmp_path / "ledger.db") as opened:
        yield opened


TOKEN = key_of(image()).token


def bring_to(ledger: Ledger, *events: StudyEvent, revision: int = 1) -> None:
    """Apply events to the one study."""
    for event in events:
        ledger.apply(TOKEN, revision, event)


def test_an_image_opens_a_study_and_is_read_back_as_it_was(ledger: SqlLedger) -> None:
    """The first image of a study makes its revision 1, in state receiving."""
    assert ledger.add_instance(stored(image()))
    record = ledger.study(TOKEN)
    assert (record.revision, record.state, record.images, record.modalities) == (1, StudyState.RECEIVING, 1, ("CR",))
    assert (record.patient_name, record.description) == ("A^B", "THORAX")
    assert ledger.instances(TOKEN) == [stored(image())]


def test_the_same_bytes_again_change_nothing(ledger: SqlLedger) -> None:
    """A sender that repeats an image, not having heard the answer, opens no new revision."""
    ledger.add_instance(stored(image()))
    bring_to(ledger, StudyEvent.SETTLED)
    assert not ledger.add_instance(stored(image(), 5))
    assert ledger.study(TOKEN).revision == 1
    assert ledger.study(TOKEN).last_received_at == NOON


@pytest.mark.parametrize("other", [image(sha="1"), image(patient="P2")])
def test_one_sop_instance_uid_with_other_content_or_patient_is_a_conflict(ledger: SqlLedger, other: Instance) -> None:
    """A known SOP Instance UID with other bytes, or of another patient, is refused and the first stays."""
    ledger.add_instance(stored(image()))
    with pytest.raises(IdentityConflictError, match=r"1\.2\.3"):
        ledger.add_instance(stored(other, 1))
    assert ledger.instances(TOKEN) == [stored(image())]
    assert len(ledger.studies()) == 1


def test_two_patients_under_one_study_uid_are_two_studies(ledger: SqlLedger) -> None:
    """Images of two patients never share a study, whatever their Study Instance UID says."""
    ledger.add_instance(stored(image("1.1.1", patient="P1")))
    ledger.add_instance(stored(image("1.1.2", patient="P2"), 1))
    assert [study.key.patient_id for study in ledger.studies()] == ["P2", "P1"]
    assert all(study.images == 1 for study in ledger.studies())


def test_a_late_image_makes_a_new_revision_with_all_images(ledger: SqlLedger) -> None:
    """An image that comes after a study was queued starts revision 2; revision 1 keeps what it had."""
    ledger.add_instance(stored(image("1.1")))
    bring_to(ledger, StudyEvent.SETTLED)
    ledger.add_instance(stored(image("1.2"), 1))
    ledger.add_instance(stored(image("1.3"), 2))
    first, second = ledger.revisions(TOKEN)
    assert (first.state, first.images, second.state, second.images) == (StudyState.QUEUED, 1, StudyState.RECEIVING, 3)
    assert (second.first_received_at, second.last_received_at) == (NOON, NOON + timedelta(minutes=2))
    assert len(ledger.instances(TOKEN, 1)) == 1


def test_a_study_settles_when_it_was_quiet_long_enough(ledger: SqlLedger) -> None:
    """Only a receiving study whose newest image is old enough is settled."""
    ledger.add_instance(stored(image("1.1")))
    ledger.add_instance(stored(image("1.2"), 3))
    assert ledger.settled(NOON + timedelta(minutes=2)) == []
    (record,) = ledger.settled(NOON + timedelta(minutes=3))
    bring_to(ledger, StudyEvent.SETTLED)
    assert record.token == TOKEN
    assert ledger.settled(NOON + timedelta(minutes=9)) == []


def test_a_retry_opens_a_new_revision_and_keeps_the_old_one(ledger: SqlLedger) -> None:
    """A failed study that is tried again gets revision 2 at once; revision 1 stays failed with its reason."""
    ledger.add_instance(stored(image()))
    bring_to(ledger, StudyEvent.SETTLED)
    ledger.apply(TOKEN, 1, StudyEvent.FAILED, reason="The disk is broken.")
    assert ledger.apply(TOKEN, 1, StudyEvent.RETRIED) is StudyState.RECEIVING
    first, second = ledger.revisions(TOKEN)
    assert (first.state, first.reason) == (StudyState.FAILED, "The disk is broken.")
    assert (second.state, second.images, second.last_received_at) == (StudyState.RECEIVING, 1, NOON)


def test_a_second_retry_of_the_same_revision_is_refused(ledger: SqlLedger) -> None:
    """Two clicks on "retry" open one new revision; the second says that another has taken its place."""
    ledger.add_instance(stored(image()))
    bring_to(ledger, StudyEvent.SETTLED, StudyEvent.FAILED, StudyEvent.RETRIED)
    with pytest.raises(TransitionError, match="revision 2 has taken its place"):
        ledger.apply(TOKEN, 1, StudyEvent.RETRIED)


def test_opening_the_ledger_twice_in_one_process_keeps_its_locks(ledger: SqlLedger, tmp_path: Path) -> None:
    """A second ledger on the same file does not let a third write into an open transaction."""
    with ledger.transaction() as within:
        ledger_file = tmp_path / "ledger.db"
        within.connection.execute(text("DELETE FROM insite_incidents"))
        probe = "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0).execute('BEGIN IMMEDIATE')"
        _make(ledger_file)
        other = subprocess.run([sys.executable, "-c", probe, str(ledger_file)], capture_output=True, check=False)
        assert b"locked" in other.stderr


def test_an_event_out_of_order_is_refused(ledger: SqlLedger) -> None:
    """The ledger follows the lifecycle table and nothing else."""
    ledger.add_instance(stored(image()))
    with pytest.raises(TransitionError):
        ledger.apply(TOKEN, 1, StudyEvent.DELIVERED)


def test_a_transaction_commits_as_a_whole_or_not_at_all(ledger: SqlLedger) -> None:
    """Work that fails after an event in the same transaction takes the event back."""
    ledger.add_instance(stored(image()))

    def settle_and_stumble() -> None:
        with ledger.transaction() as within:
            ledger.apply(TOKEN, 1, StudyEvent.SETTLED, within=within)
            raise KeyError

    with pytest.raises(KeyError):
        settle_and_stumble()
    assert ledger.study(TOKEN).state is StudyState.RECEIVING
    with ledger.transaction() as within:
        ledger.apply(TOKEN, 1, StudyEvent.SETTLED, within=within)
    assert ledger.counts() == {"queued": 1}


def test_own_results_are_kept_but_open_no_study(ledger: SqlLedger) -> None:
    """A result of ours that the PACS sends back is known, and nothing follows from it."""
    assert ledger.add_instance(stored(image(), own_result=True))
    assert ledger.studies() == []
    assert ledger.instances(TOKEN) == []
    assert not ledger.add_instance(stored(image(), own_result=True))


def test_an_analysis_is_read_back_without_its_masks(ledger: SqlLedger) -> None:
    """Every outcome, refusal, score and provenance is kept; pixels live in the result objects."""
    made = image()
    mask = SegmentationMask(np.ones((4, 4), bool), None)
    code = Code("39607008", "SCT", "Lung")
    point = OperatingPoint("int8", 0.5, None, "chosen on 10 cases")
    provenance = ModelProvenance("chest-xray", 1, "a" * 64, "b" * 64, "int8")
    ran = TaskOutcome("lungs", "Lungs", TaskKind.SEGMENTATION, code, TaskState.RAN, image=made.identity, mask=mask)
    scored = replace(ran, mask=None, score=0.25, positive=False, operating_point=point, provenance=provenance)
    refused = replace(ran, mask=None, state=TaskState.REFUSED, refusal=Refusal(RefusalCode.VIEW, "A lateral view."))
    analysis = StudyAnalysis(
        key_of(made), 1, made.patient, (made.identity,), (ran, scored, refused), {"chest-xray": "a"}
    )
    assert ledger.analysis(TOKEN, 1) is None
    for _ in range(2):
        ledger.record_analysis(TOKEN, 1, analysis)
    assert ledger.analysis(TOKEN, 1) == replace(analysis, outcomes=(replace(ran, mask=None), scored, refused))


def test_objects_deliveries_and_incidents_are_kept(ledger: SqlLedger) -> None:
    """Result objects and deliveries are replaced by newer ones; incidents are listed newest first."""
    objects = [ResultObject("SR", "2.25.1", "1.2", "/r/sr.dcm"), ResultObject("SEG", "2.25.2", "1.3", "/r/seg.dcm")]
    ledger.record_objects(TOKEN, 1, objects[:1])
    ledger.record_objects(TOKEN, 1, objects)
    assert ledger.objects(TOKEN, 1) == objects
    pending = DeliveryRecord(TOKEN, 1, "pacs", DeliveryState.PENDING, 1, "no answer")
    ledger.record_delivery(pending)
    ledger.record_delivery(replace(pending, state=DeliveryState.SENT, attempts=2, last_error=""))
    assert [(each.state, each.attempts) for each in ledger.deliveries(TOKEN, 1)] == [(DeliveryState.SENT, 2)]
    for minute, uid in enumerate(("1.1", "1.2", "1.1")):
        ledger.add_incident(Incident(NOON + timedelta(minutes=minute), uid, "conflict", f"number {minute}"))
    assert [each.sentence for each in ledger.incidents()] == ["number 2", "number 1", "number 0"]
    assert [each.sentence for each in ledger.incidents("1.1", limit=1)] == ["number 2"]


def test_a_study_that_is_not_there_is_named(ledger: SqlLedger) -> None:
    """Asking for an unknown study or revision is an error that names it."""
    ledger.add_instance(stored(image()))
    for ask in (
        lambda: ledger.study("nobody"),
        lambda: ledger.study(TOKEN, 7),
        lambda: ledger.revisions("nobody"),
        lambda: ledger.apply("nobody", 1, StudyEvent.SETTLED),
    ):
        with pytest.raises(UnknownStudyError):
            ask()


def test_the_file_is_for_owner_and_group_only_and_durable(ledger: SqlLedger, tmp_path: Path) -> None:
    """Nobody else may read patient data; commits are on disk when they return."""
    assert stat.S_IMODE((tmp_path / "ledger.db").stat().st_mode) & 0o007 == 0
    with ledger.transaction() as within:
        modes = [
            within.connection.execute(text(f"PRAGMA {name}")).scalar_one() for name in ("journal_mode", "synchronous")
        ]
    assert modes == ["wal", 2]


def test_a_database_of_a_later_version_is_refused(tmp_path: Path) -> None:
    """After a downgrade the older version says so instead of misreading the newer one's rows."""
    file = tmp_path / "ledger.db"
    engine = open_database(file)
    with write(engine) as connection:
        connection.execute(text("PRAGMA user_version=99"))
    engine.dispose()
    with pytest.raises(StorageError, match="later version"):
        SqlLedger.open(file)


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    """A damaged ledger or one that can't be opened gives a sentence with its path."""
    broken = tmp_path / "broken.db"
    broken.write_bytes(b"no database at all, but long enough to be read as one" * 20)
    with pytest.raises(StorageError, match=r"broken\.db"):
        SqlLedger.open(broken)
    with pytest.raises(StorageError, match="can't be used"):
        SqlLedger.open(tmp_path)


def test_a_full_disk_has_an_error_of_its_own(ledger: SqlLedger, tmp_path: Path) -> None:
    """When nothing more can be written, the error says that space is missing, and nothing is half-written."""
    ledger.add_instance(stored(image("1.1")))
    with ledger.transaction() as within:
        pages = within.connection.execute(text("PRAGMA page_count")).scalar_one()

    def fill() -> None:
        with storage_errors(tmp_path / "ledger.db"), write(ledger._engine) as connection:
            connection.execute(text(f"PRAGMA max_page_count={pages}"))
            for number in range(2000):
                values = {"at": "2026", "study_uid": str(number), "what": "x", "sentence": "y" * 500}
                connection.execute(insert(INCIDENTS).values(**values))

    with pytest.raises(StorageFullError, match="No space"):
        fill()
    assert ledger.incidents() == []


WRITER = """
import sys
from pathlib import Path
from tests.storage.test_ledger import SqlLedger, image, stored
with SqlLedger.open(Path(sys.argv[1])) as ledger:
    for number in range(25):
        ledger.add_instance(stored(image(f"1.{sys.argv[2]}.{number}"), number))
"""


def test_several_processes_write_at_once(tmp_path: Path, repository: Path) -> None:
    """Four processes that write the same study at the same time lose nothing and see no lock error."""
    file = tmp_path / "ledger.db"
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(file), str(n)], cwd=repository, env=os.environ)
        for n in range(1, 5)
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0, 0]
    with SqlLedger.open(file) as ledger:
        assert ledger.study(TOKEN).images == 100
