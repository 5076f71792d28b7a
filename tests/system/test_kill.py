"""`kill -9` of any daemon, at any moment, while studies are being sent: nothing acknowledged is lost or doubled."""

import contextlib
import json
import os
import queue
import random
import socket
import subprocess
import threading
import time
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import psutil
import pydicom
import pytest

from appliance.daemons.supervisor import DAEMONS, Supervisor
from appliance.domain.lifecycle import StudyState
from appliance.storage.ledger import SqlLedger
from tests.fakes.radiographs import write_radiograph
from tests.fakes.tiny_pack import SIDE, bright_picture, tiny_pack

STUDIES = 50
KILLS = 10
SENDERS = 3
FINISH_SECONDS = 120.0


def free_port() -> int:
    """A port that was free a moment ago: the node has to come back on the same one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Orthanc:
    """A receiving PACS: Orthanc, with nothing in it at first."""

    dicom_port: int
    http_port: int

    def ask(self, path: str) -> Any:
        """What its REST interface answers."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}", timeout=10) as answer:
            return json.load(answer)

    def file(self, instance: str) -> pydicom.Dataset:
        """One stored object."""
        address = f"http://127.0.0.1:{self.http_port}/instances/{instance}/file"
        with urllib.request.urlopen(address, timeout=10) as answer:
            return pydicom.dcmread(BytesIO(answer.read()))

    def results(self) -> Mapping[str, list[tuple[str, str]]]:
        """By Study Instance UID: modality and Orthanc's name of every object."""
        studies = {each["ID"]: each["MainDicomTags"]["StudyInstanceUID"] for each in self.ask("/studies?expand")}
        found: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for series in self.ask("/series?expand"):
            modality = series["MainDicomTags"]["Modality"]
            found[studies[series["ParentStudy"]]] += [(modality, instance) for instance in series["Instances"]]
        return found


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[Orthanc]:
    """A running Orthanc."""
    pacs = Orthanc(free_port(), free_port())
    config = {
        "Name": "PACS",
        "StorageDirectory": str(tmp_path / "orthanc"),
        "IndexDirectory": str(tmp_path / "orthanc"),
        "DicomAet": "PACS",
        "DicomPort": pacs.dicom_port,
        "HttpPort": pacs.http_port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomCheckCalledAet": False,
        "DicomAlwaysAllowStore": True,
        "OverwriteInstances": False,
        "Plugins": [],
    }
    file = tmp_path / "orthanc.json"
    file.write_text(json.dumps(config))
    with (tmp_path / "orthanc.log").open("wb") as log:
        process = subprocess.Popen(["Orthanc", str(file)], stdout=log, stderr=log)
    until(lambda: _answers(pacs), 30, "Orthanc answers")
    yield pacs
    process.terminate()
    process.wait(30)


def _answers(pacs: Orthanc) -> bool:
    try:
        return bool(pacs.ask("/system"))
    except OSError:
        return False


@dataclass
class Traffic:
    """Sends files by dcmtk's `storescu`, each again and again until it is acknowledged."""

    port: int
    waiting: "queue.Queue[Path]" = field(default_factory=queue.Queue)
    acknowledged: list[str] = field(default_factory=list)
    again: int = 0

    def run(self) -> None:
        """Send until the queue says that there is nothing more."""
        while (file := self.waiting.get()).name:
            while not self._send(file):
                self.again += 1
                time.sleep(0.2)
            self.acknowledged.append(file.stem)

    def _send(self, file: Path) -> bool:
        command = ["storescu", "-v", "-to", "5", "-td", "30", "-aec", "INSITE", "127.0.0.1", str(self.port), str(file)]
        sent = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        return sent.returncode == 0 and "Received Store Response (Success)" in sent.stdout + sent.stderr


