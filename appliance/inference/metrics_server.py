"""Answers `GET /metrics` on this machine only: on a Unix socket, or on a port of the loopback network."""

import os
import socket
import socketserver
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from appliance.domain.errors import SettingsError
from appliance.inference.metrics import CONTENT_TYPE

_WITHOUT_OTHERS = 0o117
MOST_CONNECTIONS = 4
"""At a time, each with a thread of the few that the daemon's unit allows; more are closed unanswered."""
LONGEST_SECONDS = 10.0
"""Of a connection in all: a client that sends a byte now and then keeps no place for longer."""
OFF = "off"


class MetricsServer:
    """A small HTTP server in a thread, from `with` to the end of it.

    Args:
        address: `unix:///path`, or `host:port` of the loopback network; port 0 takes a free one.
        text: Makes the metrics when they are asked for.

    Raises:
        SettingsError: The address is another one, or can't be had.
    """

    def __init__(self, address: str, text: Callable[[], str]) -> None:
        self._path = Path(address.removeprefix("unix:").removeprefix("//")) if address.startswith("unix:") else None
        self._address = address
        self._handler = _handler_of(text)
        self.port = 0

    def __enter__(self) -> Self:
        try:
            self._server = self._bound()
        except OSError as error:
            raise SettingsError(
                f"Metrics can't be served on {self._address}: {error.strerror}.",
                "Set inference.metrics to another address.",
            ) from error
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        if self._path is not None:
            with suppress(FileNotFoundError):
                self._path.unlink()

    def _bound(self) -> socketserver.BaseServer:
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            before = os.umask(_WITHOUT_OTHERS)
            try:
                return _UnixServer(str(self._path), self._handler)
            finally:
                os.umask(before)
        host, _, port = self._address.rpartition(":")
        if not _is_loopback(host) or not port.isdecimal():
            raise SettingsError(
                f"Metrics are not served on {self._address}.", "Give unix:///path, or a port of 127.0.0.1."
            )
        server = _TcpServer((host.strip("[]"), int(port)), self._handler)
        self.port = int(server.server_address[1])
        return server


class _FewConnections(socketserver.ThreadingMixIn, socketserver.BaseServer):
    daemon_threads = True

    def __init__(self, *args: Any) -> None:
        self._since: dict[Any, float] = {}
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        if len(self._since) >= MOST_CONNECTIONS:
            self.shutdown_request(request)
            return
        self._since[request] = time.monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._since.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Twice a second: end connections that are too old; their threads then end by themselves."""
        super().service_actions()
        for request, since in list(self._since.items()):
            if time.monotonic() - since > LONGEST_SECONDS:
                with suppress(OSError):  # it has just ended
                    request.shutdown(socket.SHUT_RDWR)


class _UnixServer(_FewConnections, socketserver.UnixStreamServer):
    pass


class _TcpServer(_FewConnections, socketserver.TCPServer):
    allow_reuse_address = True


def _handler_of(text: Callable[[], str]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        """Answers one path."""

        timeout = LONGEST_SECONDS

        def do_GET(self) -> None:
            """The metrics, or 404."""
            if self.path != "/metrics":
                self.send_error(404)
                return
            body = text().encode()
            self.send_response(200)
            self.send_header("Content-Type", CONTENT_TYPE)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def address_string(self) -> str:
            """A Unix peer has no address."""
            return "local"

        def log_message(self, *args: Any) -> None:
            """Nothing: scrapes are not events."""

    return Handler


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
