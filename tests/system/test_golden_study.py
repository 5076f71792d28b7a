"""`insite golden-study` and `insite drain` beside running services."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.daemons.drain import drained
from appliance.daemons.golden_study import run_golden_study
from appliance.daemons.supervisor import Supervisor
from appliance.domain.errors import InputError, PackError
from appliance.domain.findings import TaskState
from appliance.domain.golden_study import is_golden_study
from appliance.domain.lifecycle import StudyState
from appliance.settings import Settings, load
from appliance.storage.ledger import SqlLedger

pytestmark = [pytest.mark.slow]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Four running daemons with the shipped pack, and a destination at which nobody listens."""
    folder = tmp_path_factory.mktemp("served")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        nobody = listener.getsockname()[1]
    config = folder / "insite.toml"
    peer = {"name": "pacs", "ae_title": "PACS", "host": "127.0.0.1", "port": nobody}
    config.write_text(
        '[node]\nbind = "127.0.0.1"\nport = 0\nmin_free_mib = 16\n[web]\nport = 0\n[log]\nlevel = "error"\n'
        "[study]\nquiet_seconds = 0.5\n[worker]\npoll_seconds = 0.2\n[[destinations]]\n"
        + "".join(f"{key} = {json.dumps(value)}\n" for key, value in peer.items()),
        encoding="utf-8",
    )
    with Supervisor(["--state", str(folder / "state"), "--config", str(config)]) as supervisor:
        supervisor.wait_ready(120)
        yield load(config, {"state": folder / "state"}).settings


def test_the_packs_own_case_comes_through_and_is_delivered_to_nobody(served: Settings) -> None:
    """The synthetic case is reported with the recorded scores; the guard lets no finding out of it, no peer gets it."""
    found = run_golden_study(served)
    assert dict(found.tasks)["chest-xray.guard"] is TaskState.RAN
    assert dict(found.tasks)["chest-xray.adult-triage"] is TaskState.REFUSED
    assert found.objects == ["SR"]
    with SqlLedger.open(served.ledger_file) as ledger:
        (record,) = [each for each in ledger.studies() if is_golden_study(each.key)]
        assert record.state is StudyState.DONE
        assert ledger.deliveries(record.token, record.revision) == []


def test_a_sites_own_file_comes_through_under_the_trials_name(served: Settings, pydicom_data: Path) -> None:
    """A real chest radiograph is answered in full, and nothing of its patient is in the ledger."""
    found = run_golden_study(served, pydicom_data / "RG1_UNCR.dcm")
    assert found.objects == ["SR", "SEG"]
    with SqlLedger.open(served.ledger_file) as ledger:
        assert {each.patient_name for each in ledger.studies()} == {"INSITE^GOLDEN STUDY"}


def test_a_file_that_is_no_dicom_is_refused(served: Settings, tmp_path: Path) -> None:
    """The file is named, with the way forward."""
    odd = tmp_path / "odd.dcm"
    odd.write_bytes(b"\0" * 200)
    with pytest.raises(InputError, match=r"odd\.dcm"):
        run_golden_study(served, odd)


def test_without_a_usable_pack_there_is_nothing_to_prove(served: Settings, tmp_path: Path) -> None:
    """A folder without packs is named."""
    settings = served.model_copy(update={"packs": served.packs.model_copy(update={"folder": tmp_path})})
    with pytest.raises(PackError, match=str(tmp_path)):
        run_golden_study(settings)


def test_a_drain_ends_when_no_study_is_under_way(served: Settings, tmp_path: Path) -> None:
    """With every study ended, or without any ledger, nothing is left."""
    assert drained(served, seconds=30) == 0
    assert drained(served.model_copy(update={"state": tmp_path}), seconds=0) == 0
