"""The site is served by a bounded number of threads, and stops when it is told to."""

import http.client
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from appliance.admin.server import listen, serve
from appliance.domain.errors import SettingsError

HEALTHY = 200


def greet(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    """A site of one line."""
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "5")])
    return [environ["PATH_INFO"].encode()[:5].ljust(5)]


@contextmanager
def served(wsgi: Callable[..., Any]) -> Iterator[int]:
    """A server in a thread; its port."""
    listener, stop, ready = listen("127.0.0.1", 0), threading.Event(), threading.Event()
    port = listener.getsockname()[1]
    thread = threading.Thread(target=serve, args=(wsgi, listener, stop, ready.set))
    thread.start()
    try:
        assert ready.wait(10)
        yield port
    finally:
        stop.set()
        thread.join(30)
    assert not thread.is_alive()


def ask(port: int, path: str) -> tuple[int, bytes]:
    """One request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_it_serves_until_it_is_stopped() -> None:
    """The port answers from ready to stop, and is free again afterwards."""
    with served(greet) as port:
        assert ask(port, "/one") == (200, b"/one ")
        assert ask(port, "/two") == (200, b"/two ")
    with pytest.raises(ConnectionRefusedError):
        ask(port, "/")
    listen("127.0.0.1", port).close()


def test_a_running_request_ends_before_the_server_does() -> None:
    """A stop waits for the answer that is on its way."""
    inside, answered = threading.Event(), []

    def slow(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
        inside.set()
        go_on.wait(10)
        return greet(environ, start_response)

    go_on = threading.Event()
    with served(slow) as port:
        asking = threading.Thread(target=lambda: answered.append(ask(port, "/slow")))
        asking.start()
        assert inside.wait(10)
        threading.Timer(0.1, go_on.set).start()
    asking.join(10)
    assert answered == [(200, b"/slow")]


def test_what_is_not_http_is_refused_without_echo() -> None:
    """Rubbish on the port is answered with 400 and harms nobody."""
    with served(greet) as port:
        with socket.create_connection(("127.0.0.1", port), 10) as connection:
            connection.sendall(b"\x00\x01 rubbish\r\n\r\n")
            assert connection.recv(200).startswith(b"HTTP/1.1 400")
        assert ask(port, "/")[0] == HEALTHY


def test_a_taken_port_is_a_sentence() -> None:
    """A port that another program holds is named with the setting to change."""
    with listen("127.0.0.1", 0) as first, pytest.raises(SettingsError, match=r"web\.port"):
        listen("127.0.0.1", first.getsockname()[1])
