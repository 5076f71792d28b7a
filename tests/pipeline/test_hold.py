"""While a change of release is being proved, patients' studies wait and golden studies do not."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from appliance.domain.golden_study import ISSUER, PATIENT_ID
from appliance.domain.instance import StudyKey
from appliance.pipeline.hold import LONGEST, Hold

NOW = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
PATIENT, GOLDEN = StudyKey("1.2", "P1", ""), StudyKey("1.3", PATIENT_ID, ISSUER)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The file of a proof that began now."""
    made = tmp_path / "proving"
    made.touch()
    os.utime(made, (NOW.timestamp(), NOW.timestamp()))
    return made


def test_a_proof_keeps_patients_waiting_and_lets_the_trial_through(file: Path) -> None:
    """With the file a patient's study waits; without it nobody does."""
    hold = Hold(file, lambda: NOW + timedelta(minutes=1))
    assert hold.keeps(PATIENT)
    assert not hold.keeps(GOLDEN)
    file.unlink()
    assert not hold.keeps(PATIENT)


def test_a_forgotten_hold_ends_by_itself(file: Path) -> None:
    """After a quarter of an hour patients wait no longer, whoever left the file."""
    assert not Hold(file, lambda: NOW + LONGEST).keeps(PATIENT)
