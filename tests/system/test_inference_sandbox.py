"""The inference daemon inside the walls of its own unit: it serves, reaches no network, and sees no patient data.

The unit's lines for network and file system are applied with unshare(1) and mount(8), as systemd does. The kernel's
filters (SystemCallFilter=, RestrictAddressFamilies=) need systemd itself: a program under exactly this unit tries
sockets and resources in tests/fleet/test_hospital.py.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.inference.client import OipClient
from tests.fakes.tiny_pack import TinyPack, bright_picture, tiny_pack

STATE = "/var/lib/insite"
WITHOUT_RIGHTS = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all", "--no-new-privs"]

NAMESPACES = ["unshare", "--net", "--mount", "--propagation", "private"]

INSIDE = """
import json, os, socket, sys
seen = {"state": sorted(os.listdir("/var/lib/insite")), "reached": [], "written": [], "tmp": os.listdir("/tmp")}
for host, port in (("127.0.0.1", int(sys.argv[1])), ("192.0.2.1", 443)):
    try:
        socket.create_connection((host, port), 2)
        seen["reached"].append(host)
    except OSError:
        pass
for path in ("/var/lib/insite/packs/x", "/var/lib/insite/x", "/var/lib/x"):
    try:
        open(path, "w")
        seen["written"].append(path)
    except OSError:
        pass
for table in ("tcp", "tcp6", "udp", "udp6"):
    seen[table] = len(open(f"/proc/net/{table}").readlines()) - 1
print(json.dumps(seen))
"""


def lines_of(unit: Path, key: str) -> list[str]:
    """The values of a key of a unit file."""
    found = [line.partition("=")[2] for line in unit.read_text().splitlines() if line.startswith(f"{key}=")]
    return [value for line in found for value in line.split()]


def walls(unit: Path, state: Path) -> str:
    """The unit's view of the file system as a script for a mount namespace of its own; `state` stands for `STATE`."""
    script, kept = ["set -e"], state / "walls"
    binds = [(path, "rw") for path in lines_of(unit, "BindPaths")]
    binds += [(path.lstrip("-"), "ro") for path in lines_of(unit, "BindReadOnlyPaths")]
    for number, (path, _) in enumerate(binds):
        source = path.replace(STATE, str(state))
        script += [f"mkdir -p {kept}/{number}", f"mount --bind {source} {kept}/{number}"]
    for each in lines_of(unit, "TemporaryFileSystem"):
        script.append(f"mount -t tmpfs tmpfs {each.partition(':')[0]}")
    for number, (path, mode) in enumerate(binds):
        script += [f"mkdir -p {path}", f"mount --bind {kept}/{number} {path}"]
        if mode == "ro":
            script.append(f"mount -o remount,ro,bind {path}")
    script += [f"mount -o remount,ro {each.partition(':')[0]}" for each in lines_of(unit, "TemporaryFileSystem")]
    return "\n".join([*script, "mount -t tmpfs tmpfs /tmp", 'exec "$@"'])


@pytest.fixture
def pack(tmp_path: Path) -> TinyPack:
    """An installed pack, beside patient data that the daemon must not see."""
    for name in ("spool", "results", "keys", "audit", "run"):
        (tmp_path / name).mkdir()
    (tmp_path / "spool" / "patient.dcm").write_text("Doe^Jane")
    (tmp_path / "ledger.db").write_text("Doe^Jane")
    return tiny_pack(tmp_path / "packs")


@pytest.fixture
def daemon(repository: Path, tmp_path: Path, pack: TinyPack) -> Iterator[subprocess.Popen[bytes]]:
    """The daemon behind its walls."""
    if os.geteuid() != 0 or subprocess.run(["unshare", "-nm", "true"], check=False).returncode != 0:
        pytest.skip("making namespaces needs root")
    unit = repository / "systemd" / "insite-inference.service"
    assert lines_of(unit, "PrivateNetwork") == ["yes"]
    assert lines_of(unit, "RestrictAddressFamilies") == ["AF_UNIX"]
    key = tmp_path / "packs" / "trusted.pem"
    shutil.copy(pack.keys.public, key)
    command = [sys.executable, "-m", "appliance.cli", "inference", "--state", STATE]
    process = subprocess.Popen(
        [*NAMESPACES, "sh", "-c", walls(unit, tmp_path), "sh", *WITHOUT_RIGHTS, *command],
        env={
            **os.environ,
            "INSITE_PACKS__TRUSTED_KEYS": f'["{STATE}/packs/trusted.pem"]',
            "INSITE_PACKS__ALLOW_UNVALIDATED": "true",
            "INSITE_INFERENCE__THREADS": "1",
            "INSITE_LOG__LEVEL": "error",
            "COVERAGE_PROCESS_START": "",
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        cwd=repository,
    )
    yield process
    process.terminate()
    process.wait(30)


def test_behind_its_walls_it_serves_and_sees_no_patient(
    daemon: "subprocess.Popen[bytes]", tmp_path: Path, repository: Path
) -> None:
    """Its socket answers from outside; inside there is no network, nothing but run/ and packs/, nothing to write."""
    target = f"unix://{tmp_path}/run/inference.sock"
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / "inference.sock").exists() and time.monotonic() < deadline:
        assert daemon.poll() is None
        time.sleep(0.1)
    with OipClient(target, 20) as client:
        assert client.infer("chest-xray.guard", bright_picture()).provenance.pack == "chest-xray"
    with socket.create_server(("127.0.0.1", 0)) as outside:
        enter = ["nsenter", "-t", str(daemon.pid), "-n", "-m", *WITHOUT_RIGHTS]
        inside = subprocess.run(
            [*enter, sys.executable, "-I", "-c", INSIDE, str(outside.getsockname()[1])],
            capture_output=True,
            text=True,
            check=True,
            cwd="/",
        )
    seen = json.loads(inside.stdout)
    assert seen["state"] == ["packs", "run"]
    assert (seen["reached"], seen["written"], seen["tmp"]) == ([], [], [])
    assert [seen[table] for table in ("tcp", "tcp6", "udp", "udp6")] == [0, 0, 0, 0]
    with OipClient(target, 20) as client:
        assert client.served()
