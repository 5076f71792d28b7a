"""From bytes to a file and a row: what is kept, what is refused, and what a crash leaves."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from appliance.domain.device import MANUFACTURER, MODEL_NAME
from appliance.domain.errors import (
    DataSetMismatchError,
    IdentityConflictError,
    StorageError,
    StorageFullError,
    UnreadableFileError,
)
from appliance.domain.lifecycle import StudyEvent
from appliance.domain.ports import StoredInstance
from appliance.pipeline.receive import Receiver
from appliance.storage.ledger import SqlLedger
from appliance.storage.part10 import DataSetOrigin, file_head
from appliance.storage.spool import Spool
from tests.fakes.images import small_radiograph

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
COMPUTED_RADIOGRAPHY = "1.2.840.10008.5.1.4.1.1.1"
EXPLICIT = "1.2.840.10008.1.2.1"


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[SqlLedger]:
    """An empty ledger."""
    with SqlLedger.open(tmp_path / "ledger.db") as opened:
        yield opened


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    """An empty spool."""
    return Spool(tmp_path / "spool", 0)


@pytest.fixture
def receiver(spool: Spool, ledger: SqlLedger) -> Receiver:
    """The receiver of these."""
    return Receiver(spool, ledger, lambda: NOON)


def data_set(tmp_path: Path, **attributes: Any) -> bytes:
    """An encoded radiograph."""
    path = tmp_path / "made.dcm"
    small_radiograph(**attributes).save_as(path, enforce_file_format=True)
    whole = path.read_bytes()
    return whole[144 + int.from_bytes(whole[140:144], "little") :]


def accept(receiver: Receiver, data: bytes, sop_instance_uid: str = "1.2.3.1") -> bool:
    """Hand it over as the node does."""
    return receiver.accept(
        iter([data]),
        transfer_syntax_uid=EXPLICIT,
        sop_class_uid=COMPUTED_RADIOGRAPHY,
        sop_instance_uid=sop_instance_uid,
        calling_ae="CR1",
    )


def spooled(tmp_path: Path) -> list[Path]:
    """Every file of the spool."""
    return [path for path in sorted((tmp_path / "spool").rglob("*")) if path.is_file()]


def only(ledger: SqlLedger) -> StoredInstance:
    """The one image of the one study."""
    (study,) = ledger.studies()
    (stored,) = ledger.instances(study.token)
    return stored


def test_an_image_becomes_a_file_and_a_row(receiver: Receiver, ledger: SqlLedger, tmp_path: Path) -> None:
    """When `accept` returns, the ledger names a file that holds the bytes."""
    data = data_set(tmp_path)
    assert accept(receiver, data)
    stored = only(ledger)
    assert stored.path.read_bytes().endswith(data)
    assert (stored.received_at, stored.calling_ae, stored.own_result) == (NOON, "CR1", False)
    assert spooled(tmp_path) == [stored.path]


def test_the_same_image_twice_is_kept_once(receiver: Receiver, ledger: SqlLedger, tmp_path: Path) -> None:
    """A repeated image is answered like the first and changes nothing, also after the study was queued."""
    data = data_set(tmp_path)
    accept(receiver, data)
    ledger.apply(ledger.studies()[0].token, 1, StudyEvent.SETTLED)
    assert not accept(receiver, data)
    assert ledger.studies()[0].revision == 1
    assert len(spooled(tmp_path)) == 1


def test_other_bytes_under_a_known_identifier_are_refused_and_kept_aside(
    receiver: Receiver, ledger: SqlLedger, tmp_path: Path
) -> None:
    """The first image stays, the second is refused and told on the study's page; neither is lost."""
    accept(receiver, data_set(tmp_path))
    other = data_set(tmp_path, ViewPosition="AP")
    with pytest.raises(IdentityConflictError):
        accept(receiver, other)
    assert only(ledger).instance.image.view_position == "PA"
    aside, kept = sorted(spooled(tmp_path), key=lambda path: path.parent.name != "conflicts")
    assert aside.read_bytes().endswith(other)
    assert kept == only(ledger).path
    (incident,) = ledger.incidents("1.2.3")
    assert incident.what == "identity conflict"
    assert aside.name in incident.sentence


def test_results_of_our_own_are_kept_and_open_no_study(receiver: Receiver, ledger: SqlLedger, tmp_path: Path) -> None:
    """What the appliance made comes back from the PACS without being analysed."""
    data = data_set(tmp_path, Manufacturer=MANUFACTURER, ManufacturerModelName=MODEL_NAME)
    assert accept(receiver, data)
    assert ledger.studies() == []
    assert len(spooled(tmp_path)) == 1


