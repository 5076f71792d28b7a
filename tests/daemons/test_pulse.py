"""The watchdog hears of a daemon only while its loop turns and it answers."""

import socket
import threading
from pathlib import Path

import pytest

from appliance.daemons.pulse import Pulse, inference_answers, interval_of, node_answers
from appliance.settings import load


def test_no_ping_before_the_daemon_is_ready() -> None:
    """A daemon that is still coming up says nothing."""
    pings: list[str] = []
    Pulse(0.0, ping=pings.append).is_set()
    assert pings == []


def test_each_look_at_the_event_is_a_sign_of_life() -> None:
    """Both ways of looking, a glance and a wait, ping."""
    pings: list[str] = []
    pulse = Pulse(0.0, ping=pings.append)
    pulse.begin()
    assert not pulse.is_set()
    assert not pulse.wait(0.0)
    assert set(pings) == {"WATCHDOG=1"}
    assert len(pings) >= 2


def test_pings_keep_their_distance() -> None:
    """A loop that turns often pings once in an interval."""
    pings: list[str] = []
    pulse = Pulse(3600.0, ping=pings.append)
    pulse.begin()
    for _ in range(5):
        pulse.is_set()
    assert pings == ["WATCHDOG=1"]


def test_a_daemon_that_does_not_answer_is_not_said_to_live() -> None:
    """A loop that turns beside a service that hangs is no sign of life."""
    pings: list[str] = []
    pulse = Pulse(0.0, lambda: False, pings.append)
    pulse.begin()
    pulse.is_set()
    assert pings == []


def test_a_wait_without_end_pings_until_the_stop() -> None:
    """A main thread that only waits for its end goes on pinging."""
    heard = threading.Semaphore(0)
    pulse = Pulse(0.001, ping=lambda _: heard.release())
    pulse.begin()
    waiting = threading.Thread(target=pulse.wait)
    waiting.start()
    for _ in range(3):
        assert heard.acquire(timeout=30)
    pulse.set()
    waiting.join(30)
    assert not waiting.is_alive()


def test_without_a_watchdog_nothing_is_sent() -> None:
    """`insite serve` and a terminal have no watchdog."""
    pings: list[str] = []
    pulse = Pulse(None, ping=pings.append)
    pulse.begin()
    assert not pulse.wait(0.001)
    pulse.set()
    assert pulse.wait()
    assert pings == []


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "180000000"}, 60.0),
        ({"WATCHDOG_USEC": "180000000", "WATCHDOG_PID": "7"}, 60.0),
        ({"WATCHDOG_USEC": "180000000", "WATCHDOG_PID": "8"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_a_third_of_the_managers_time_is_the_interval(environment: dict[str, str], expected: float | None) -> None:
    """The manager's time is read from its variables, and only where they are meant for this process."""
    assert interval_of(environment, 7) == expected


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # pynetdicom drops a refused socket
def test_nobody_there_is_no_answer(tmp_path: Path) -> None:
    """Neither node nor inference daemon answers where none runs."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        free = taken.getsockname()[1]
    settings = load(None, {"state": tmp_path, "node": {"bind": "127.0.0.1", "port": free}}).settings
    assert not node_answers(settings)
    assert not inference_answers(settings)
