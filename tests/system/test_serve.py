"""`insite serve`: four daemons from one terminal."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

CONFIG = '[node]\nbind = "127.0.0.1"\nport = 0\nmin_free_mib = 16\n[web]\nport = 0\n[log]\nlevel = "error"\n'


def insite(*arguments: str) -> list[str]:
    """The command line of this interpreter's `insite`."""
    return [sys.executable, "-m", "appliance.cli", *arguments]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """A running `insite serve` and the options that name its state."""
    config = tmp_path / "insite.toml"
    config.write_text(CONFIG)
    options = ["--state", str(tmp_path / "state"), "--config", str(config)]
    process = subprocess.Popen(insite("serve", *options), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if "Ctrl-C" in line:
            break
    yield process, options
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        process.wait(30)
    process.stdout.close()


def status(options: list[str]) -> dict[str, Any]:
    """What `insite status --json` says."""
    result = subprocess.run(insite("status", "--json", *options), capture_output=True, text=True, check=True)
    return json.loads(result.stdout)


@pytest.mark.slow
def test_all_four_answer_and_ctrl_c_stops_them(served: tuple[subprocess.Popen[str], list[str]]) -> None:
    """Every daemon answers; Ctrl-C ends all of them with exit status 0 and leaves no process."""
    process, options = served
    assert status(options)["daemons"] == {"inference": True, "node": True, "web": True}
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 4
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    _, alive = psutil.wait_procs(children, timeout=5)
    assert alive == []


@pytest.mark.slow
@pytest.mark.parametrize("daemon", ["inference", "node", "web"])
def test_a_killed_daemon_comes_back(served: tuple[subprocess.Popen[str], list[str]], daemon: str) -> None:
    """A daemon that is killed is started again by itself."""
    process, options = served
    children = psutil.Process(process.pid).children()
    (victim,) = [child for child in children if child.cmdline()[3] == daemon]
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait(10)
    for _ in range(100):
        if status(options)["daemons"][daemon]:
            return
        time.sleep(0.3)
    pytest.fail(f"{daemon} did not come back")
