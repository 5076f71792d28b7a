"""Kill -9 of daemon, builder and client in the middle of everything: the next request is served, nothing is left."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from appliance.daemons.runtimes import ENGINES_FOLDER, PROGRESS_FILE
from appliance.domain.manifest import EncoderVariant
from appliance.inference.bench_load import regions_of
from appliance.inference.client import OipClient
from appliance.inference.shared_memory import FOLDER
from tests.fakes.tiny_pack import TinyPack, bright_picture, rewritten, tiny_pack

KILLS = 50
WAIT_SECONDS = 60
WITH_A_GPU = """
from functools import partial
from appliance.cli.main import main
from appliance.daemons import inference
from appliance.inference.nvml import GpuMonitor
from tests.fakes.fake_gpu import FakeNvml
inference.GpuMonitor = partial(GpuMonitor, library=FakeNvml())
main()
"""
"""`insite` on a machine whose driver speaks of a GPU: engines are built for it, and found useless here."""


class Daemon:
    """`insite inference` in a process of its own, started again after each kill, as its unit does."""

    def __init__(self, state: Path, pack: TinyPack, repository: Path) -> None:
        self.target = f"unix://{state}/run/inference.sock"
        self.engines = state / ENGINES_FOLDER
        self._progress = state / PROGRESS_FILE
        self._state = state
        self._repository = repository
        self._environment = {
            **os.environ,
            "INSITE_PACKS__TRUSTED_KEYS": json.dumps([str(pack.keys.public)]),
            "INSITE_PACKS__ALLOW_UNVALIDATED": "true",
            "INSITE_PACKS__FOLDER": str(pack.folder.parent),
            "INSITE_INFERENCE__THREADS": "1",
            "INSITE_LOG__LEVEL": "error",
        }
        self.start()

    def start(self) -> None:
        """Start, without waiting for it."""
        self._progress.unlink(missing_ok=True)
        self.process = subprocess.Popen(
            [sys.executable, "-c", WITH_A_GPU, "inference", "--state", str(self._state)],
            env=self._environment,
            cwd=self._repository,
            stdin=subprocess.DEVNULL,
        )

    def kill(self) -> None:
        """Kill it as it stands, and start it again."""
        self.end()
        self.start()

    def end(self) -> None:
        """Kill it as it stands, and see that its children end with it."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        self.process.wait()
        _, alive = psutil.wait_procs(children, timeout=WAIT_SECONDS)
        assert [each for each in alive if runs(each)] == []

    def builder(self) -> psutil.Process | None:
        """Its own child that builds an engine now."""
        children = psutil.Process(self.process.pid).children()
        return next((each for each in children if is_building(each)), None)

    def settle(self) -> None:
        """Wait until every engine is built or failed."""
        deadline = time.monotonic() + 3 * WAIT_SECONDS
        while self._progress.exists() and time.monotonic() < deadline:
            if {each["state"] for each in json.loads(self._progress.read_text())} <= {"built", "failed"}:
                return
            time.sleep(0.2)

    def answers(self) -> bool:
        """Ask until it answers."""
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline:
            try:
                with OipClient(self.target, 10) as client:
                    return client.infer("chest-xray.guard", bright_picture()).provenance.pack == "chest-xray"
            except Exception:  # noqa: BLE001 - it is starting
                time.sleep(0.1)
        return False


