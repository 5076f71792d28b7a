"""A real ledger on a temporary file, and images that arrive in it."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from appliance.domain.instance import key_of
from appliance.domain.lifecycle import StudyEvent
from appliance.domain.ports import StoredInstance
from appliance.storage.ledger import SqlLedger
from tests.fakes.instances import radiograph

NOON = datetime(2024, 3, 1, 12, 0, tzinfo=UTC)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[SqlLedger]:
    """An empty ledger."""
    with SqlLedger.open(tmp_path / "ledger.db") as opened:
        yield opened


@pytest.fixture
def arrive(ledger: SqlLedger, tmp_path: Path) -> Callable[..., str]:
    """Lets an image arrive at noon and returns its study's token."""

    def arrive(number: int = 1, study: str = "1.1", at: datetime = NOON, *, file: bool = True) -> str:
        made = radiograph()
        identity = replace(made.identity, sop_instance_uid=f"1.2.3.{number}", study_uid=study)
        made = replace(made, identity=identity)
        path = tmp_path / f"{number}.dcm"
        if file:
            path.write_bytes(b"image")
        ledger.add_instance(StoredInstance(made, path, at, "MODALITY", own_result=False))
        return key_of(made).token

    return arrive


@pytest.fixture
def walk(ledger: SqlLedger) -> Callable[..., None]:
    """Moves a study's first revision through events."""

    def walk(token: str, *events: StudyEvent) -> None:
        for event in events:
            ledger.apply(token, 1, event)

    return walk
