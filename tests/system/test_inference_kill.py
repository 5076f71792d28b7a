"""Kill -9 of daemon, builder and client in the middle of everything: the next request is served, nothing is left."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from appliance.inference.bench_load import regions_of
from appliance.inference.client import OipClient
from appliance.inference.engine_build import SUFFIX, BuildPlan
from appliance.inference.engine_builds import BuildOrder, EngineBuilds
from tests.fakes.tiny_pack import TinyPack, bright_picture, encoder_graph, tiny_pack

KILLS = 50
WAIT_SECONDS = 60


class Daemon:
    """`insite inference` in a process of its own, started again after each kill, as its unit does."""

    def __init__(self, state: Path, pack: TinyPack) -> None:
        self.target = f"unix://{state}/run/inference.sock"
        self._state = state
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
        self.process = subprocess.Popen(
            [sys.executable, "-m", "appliance.cli", "inference", "--state", str(self._state)],
            env=self._environment,
            stdin=subprocess.DEVNULL,
        )

    def kill(self) -> None:
        """Kill it as it stands, and start it again."""
        self.process.kill()
        self.process.wait()
        self.start()

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
def load_on(target: str, *, shared: bool) -> Iterator["subprocess.Popen[str]"]:
    """Four clients in a process of their own that ask without pause, whatever happens."""
    order = {"target": target, "models": ["chest-xray.guard"], "clients": 4, "seconds": 120.0, "shared": shared}
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


def kill_a_builder(builds: EngineBuilds, orders: Iterator[BuildOrder], dice: random.Random) -> None:
    """Kill a process that builds; one that was done before the moment came does not count, another is ordered."""
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        builds.order(next(orders))
        while builds.child is None and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(dice.uniform(0, 1.0))
        child = builds.child
        if child is not None and is_building(child):
            os.kill(child, signal.SIGKILL)
            return
    raise AssertionError("no builder lived long enough to be killed")


def is_building(child: int) -> bool:
    """Whether a process is a builder that still runs."""
    try:
        process = psutil.Process(child)
        return process.status() != psutil.STATUS_ZOMBIE and "appliance.inference.engine_builds" in process.cmdline()
    except psutil.NoSuchProcess:
        return False


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_fifty_kills_leave_nothing_behind(tmp_path: Path) -> None:
    """Daemon, client and builder are killed fifty times at random moments; every time the next request is answered."""
    pack = tiny_pack(tmp_path / "packs")
    graph = tmp_path / "encoder.onnx"
    graph.write_bytes(encoder_graph().SerializeToString())
    plan = BuildPlan("fp32", ("8.9",))
    orders = (BuildOrder("chest-xray", graph, tmp_path / f"{number}{SUFFIX}", plan) for number in itertools.count())
    dice = random.Random(6)  # noqa: S311 - moments, no secrets
    daemon = Daemon(tmp_path, pack)
    try:
        assert daemon.answers()
        killed = dict.fromkeys(("daemon", "client", "builder"), 0)
        with EngineBuilds(lambda _: None, lambda _: None) as builds:
            for number in range(KILLS):
                victim = ("client", "daemon", "client", "builder")[number % 4]
                with load_on(daemon.target, shared=victim == "client" and number % 8 == 0) as client:
                    time.sleep(dice.uniform(0.05, 1.2) if victim != "builder" else 0.05)
                    if victim == "daemon":
                        daemon.kill()
                    elif victim == "client":
                        assert client.poll() is None
                        client.kill()
                    else:
                        kill_a_builder(builds, orders, dice)
                    killed[victim] += 1
                clear_up(client)
                assert daemon.answers(), f"not served after kill {number + 1} of {victim}"
        assert killed == {"client": 25, "daemon": 13, "builder": 12}
        daemon.kill()  # a fresh process, to compare with
        assert daemon.answers()
        fresh = psutil.Process(daemon.process.pid).num_fds()
        for _ in range(3):
            with load_on(daemon.target, shared=True) as client:
                time.sleep(1.5)
                client.kill()
            clear_up(client)
            assert daemon.answers()
        with OipClient(daemon.target, 10) as owner:
            assert owner.regions() == ()
        assert psutil.Process(daemon.process.pid).num_fds() <= fresh + 4
        assert not list(tmp_path.glob(".*engine*"))
    finally:
        daemon.process.terminate()
        daemon.process.wait(30)
    assert not (tmp_path / "run" / "inference.sock").exists()
