"""Tells the service manager's watchdog that a daemon lives: only while its own loop turns, and only if it answers.

A thread of its own would go on saying so beside a daemon that hangs. So the event that every daemon watches for its
end says it instead, at the moments when the daemon looks at it: the worker after each sweep, the site each second, node
and inference daemon from the main thread while their threads serve. As that thread only waits, those two are asked
from outside first.
"""

import os
import socket
import threading
import time
from collections.abc import Callable, Mapping

from appliance.daemons.notify import notify
from appliance.daemons.serve import port_of
from appliance.domain.errors import DeliveryError, InsiteError
from appliance.domain.ports import Destination
from appliance.network.scu import DicomSender
from appliance.settings import Settings
from appliance.telemetry import logger_for

PINGS_PER_PERIOD = 3
"""How often a daemon speaks within the time after which the manager ends it."""
ANSWER_SECONDS = 20.0
EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared, not bound


class Pulse(threading.Event):
    """A stop event that says `WATCHDOG=1` when the daemon looks at it, at most once in `interval` seconds.

    Args:
        interval: Seconds between two pings; None where nobody watches.
        answers: Whether the daemon still does its work; asked before each ping.
        ping: Where a ping goes.
    """

    def __init__(
        self,
        interval: float | None,
        answers: Callable[[], bool] = lambda: True,
        ping: Callable[[str], None] = notify,
    ) -> None:
        super().__init__()
        self._interval = interval
        self._answers = answers
        self._ping = ping
        self._due: float | None = None

    def begin(self) -> None:
        """Speak from now on: the daemon is ready, the manager's clock runs."""
        self._due = 0.0

    def is_set(self) -> bool:
        """Whether the daemon should stop; looking is a sign of life."""
        self._beat()
        return super().is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the stop, with a sign of life before and, in a long wait, between."""
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            self._beat()
            left = None if end is None else max(0.0, end - time.monotonic())
            slices = [seconds for seconds in (left, self._interval) if seconds is not None]
            if super().wait(min(slices, default=None)) or (end is not None and time.monotonic() >= end):
                return super().is_set()

    def _beat(self) -> None:
        if self._interval is None or self._due is None or super().is_set() or time.monotonic() < self._due:
            return
        self._due = time.monotonic() + self._interval
        if self._answers():
            self._ping("WATCHDOG=1")


def interval_of(environment: Mapping[str, str], pid: int) -> float | None:
    """Seconds between pings that the manager's `WATCHDOG_USEC` asks for, or None where this process isn't watched."""
    microseconds = environment.get("WATCHDOG_USEC", "")
    if not microseconds.isdecimal() or environment.get("WATCHDOG_PID", str(pid)) != str(pid):
        return None
    return int(microseconds) / 1e6 / PINGS_PER_PERIOD


def pulse_of(daemon: str, settings: Settings) -> Pulse:
    """The stop event of one daemon under the present service manager."""
    asked = {"inference": inference_answers, "node": node_answers}.get(daemon, lambda _: True)

    def answers() -> bool:
        found = asked(settings)
        if not found:
            logger_for(daemon).error("no answer to its own question; the watchdog is not told that it lives")
        return found

    return Pulse(interval_of(os.environ, os.getpid()), answers)


def node_answers(settings: Settings) -> bool:
    """Whether the node takes an association on its own port, or refuses it in DICOM's own words."""
    caller, node = node_peer(settings)
    try:
        DicomSender(caller).echo(node)
    except DeliveryError as error:
        return "rejected" in error.message
    return True


def node_peer(settings: Settings) -> tuple[str, Destination]:
    """A calling AE title that the node takes, and the node itself as this machine reaches it."""
    host = EVERY_ADDRESS.get(settings.node.bind, settings.node.bind)
    caller = settings.node.callers[0] if settings.node.callers else settings.node.ae_title
    port = port_of(settings.state, "node", settings.node.port)
    return caller, Destination("the node", settings.node.ae_title, host, port)


def inference_answers(settings: Settings) -> bool:
    """Whether the inference daemon answers on its socket, with packs or without."""
    from appliance.inference.client import OipClient  # noqa: PLC0415 - node and site never load an inference runtime

    target = settings.inference.listen or f"unix://{settings.inference_socket}"
    if not target.startswith("unix:"):
        return _connects(*target.rsplit(":", 1))
    try:
        with OipClient(target, ANSWER_SECONDS) as client:
            client.served()
    except InsiteError:
        return False
    return True


def _connects(host: str, port: str) -> bool:
    """Whether somebody listens; the daemon has no certificate with which to ask itself over TLS."""
    try:
        socket.create_connection((EVERY_ADDRESS.get(host, host), int(port)), ANSWER_SECONDS).close()
    except OSError:
        return False
    return True