@contextmanager
def load_on(target: str, *, shared: bool, count: int = 0) -> Iterator["subprocess.Popen[str]"]:
    """Four clients in a process of their own that ask without pause, whatever happens, or a number of times."""
    order = {"target": target, "models": ["chest-xray.guard"], "clients": 4, "seconds": 120.0}
    order |= {"shared": shared, "count": count}
    with subprocess.Popen(
        [sys.executable, "-m", "appliance.inference.bench_load"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdin is not None
        json.dump(order, process.stdin)
        process.stdin.close()
        try:
            yield process
        finally:
            process.kill()


def clear_up(client: "subprocess.Popen[str]") -> None:
    """Unlink what a killed client left, as the service manager does for its units (RemoveIPC=)."""
    client.wait()
    for left in regions_of(client.pid):
        left.unlink(missing_ok=True)


def memory_of(process: int) -> set[str]:
    """The shared memory that a process holds open, "(deleted)" where its name is gone."""
    held = set()
    for descriptor in Path(f"/proc/{process}/fd").iterdir():
        try:
            held.add(str(descriptor.readlink()))
        except FileNotFoundError:  # closed meanwhile
            continue
    return {each for each in held if each.startswith(str(FOLDER))}


def check_memory(daemon: Daemon, client: "subprocess.Popen[str]", *, shared: bool) -> None:
    """Before anybody clears up: what is there is the killed client's own, and the daemon holds nobody else's."""
    client.wait()
    left = {str(region) for region in regions_of(client.pid)}
    assert shared or not left
    assert {each for each in memory_of(daemon.process.pid) if not each.endswith(" (deleted)")} <= left


def kill_while_building(daemon: Daemon, dice: random.Random, *, builder: bool) -> None:
    """Kill the daemon's own builder at its work, or the daemon; where it was done before, all begins anew."""
    deadline = time.monotonic() + 3 * WAIT_SECONDS
    while time.monotonic() < deadline:
        daemon.end()
        shutil.rmtree(daemon.engines)
        daemon.start()
        while daemon.builder() is None and time.monotonic() < deadline:
            assert daemon.process.poll() is None
            time.sleep(0.02)
        time.sleep(dice.uniform(0, 1.0))
        child = daemon.builder()
        if child is not None:
            if builder:
                child.kill()
            else:
                daemon.kill()
            return
    raise AssertionError("no builder lived long enough to be killed")


def is_building(process: psutil.Process) -> bool:
    """Whether a process is a builder that still runs."""
    try:
        return runs(process) and "appliance.inference.engine_builds" in process.cmdline()
    except psutil.NoSuchProcess:
        return False


def runs(process: psutil.Process) -> bool:
    """Whether it is more than an entry that nobody has waited for."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_fifty_kills_leave_nothing_behind(tmp_path: Path, repository: Path) -> None:
    """Daemon, client and builder are killed fifty times at random moments; every time the next request is answered.

    The builder is the daemon's own child: killed by itself, or orphaned when the daemon is killed, which it survives by
    no more than a moment.
    """
    pack = tiny_pack(tmp_path / "packs")
    pack = rewritten(pack, variants=(EncoderVariant("fp32", "encoder.onnx", ("tensorrt-rtx", "onnxruntime-cpu")),))
    dice = random.Random(6)  # noqa: S311 - moments, no secrets
    daemon = Daemon(tmp_path, pack, repository)
    try:
        assert daemon.answers()
        killed = dict.fromkeys(("daemon", "client", "builder", "builder's daemon"), 0)
        for number in range(KILLS):
            victim = ("client", "daemon", "client", "builder", "client", "daemon", "client", "builder's daemon")[
                number % 8
            ]
            shared = number % 8 == 0
            with load_on(daemon.target, shared=shared) as client:
                time.sleep(dice.uniform(0.05, 1.2) if "builder" not in victim else 0.05)
                if victim == "daemon":
                    daemon.kill()
                elif victim == "client":
                    assert client.poll() is None
                    client.kill()
                else:
                    kill_while_building(daemon, dice, builder=victim == "builder")
                killed[victim] += 1
            check_memory(daemon, client, shared=shared)
            clear_up(client)
            assert daemon.answers(), f"not served after kill {number + 1} of {victim}"
        assert killed == {"client": 25, "daemon": 13, "builder": 6, "builder's daemon": 6}
        daemon.kill()  # a fresh process, to compare with
        assert daemon.answers()
        daemon.settle()
        fresh = psutil.Process(daemon.process.pid).num_fds()
        with load_on(daemon.target, shared=True, count=3) as client:
            assert client.wait(WAIT_SECONDS) == 0
        assert regions_of(client.pid) == ()
        assert memory_of(daemon.process.pid) == set()
        for _ in range(3):
            with load_on(daemon.target, shared=True) as client:
                time.sleep(1.5)
                client.kill()
            check_memory(daemon, client, shared=True)
            clear_up(client)
            assert daemon.answers()
        with OipClient(daemon.target, 10) as owner:
            assert owner.regions() == ()
        assert memory_of(daemon.process.pid) == set()
        assert psutil.Process(daemon.process.pid).num_fds() <= fresh + 4
    finally:
        children = psutil.Process(daemon.process.pid).children(recursive=True)
        daemon.process.terminate()
        daemon.process.wait(30)
    assert [each for each in children if runs(each)] == []
    assert not list(daemon.engines.glob(".*"))
    assert not (tmp_path / "run" / "inference.sock").exists()
