"""Serves the site over HTTP in this process: gunicorn's threaded worker without its arbiter.

The arbiter would fork, take over the signals that the command line answers, and leave a child on the port when it is
killed. Its worker alone is what is wanted: a strict HTTP parser, limits, keep-alive, a bounded number of threads.
"""

import logging
import os
import socket
import threading
from collections.abc import Callable
from contextlib import closing
from typing import Any

from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger
from gunicorn.workers.gthread import ThreadWorker

from appliance.domain.errors import SettingsError

THREADS = 8
"""Requests answered at the same time; a hospital has a handful of people on the page."""
CONNECTIONS = 200
"""Open connections, idle ones included."""
BACKLOG = 64
GRACE_SECONDS = 5
"""How long a running request may take to end after a stop."""


def listen(bind: str, port: int) -> socket.socket:
    """Open the listening socket, so that the port is known before anything is served.

    Raises:
        SettingsError: The address is not this machine's, or the port is taken or not allowed.
    """
    try:
        family = socket.getaddrinfo(bind, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((bind, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise SettingsError(
            f"The status site can't listen on {bind} port {port}: {error.strerror}.",
            "Change web.bind or web.port, or stop the program that holds the port.",
        ) from error


def serve(wsgi: Callable[..., Any], listener: socket.socket, stop: threading.Event, ready: Callable[[], None]) -> None:
    """Serve until `stop` is set, then let running requests end; closes the listener.

    Args:
        ready: Called when connections are accepted.
    """
    application = _Application(wsgi, ready)
    worker = _Worker(stop, listener, application)
    with closing(worker.tmp):
        worker.init_process()


class _Application(BaseApplication):  # type: ignore[misc]  # gunicorn has no types
    def __init__(self, wsgi: Callable[..., Any], ready: Callable[[], None]) -> None:
        self._wsgi = wsgi
        self._ready = ready
        super().__init__()

    def load_config(self) -> None:
        for key, value in {
            "threads": THREADS,
            "worker_connections": CONNECTIONS,
            "keepalive": 5,
            "graceful_timeout": GRACE_SECONDS,
            "umask": 0o077,
            "logger_class": _Log,
            "post_worker_init": lambda _worker: self._ready(),
        }.items():
            self.cfg.set(key, value)

    def load(self) -> Callable[..., Any]:
        return self._wsgi


class _Log(Logger):  # type: ignore[misc]  # gunicorn has no types
    """Hands gunicorn's lines to this process's own log; no access log, the audit says who saw what."""

    def setup(self, cfg: Any) -> None:
        del cfg
        self.error_log = logging.getLogger("gunicorn.error")
        self.error_log.propagate = True
        self.error_log.setLevel(logging.WARNING)

    def access(self, *_: Any) -> None:
        pass


class _Worker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """The threaded worker, stopped by an event instead of a signal."""

    def __init__(self, stop: threading.Event, listener: socket.socket, application: _Application) -> None:
        self._stop = stop
        super().__init__(0, os.getppid(), [listener], application, 0, application.cfg, _Log(application.cfg))

    def init_signals(self) -> None:
        """Leave the signals to the command line."""

    def is_parent_alive(self) -> bool:
        """Whoever started this process may end; only the event ends the site."""
        return True

    def notify(self) -> None:
        """Called at least once a second by the worker's loop."""
        if self._stop.is_set():
            self.alive = False
