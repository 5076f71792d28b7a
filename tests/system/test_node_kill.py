"""Killing the node at any moment: what it acknowledged is on disk and in the ledger."""

import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from appliance.storage.ledger import SqlLedger

KILLS = 4
NODE = """
import sys, threading
from pathlib import Path
from appliance.daemons.node import run
from appliance.settings import NodeSettings, Settings
settings = Settings(state=Path(sys.argv[1]), node=NodeSettings(bind="127.0.0.1", port=0, min_free_mib=0))
run(settings, threading.Event(), lambda: print("ready", flush=True))
"""
SENDERS = """
import sys, threading
from pynetdicom import AE
from tests.fakes.images import small_radiograph

def send(prefix):
    entity = AE("CR1")
    entity.dimse_timeout = 3
    entity.add_requested_context("1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.1.2.1")
    association = entity.associate("127.0.0.1", int(sys.argv[1]))
    number = 0
    while association.is_established:
        number += 1
        uid = f"1.2.3.{prefix}.{number}"
        status = association.send_c_store(small_radiograph(uid, StudyInstanceUID=f"1.2.3.{prefix}")).get("Status")
        if status == 0:
            sys.stdout.write(uid + "\\n")
            sys.stdout.flush()

for n in (1, 2, 3):
    threading.Thread(target=send, args=(f"{sys.argv[2]}.{n}",)).start()
"""


@contextmanager
def running_node(state: Path, repository: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A node as a child process, and its port; killed at the end if it still runs."""
    with (state / "node.log").open("a") as log:
        child = subprocess.Popen(
            [sys.executable, "-c", NODE, str(state)], cwd=repository, stdout=subprocess.PIPE, stderr=log, text=True
        )
        assert child.stdout is not None
        with child.stdout:
            try:
                while not child.stdout.readline().startswith("ready"):
                    assert child.poll() is None, (state / "node.log").read_text()
                drain = threading.Thread(target=child.stdout.read)
                drain.start()
                yield child, int((state / "run" / "node.port").read_text())
            finally:
                child.kill()
                child.wait()
                drain.join()


def acknowledged_until_killed(child: subprocess.Popen[str], port: int, name: str, root: Path, wait: float) -> set[str]:
    """Send on three associations, kill the node in the midst of it, return what was answered with Success."""
    with subprocess.Popen(
        [sys.executable, "-c", SENDERS, str(port), name],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as senders:
        assert senders.stdout is not None
        first = senders.stdout.readline()
        time.sleep(wait)
        child.send_signal(signal.SIGKILL)
        child.wait()
        return {line.strip() for line in (first, *senders.stdout)} - {""}


@pytest.mark.slow
def test_what_a_killed_node_acknowledged_is_kept(tmp_path: Path, repository: Path) -> None:
    """Every image answered with Success before `kill -9` has its file and its row after the restart."""
    moment = random.Random(20260102)  # noqa: S311 - moments of a test, no secret
    acknowledged: set[str] = set()
    for kill in range(1, KILLS + 1):
        with running_node(tmp_path, repository) as (child, port):
            told = acknowledged_until_killed(child, port, str(kill), repository, moment.uniform(0.0, 0.8))
            assert told
            acknowledged |= told
    with running_node(tmp_path, repository) as (_, port), socket.create_connection(("127.0.0.1", port), 5):
        pass
    with SqlLedger.open(tmp_path / "ledger.db") as ledger:
        kept = [stored for study in ledger.studies() for stored in ledger.instances(study.token)]
    assert acknowledged <= {stored.instance.identity.sop_instance_uid for stored in kept}
    assert set((tmp_path / "spool").rglob("*.dcm")) == {stored.path for stored in kept}
    assert list((tmp_path / "spool" / "incoming").iterdir()) == []