@pytest.mark.parametrize(
    ("attributes", "kind"),
    [
        ({"sop_instance_uid": "1.2.3.77"}, DataSetMismatchError),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2"}, DataSetMismatchError),
        ({"StudyInstanceUID": None}, UnreadableFileError),
        ({"SeriesInstanceUID": None}, UnreadableFileError),
    ],
)
def test_wrong_or_missing_identifiers_are_refused_with_an_incident(
    receiver: Receiver, ledger: SqlLedger, tmp_path: Path, attributes: dict[str, Any], kind: type[Exception]
) -> None:
    """A data set that can't be told apart from others leaves no file, and an incident with its sender."""
    with pytest.raises(kind):
        accept(receiver, data_set(tmp_path, **attributes))
    assert spooled(tmp_path) == []
    assert ledger.studies() == []
    (incident,) = ledger.incidents()
    assert "CR1" in incident.sentence


@pytest.mark.parametrize("damage", [lambda data: data[:60], lambda _: b"", lambda _: b"\xff" * 300])
def test_truncated_or_foreign_bytes_are_refused(
    receiver: Receiver, ledger: SqlLedger, tmp_path: Path, damage: Any
) -> None:
    """Bytes that don't read back as an image are refused and leave nothing."""
    with pytest.raises(UnreadableFileError):
        accept(receiver, damage(data_set(tmp_path)))
    assert spooled(tmp_path) == []
    assert ledger.studies() == []


def test_a_full_disk_refuses_before_anything_is_kept(ledger: SqlLedger, tmp_path: Path) -> None:
    """Out of space: no file, no row."""
    receiver = Receiver(Spool(tmp_path / "spool", 1 << 40), ledger, lambda: NOON)
    with pytest.raises(StorageFullError):
        accept(receiver, data_set(tmp_path))
    assert spooled(tmp_path) == []
    assert ledger.studies() == []


def test_a_ledger_that_fails_refuses_the_image_and_a_second_try_takes_it(
    receiver: Receiver, ledger: SqlLedger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its row an image is not taken; when the sender repeats it, the file that lies there is used."""
    data = data_set(tmp_path)

    def fail(_: StoredInstance) -> bool:
        raise StorageFullError("No space is left.")

    with monkeypatch.context() as broken:
        broken.setattr(ledger, "add_instance", fail)
        with pytest.raises(StorageFullError):
            accept(receiver, data)
    assert accept(receiver, data)
    assert spooled(tmp_path) == [only(ledger).path]


def test_a_disk_that_reads_back_other_bytes_is_noticed(receiver: Receiver, spool: Spool, tmp_path: Path) -> None:
    """An image whose file does not hold what was received is not acknowledged."""
    origin = DataSetOrigin(COMPUTED_RADIOGRAPHY, "1.2.3.1", EXPLICIT, "CR1")
    with spool.receive(iter([data_set(tmp_path)]), origin) as incoming:
        with incoming.path.open("r+b") as stream:
            stream.seek(-1, 2)
            stream.write(b"\xaa")
        with pytest.raises(StorageError, match="does not read back"):
            receiver._read(incoming)


def leave(tmp_path: Path, name: str, data: bytes) -> Path:
    """What a crash leaves when it comes after the last byte and before the row."""
    path = tmp_path / "spool" / "incoming" / f"{name}.whole"
    path.write_bytes(file_head(DataSetOrigin(COMPUTED_RADIOGRAPHY, "1.2.3.1", EXPLICIT, "CR7")) + data)
    return path


def test_an_image_that_a_crash_left_is_registered_at_the_next_start(
    receiver: Receiver, ledger: SqlLedger, tmp_path: Path
) -> None:
    """A whole image without a row is taken up, under the AE title that sent it."""
    leave(tmp_path, "a", data_set(tmp_path))
    assert receiver.take_up() == 1
    assert only(ledger).calling_ae == "CR7"
    assert spooled(tmp_path) == [only(ledger).path]
    assert receiver.take_up() == 0


def test_leftovers_that_are_known_unreadable_or_in_conflict_are_cleared(
    receiver: Receiver, ledger: SqlLedger, tmp_path: Path
) -> None:
    """After a start nothing is left in the way, and the conflict's bytes are kept aside."""
    accept(receiver, data_set(tmp_path))
    leave(tmp_path, "known", data_set(tmp_path))
    leave(tmp_path, "broken", b"\xff" * 300)
    leave(tmp_path, "other", data_set(tmp_path, ViewPosition="AP"))
    assert receiver.take_up() == 0
    assert sorted(path.parent.name == "conflicts" for path in spooled(tmp_path)) == [False, True]
    assert [incident.what for incident in ledger.incidents()] == ["identity conflict"]
