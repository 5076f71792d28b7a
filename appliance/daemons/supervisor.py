"""Runs the four daemons as child processes of one terminal: start, wait until ready, start again, stop cleanly."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from appliance.domain.errors import InsiteError
from appliance.telemetry import logger_for

DAEMONS = ("inference", "node", "worker", "web")
STOP_SECONDS = 15.0
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
STEADY_SECONDS = 60.0
"""A daemon that ran this long starts its next pause from the beginning."""


@dataclass
class _Child:
    name: str
    process: subprocess.Popen[bytes]
    listener: socket.socket
    ready: bool = False
    started: float = field(default_factory=time.monotonic)
    pause: float = FIRST_PAUSE_SECONDS / 2
    due: float | None = None


class Supervisor:
    """Owns the children from `with` to the end of it.

    Args:
        arguments: What follows `insite <daemon>` on each child's command line (`--state`, `--config`).
        environment: Variables over this process's own.
        names: Which daemons to run, in order of start.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str] | None = None,
        names: Sequence[str] = DAEMONS,
    ) -> None:
        self._arguments = tuple(arguments)
        self._environment = {**os.environ, **(environment or {})}
        self._names = tuple(names)
        self._children: dict[str, _Child] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="insite-notify-")
        self._log = logger_for("serve")

    def __enter__(self) -> Self:
        for name in self._names:
            self._children[name] = self._start(name, FIRST_PAUSE_SECONDS / 2)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in self._children.values():
            child.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        for child in self._children.values():
            self._end(child, deadline)
        self._folder.cleanup()

    def pid(self, name: str) -> int:
        """The process of one daemon."""
        return self._children[name].process.pid

    def wait_ready(self, seconds: float) -> None:
        """Return when every daemon said that it is ready.

        Raises:
            InsiteError: One did not within `seconds`, or ended before.
        """
        deadline = time.monotonic() + seconds
        for child in self._children.values():
            while not self._hear(child):
                if child.process.poll() is not None:
                    raise InsiteError(
                        f"insite {child.name} ended with status {child.process.returncode} before it was ready.",
                        "Its log, above, says why.",
                    )
                if time.monotonic() > deadline:
                    raise InsiteError(
                        f"insite {child.name} was not ready in {seconds:.0f} s.", "Look at its log, above."
                    )

    def watch(self, stop: threading.Event) -> None:
        """Start ended daemons again, each after a pause that grows while it keeps failing, until `stop` is set."""
        while not stop.wait(0.2):
            self.revive()

    def revive(self) -> None:
        """Start every ended daemon again whose pause is over."""
        now = time.monotonic()
        for name, child in self._children.items():
            status = child.process.poll()
            if status is None:
                self._hear(child)
            elif child.due is None:
                steady = now - child.started > STEADY_SECONDS
                child.pause = FIRST_PAUSE_SECONDS if steady else min(child.pause * 2, LONGEST_PAUSE_SECONDS)
                child.due = now + child.pause
                self._log.warning("daemon ended", daemon=name, status=status, starts_again_in_seconds=child.pause)
            elif now >= child.due:
                child.listener.close()
                self._children[name] = self._start(name, child.pause)

    def _start(self, name: str, pause: float) -> _Child:
        address = Path(self._folder.name) / name
        address.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        listener.bind(str(address))
        listener.settimeout(0.1)
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and module, arguments from our own command line
            [sys.executable, "-m", "appliance.cli", name, *self._arguments],
            env={**self._environment, "NOTIFY_SOCKET": str(address)},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        return _Child(name, process, listener, pause=pause)

    def _hear(self, child: _Child) -> bool:
        if not child.ready:
            try:
                child.ready = b"READY=1" in child.listener.recv(4096)
            except TimeoutError:
                return False
        return child.ready

    def _end(self, child: _Child, deadline: float) -> None:
        try:
            child.process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._log.warning("daemon did not stop in time; killing it", daemon=child.name)
            child.process.kill()
            child.process.wait()
        child.listener.close()
