"""Other software to talk to: a whole appliance node, and Orthanc as the hospital's PACS."""

import base64
import json
import secrets
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from appliance.daemons.node import run
from appliance.domain.ports import Destination
from appliance.settings import NodeSettings, Settings
from appliance.storage.ledger import SqlLedger

START_SECONDS = 60


def free_port() -> int:
    """A TCP port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(frozen=True)
class RunningNode:
    """A node in this process: where it listens, and its ledger."""

    destination: Destination
    ledger: SqlLedger


@pytest.fixture
def running_node(tmp_path: Path) -> Iterator[RunningNode]:
    """`insite node` on a temporary state folder."""
    node = NodeSettings(bind="127.0.0.1", port=0, min_free_mib=0)
    settings = Settings(state=tmp_path / "state", node=node)
    stop, ready = threading.Event(), threading.Event()
    thread = threading.Thread(target=run, args=(settings, stop, ready.set))
    thread.start()
    try:
        assert ready.wait(START_SECONDS)
        port = int((settings.state / "run" / "node.port").read_text())
        with SqlLedger.open(settings.ledger_file) as ledger:
            yield RunningNode(Destination("node", "INSITE", "127.0.0.1", port), ledger)
    finally:
        stop.set()
        thread.join()


@dataclass(frozen=True)
class Orthanc:
    """A running Orthanc: its DICOM side as a destination, its REST API as a URL."""

    destination: Destination
    url: str
    authorization: str

    def ask(self, path: str, body: Any = None, method: str | None = None) -> Any:
        """One request to the REST API, JSON both ways; bytes where the answer is no JSON."""
        request = urllib.request.Request(  # noqa: S310 - the URL is this fixture's own
            self.url + path,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": self.authorization},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310 - the same
            answer = response.read()
        return json.loads(answer) if answer[:1] in {b"{", b"["} else answer

    def upload(self, file: Path) -> str:
        """Put a DICOM file into the PACS and return Orthanc's name of the instance."""
        request = urllib.request.Request(  # noqa: S310 - the URL is this fixture's own
            f"{self.url}/instances", data=file.read_bytes(), headers={"Authorization": self.authorization}
        )
        with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310 - the same
            name: str = json.loads(response.read())["ID"]
        return name


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[Orthanc]:
    """Orthanc with an empty store; it takes from and sends to any AE title."""
    program = shutil.which("Orthanc")
    assert program, "Orthanc is not installed."
    dicom_port, http_port = free_port(), free_port()
    password = secrets.token_hex(8)
    folder = tmp_path / "orthanc"
    folder.mkdir()
    config = {
        "StorageDirectory": str(folder),
        "IndexDirectory": str(folder),
        "DicomAet": "ORTHANC",
        "DicomPort": dicom_port,
        "DicomAlwaysAllowStore": True,
        "DicomAlwaysAllowEcho": True,
        "UnknownSopClassAccepted": True,
        "HttpPort": http_port,
        "RemoteAccessAllowed": False,
        "RegisteredUsers": {"tests": password},
        "Plugins": [],
    }
    (folder / "orthanc.json").write_text(json.dumps(config))
    token = base64.b64encode(f"tests:{password}".encode()).decode()
    pacs = Orthanc(
        Destination("orthanc", "ORTHANC", "127.0.0.1", dicom_port), f"http://127.0.0.1:{http_port}", f"Basic {token}"
    )
    with (folder / "orthanc.log").open("w") as log:
        process = subprocess.Popen([program, str(folder / "orthanc.json")], stdout=log, stderr=log)
        try:
            _wait_until_it_answers(pacs, process, folder / "orthanc.log")
            yield pacs
        finally:
            process.terminate()
            process.wait(30)


def _wait_until_it_answers(pacs: Orthanc, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            pacs.ask("/system")
        except (urllib.error.URLError, ConnectionError):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        else:
            return
