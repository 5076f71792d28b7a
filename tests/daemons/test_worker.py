"""The worker waits for what is not there, says so, goes on by itself, and stops when it is told to."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from appliance.daemons import inference, worker
from appliance.daemons.supervisor import STOP_SECONDS
from appliance.domain.errors import SettingsError
from appliance.domain.instance import key_of
from appliance.domain.lifecycle import DeliveryState, StudyState
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
        until(lambda: ledger.study(token).reason.startswith("Waiting for the inference daemon."))
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


@pytest.mark.slow
def test_a_silent_peer_does_not_hold_up_a_stop(tmp_path: Path) -> None:
    """While a destination takes the connection and says nothing, the worker still stops, and the results are due."""
    pack = tiny_pack(tmp_path / "packs")
    config = tmp_path / "insite.toml"
    options = ["--state", str(tmp_path / "state"), "--config", str(config)]
    with socket.create_server(("127.0.0.1", 0)) as silent, ExitStack() as stack:
        config.write_text(
            f"""
            study.quiet_seconds = 0
            worker.poll_seconds = 0.05
            packs.folder = "{tmp_path / "packs"}"
            packs.trusted_keys = ["{pack.keys.public}"]
            packs.allow_unvalidated = true
            [[destinations]]
            name = "pacs"
            ae_title = "PACS"
            host = "127.0.0.1"
            port = {silent.getsockname()[1]}
            """
        )
        ledger = stack.enter_context(SqlLedger.open(tmp_path / "state" / "ledger.db"))
        token = arrive(ledger, tmp_path / "image.dcm")
        commands = [[sys.executable, "-m", "appliance.cli", name, *options] for name in ("inference", "worker")]
        inference_daemon, worker_daemon = [stack.enter_context(subprocess.Popen(command)) for command in commands]
        stack.callback(inference_daemon.terminate)
        stack.callback(worker_daemon.kill)
        silent.settimeout(60)
        stack.enter_context(silent.accept()[0])
        worker_daemon.terminate()
        assert worker_daemon.wait(STOP_SECONDS) == 0
        assert ledger.deliveries(token, 1)[0].state is DeliveryState.PENDING