@pytest.fixture
def supervisor(tmp_path: Path, orthanc: Orthanc) -> Iterator[Supervisor]:
    """The four daemons on a state folder of their own, with a synthetic pack; ended ones are started again at once."""
    pack = tiny_pack(tmp_path / "packs")
    config = tmp_path / "insite.toml"
    config.write_text(
        f"""
        [node]
        bind = "127.0.0.1"
        port = {free_port()}
        min_free_mib = 16
        [study]
        quiet_seconds = 0.2
        [packs]
        folder = "{tmp_path / "packs"}"
        trusted_keys = ["{pack.keys.public}"]
        allow_unvalidated = true
        [worker]
        poll_seconds = 0.2
        delivery_retry_seconds = 0.5
        [web]
        port = 0
        [log]
        level = "warning"
        [[destinations]]
        name = "pacs"
        ae_title = "PACS"
        host = "127.0.0.1"
        port = {orthanc.dicom_port}
        """
    )
    stop = threading.Event()
    (tmp_path / "state" / "run").mkdir(parents=True)
    with Supervisor(["--state", str(tmp_path / "state"), "--config", str(config)]) as running:
        running.wait_ready(60)
        watcher = threading.Thread(target=running.watch, args=(stop,))
        watcher.start()
        yield running
        stop.set()
        watcher.join()


@pytest.mark.slow
@pytest.mark.peer
def test_every_acknowledged_study_ends_in_exactly_one_set_of_results(
    supervisor: Supervisor, orthanc: Orthanc, tmp_path: Path
) -> None:
    """After ten kills of random daemons during fifty studies the PACS has one SR and one SEG of each, and no more."""
    seed = int(os.environ.get("INSITE_KILL_SEED", random.SystemRandom().randrange(10**6)))
    print(f"INSITE_KILL_SEED={seed}")  # noqa: T201 - a failure has to be repeatable
    chance = random.Random(seed)  # noqa: S311 - no secret
    files = _radiographs(tmp_path)
    traffic = Traffic(int((tmp_path / "state" / "run" / "node.port").read_text()))
    senders = [threading.Thread(target=traffic.run, daemon=True) for _ in range(SENDERS)]
    for sender in senders:
        sender.start()
    killed = Counter[str]()
    for group in range(KILLS):
        for file in files[group * STUDIES // KILLS : (group + 1) * STUDIES // KILLS]:
            traffic.waiting.put(file)
        time.sleep(chance.uniform(0.0, 1.5))
        killed[_kill_one(supervisor, chance)] += 1
    for _ in senders:
        traffic.waiting.put(Path())
    for sender in senders:
        sender.join()
    print(f"killed {dict(killed)}, sent again {traffic.again} times")  # noqa: T201 - what the run was worth
    assert len(traffic.acknowledged) == STUDIES

    with SqlLedger.open(tmp_path / "state" / "ledger.db") as ledger:
        until(lambda: ledger.counts() == {"done": STUDIES}, FINISH_SECONDS, "every study is done", ledger.counts)
        time.sleep(1.0)
        found = orthanc.results()
        assert len(found) == STUDIES
        for record in ledger.studies():
            made = {each.sop_instance_uid: each for each in ledger.objects(record.token, 1)}
            held = found[record.key.study_uid]
            assert record.state is StudyState.DONE
            assert record.revision == 1
            assert sorted(modality for modality, _ in held) == ["SEG", "SR"]
            stored = [orthanc.file(instance) for _, instance in held]
            assert {str(each.SOPInstanceUID) for each in stored} == set(made)
            assert all(each == pydicom.dcmread(made[str(each.SOPInstanceUID)].path) for each in stored)


def until(met: Callable[[], bool], seconds: float, what: str, told: Callable[[], object] = lambda: "") -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}; {told()}"
        time.sleep(0.2)


def _radiographs(folder: Path) -> list[Path]:
    """Fifty small radiographs of fifty patients, which the synthetic pack accepts."""
    (folder / "sent").mkdir()
    picture = bright_picture()[0, 0][:: SIDE // 64, :: SIDE // 64].astype("uint16") * 16
    return [write_radiograph(folder / "sent" / f"{n}.dcm", n, picture) for n in range(1, STUDIES + 1)]


def _kill_one(supervisor: Supervisor, chance: random.Random) -> str:
    """Kill a daemon that is alive, as a crash would."""
    while True:
        name = chance.choice(DAEMONS)
        with contextlib.suppress(psutil.NoSuchProcess):
            daemon = psutil.Process(supervisor.pid(name))
            if daemon.status() != psutil.STATUS_ZOMBIE:
                daemon.kill()
                return name
        time.sleep(0.01)
