"""The worker waits for what is not there, says so, goes on by itself, and stops when it is told to."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from appliance.daemons import inference, worker
from appliance.domain.errors import SettingsError
from appliance.domain.instance import key_of
from appliance.domain.lifecycle import StudyState
from appliance.domain.ports import StoredInstance
from appliance.imaging.header import read_instance
from appliance.settings import PackSettings, Settings, StudySettings, WorkerSettings
from appliance.storage.ledger import SqlLedger
from tests.fakes.radiographs import write_radiograph
from tests.fakes.tiny_pack import SIDE, bright_picture, tiny_pack

Run = Callable[[Settings, threading.Event, Callable[[], None]], None]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A state folder, a synthetic pack, no destination."""
    pack = tiny_pack(tmp_path / "packs")
    return Settings(
        state=tmp_path / "state",
        study=StudySettings(quiet_seconds=0),
        packs=PackSettings(folder=tmp_path / "packs", trusted_keys=(pack.keys.public,), allow_unvalidated=True),
        worker=WorkerSettings(poll_seconds=0.05),
    )


@contextmanager
def running(run: Run, settings: Settings) -> Iterator[None]:
    """A daemon in a thread, from ready to stopped."""
    stop, ready = threading.Event(), threading.Event()
    thread = threading.Thread(target=run, args=(settings, stop, ready.set))
    thread.start()
    assert ready.wait(60)
    try:
        yield
    finally:
        stop.set()
        thread.join(30)
        assert not thread.is_alive()


def arrive(ledger: SqlLedger, file: Path) -> str:
    """A radiograph that the synthetic pack accepts."""
    picture = bright_picture()[0, 0][:: SIDE // 64, :: SIDE // 64].astype("uint16") * 16
    write_radiograph(file, 1, picture)
    stored = StoredInstance(read_instance(file), file, datetime.now(UTC), "MODALITY", own_result=False)
    ledger.add_instance(stored)
    return key_of(stored.instance).token


def until(met: Callable[[], bool]) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + 60
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_study_waits_for_the_inference_daemon_and_is_then_done(settings: Settings, tmp_path: Path) -> None:
    """Without the inference daemon a study says what it waits for; when the daemon comes, results lie on disk."""
    with running(worker.run, settings), SqlLedger.open(settings.ledger_file) as ledger:
        token = arrive(ledger, tmp_path / "image.dcm")
        until(lambda: ledger.study(token).reason == "Waiting for the inference daemon.")
        assert ledger.study(token).state is StudyState.ANALYSING
        with running(inference.run, settings):
            until(lambda: ledger.study(token).state is StudyState.DONE)
        objects = ledger.objects(token, 1)
        assert [made.kind for made in objects] == ["SR", "SEG"]
        assert all(Path(made.path).is_relative_to(settings.results_folder) for made in objects)


def test_two_workers_on_one_state_folder_are_refused(settings: Settings) -> None:
    """A second worker would take the first one's work for that of a dead one: it ends with a reason."""
    with running(worker.run, settings), pytest.raises(SettingsError, match="Another worker"):
        worker.run(settings, threading.Event(), lambda: None)
