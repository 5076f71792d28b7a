"""A figure under load is a figure only while the load is there."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from appliance.daemons.bench_background import busy, wait_for_answers
from appliance.daemons.bench_peers import Running
from appliance.domain.errors import InsiteError
from appliance.inference.runner import PackRunner
from appliance.inference.server import InferenceServer
from appliance.telemetry import logger_for
from tests.fakes.tiny_pack import tiny_verified


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Running]:
    """A server that answers, with a process that stands for it."""
    path = tmp_path / "s.sock"
    with (
        PackRunner([tiny_verified(tmp_path / "packs")], 1) as runner,
        InferenceServer(runner, path, version="1", log=logger_for("test")),
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process,
    ):
        yield Running(f"unix://{path}", process)
        process.kill()


def order(daemon: Running, **changes: Any) -> dict[str, Any]:
    """Two clients that ask for a minute."""
    return {"target": daemon.target, "models": ["chest-xray.guard"], "clients": 2, "seconds": 60.0, **changes}


def wait_for_the_load_to_end() -> None:
    """Until no child of this process sends requests any more."""
    alive = (psutil.STATUS_RUNNING, psutil.STATUS_SLEEPING, psutil.STATUS_DISK_SLEEP)
    while [
        each for each in psutil.Process().children() if each.status() in alive and "bench_load" in str(each.cmdline())
    ]:
        time.sleep(0.05)


def test_a_load_is_at_work_before_and_after(daemon: Running) -> None:
    """All its clients have been answered when the measurement begins, and are still answered when it ends."""
    with busy(daemon, order(daemon), 30) as answered:
        assert answered() > 2
        during = answered()
    with busy(daemon, order(daemon), 30) as answered:
        assert answered() > during


def test_a_load_that_ends_early_is_no_load(daemon: Running) -> None:
    """What was measured beside clients that were gone is refused, not reported."""
    load = order(daemon, seconds=0.2)
    with pytest.raises(InsiteError, match="ended while it was needed"), busy(daemon, load, 30):
        wait_for_the_load_to_end()


def test_a_load_that_is_never_answered_is_no_load(daemon: Running) -> None:
    """Requests that all fail leave the daemon idle: the time passes, and there is no figure."""
    load = order(daemon, input_name="nothing")
    with pytest.raises(InsiteError, match="did not answer 3 requests"), busy(daemon, load, 3):
        pass


def test_a_counter_that_stands_still_is_said() -> None:
    """A load that lives and gets no answers does not count either."""
    with pytest.raises(InsiteError, match=r"did not answer 2 requests of the background load in 0\.1 s"):
        wait_for_answers(lambda: 7, lambda: True, 2, 0.1)
