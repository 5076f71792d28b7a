"""Results reach each destination, or the ledger says why not."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from appliance.domain.errors import DeliveryError
from appliance.domain.findings import ResultObject
from appliance.domain.golden_study import ISSUER, PATIENT_ID
from appliance.domain.instance import key_of
from appliance.domain.lifecycle import DeliveryState, StudyEvent, StudyState
from appliance.domain.ports import Destination, StoredInstance
from appliance.pipeline.deliver import StudyDelivery
from appliance.storage.ledger import SqlLedger
from tests.fakes.chain import ScriptedPeer
from tests.fakes.instances import radiograph

REPORTED = (StudyEvent.SETTLED, StudyEvent.STARTED, StudyEvent.ANALYSED, StudyEvent.REPORTED)
PEERS = {name: Destination(name, name.upper(), "127.0.0.1", 104) for name in ("pacs", "archive")}
LATER, NEVER = DeliveryError("No answer."), DeliveryError("Not supported.", permanent=True)


@pytest.fixture
def token(ledger: SqlLedger, arrive: Callable[..., str], walk: Callable[..., None], tmp_path: Path) -> str:
    """A study with one result object, about to be delivered."""
    token = arrive()
    walk(token, *REPORTED)
    made = tmp_path / "SR.dcm"
    made.write_bytes(b"result")
    ledger.record_objects(token, 1, [ResultObject("SR", "2.25.1", "1.2", str(made))])
    return token


def states(ledger: SqlLedger, token: str) -> dict[str, DeliveryState]:
    """Where the deliveries of the first revision stand."""
    return {record.destination: record.state for record in ledger.deliveries(token, 1)}


def test_a_study_is_done_when_every_destination_has_it(ledger: SqlLedger, token: str) -> None:
    """Each destination gets the files once; after the last one the study is done."""
    peer = ScriptedPeer()
    delivery = StudyDelivery(ledger, peer, PEERS, attempts=3)
    assert sorted(delivery.hand_over(token, 1)) == ["archive", "pacs"]
    assert delivery.deliver(token, 1, "pacs", 1)
    assert ledger.study(token).state is StudyState.DELIVERING
    assert delivery.deliver(token, 1, "archive", 1)
    assert ledger.study(token).state is StudyState.DONE
    assert delivery.deliver(token, 1, "archive", 2)
    assert peer.taken == {"pacs": [b"result"], "archive": [b"result"]}


def test_without_destinations_a_study_is_done_with_results_on_disk(ledger: SqlLedger, token: str) -> None:
    """An appliance without a destination keeps results and calls the study done."""
    assert StudyDelivery(ledger, ScriptedPeer(), {}, attempts=3).hand_over(token, 1) == []
    assert ledger.study(token).state is StudyState.DONE


def test_a_golden_study_is_done_without_a_delivery(
    ledger: SqlLedger, walk: Callable[..., None], tmp_path: Path
) -> None:
    """A trial of this machine ends as done, and no destination gets its results."""
    made = radiograph()
    made = replace(made, patient=replace(made.patient, patient_id=PATIENT_ID, issuer=ISSUER))
    ledger.add_instance(StoredInstance(made, tmp_path / "1.dcm", datetime.now(UTC), "INSITE", own_result=False))
    token = key_of(made).token
    walk(token, *REPORTED)
    peer = ScriptedPeer()
    assert StudyDelivery(ledger, peer, PEERS, attempts=3).hand_over(token, 1) == []
    assert ledger.study(token).state is StudyState.DONE
    assert peer.taken == {}


def test_a_peer_that_is_away_is_tried_again_until_given_up(ledger: SqlLedger, token: str) -> None:
    """After the last attempt a delivery is dead and the study undelivered, with the peer's reason."""
    delivery = StudyDelivery(ledger, ScriptedPeer({"pacs": [LATER, LATER]}), PEERS, attempts=2)
    delivery.hand_over(token, 1)
    delivery.deliver(token, 1, "archive", 1)
    assert not delivery.deliver(token, 1, "pacs", 1)
    assert states(ledger, token) == {"archive": DeliveryState.SENT, "pacs": DeliveryState.PENDING}
    assert delivery.hand_over(token, 1) == ["pacs"]
    assert delivery.deliver(token, 1, "pacs", 2)
    record = ledger.study(token)
    assert record.state is StudyState.UNDELIVERED
    assert record.reason == "pacs: Given up after 2 attempts. No answer."


def test_a_refusal_for_good_is_not_tried_again(ledger: SqlLedger, token: str) -> None:
    """A peer that can't take the objects ends the delivery at once."""
    delivery = StudyDelivery(ledger, ScriptedPeer({"pacs": [NEVER]}), {"pacs": PEERS["pacs"]}, attempts=20)
    delivery.hand_over(token, 1)
    assert delivery.deliver(token, 1, "pacs", 1)
    assert ledger.study(token).state is StudyState.UNDELIVERED


def test_a_destination_taken_out_of_the_settings_ends_its_deliveries(ledger: SqlLedger, token: str) -> None:
    """Nothing is sent to an address that is no longer in the settings."""
    StudyDelivery(ledger, ScriptedPeer(), PEERS, attempts=3).hand_over(token, 1)
    peer = ScriptedPeer()
    StudyDelivery(ledger, peer, {"archive": PEERS["archive"]}, attempts=3).deliver(token, 1, "pacs", 1)
    assert states(ledger, token)["pacs"] is DeliveryState.DEAD
    assert not peer.taken


def test_result_files_that_vanished_end_the_delivery(ledger: SqlLedger, token: str, tmp_path: Path) -> None:
    """Results removed from the disk are named as the reason."""
    (tmp_path / "SR.dcm").unlink()
    delivery = StudyDelivery(ledger, ScriptedPeer(), {"pacs": PEERS["pacs"]}, attempts=3)
    delivery.hand_over(token, 1)
    delivery.deliver(token, 1, "pacs", 1)
    assert "SR.dcm" in ledger.study(token).reason


def test_an_abandoned_delivery_leaves_the_study_undelivered(ledger: SqlLedger, token: str) -> None:
    """A delivery that the engine gave up is dead; one that had succeeded stays sent."""
    delivery = StudyDelivery(ledger, ScriptedPeer(), PEERS, attempts=3)
    delivery.hand_over(token, 1)
    delivery.deliver(token, 1, "archive", 1)
    delivery.abandon(token, 1, "archive", "late")
    delivery.abandon(token, 1, "pacs", "The process died.")
    assert states(ledger, token) == {"archive": DeliveryState.SENT, "pacs": DeliveryState.DEAD}
    assert ledger.study(token).reason == "pacs: The process died."
