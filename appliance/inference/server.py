"""Serves the Open Inference Protocol on one address, with gRPC's health and reflection services.

Calls are answered by one event loop in a thread of its own; graphs run in the runner's lane.

Open calls are bounded, and so is what they hold: a request, and an answer until its client has read it. A client whose
process stands still does not answer gRPC's pings and is let go. One that answers them, but never reads an answer that
is no stream's, keeps that call until it goes: gRPC gives a server no limit in time there, only the number of calls.
"""

import asyncio
import os
import socket
import stat
import threading
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from appliance.domain.errors import SettingsError
from appliance.inference.address import Address, UnixAddress, credentials_from_files
from appliance.inference.generated import open_inference_pb2 as oip
from appliance.inference.generated.open_inference_pb2_grpc import add_GRPCInferenceServiceServicer_to_server
from appliance.inference.repository import Repository
from appliance.inference.runner import PackRunner
from appliance.inference.servicer import STALLED_SECONDS, InferenceServicer
from appliance.inference.shared_memory import SharedRegions
from appliance.inference.statuses import Guarded
from appliance.inference.tensors import MAX_BATCH
from appliance.telemetry import Logger

_SERVICE = oip.DESCRIPTOR.services_by_name["GRPCInferenceService"]
SERVICE: str = _SERVICE.full_name
METHODS: tuple[str, ...] = tuple(method.name for method in _SERVICE.methods)

LEAST_REQUEST = 4 * 1024 * 1024
"""Bytes that a request may always have, so that a pack with larger images can be loaded while the daemon runs."""
LARGEST_SOCKET_PATH = 107
"""Bytes of a Unix socket's path (unix(7): `sun_path` has 108 with its end)."""
MESSAGE_OVERHEAD = 64 * 1024
TYPED_BYTES_PER_PIXEL = 2
"""A UINT8 sent in typed contents is a varint of one or two bytes."""
STOP_SECONDS = 5.0

LEAST_CALLS = 384
"""Calls that may be open at a time, however short the queue is: refusals, streams and health checks need room too."""
MOST_CALLS_OF_A_CONNECTION = 256
"""HTTP/2 streams: a client with more calls waits at its own end, so that one connection leaves room for others."""
PING_SECONDS, PONG_SECONDS = 30, 30
"""A connection with open calls that is silent for the first is pinged; without an answer within the second it ends.
gRPC has two limits for that answer, of which the shorter ends it."""

_WITHOUT_OTHERS = 0o117
"""umask under which the socket is made with mode 0660: owner and group may connect, nobody else."""

T = TypeVar("T")


class InferenceServer:
    """A running server from `with` to the end of it.

    Args:
        runner: Whose models are served; its packs decide how large a request may be. Owned by the caller.
        address: Where to listen. A Unix socket that a dead daemon left is replaced, one that a living one holds is not.
        version: The software's version, for metadata.
        repository: Who loads packs for clients that ask for it; None refuses them.
        stalled_seconds: How long a client may leave an answer of its stream unread.

    Raises:
        SettingsError: On entry: the path is too long, is no socket, or belongs to a running daemon; a TLS file can't
            be read, or the port can't be had.
    """

    def __init__(
        self,
        runner: PackRunner,
        address: Address | Path,
        *,
        version: str,
        log: Logger,
        repository: Repository | None = None,
        stalled_seconds: float = STALLED_SECONDS,
    ) -> None:
        self._runner = runner
        self._address = UnixAddress(address) if isinstance(address, Path) else address
        self._version = version
        self._log = log
        self._repository = repository
        self._stalled_seconds = stalled_seconds
        self._regions = SharedRegions()
        self.port = 0

    def __enter__(self) -> Self:
        if isinstance(self._address, UnixAddress):
            _make_way(self._address.path)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="grpc", daemon=True)
        self._thread.start()
        try:
            self._on_loop(self._start())
        except BaseException:
            self._end_loop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._on_loop(self._stop())
        self._end_loop()
        self._regions.unregister("")
        if isinstance(self._address, UnixAddress):
            with suppress(FileNotFoundError):
                self._address.path.unlink()

    def say_ready(self) -> None:
        """Bring the health service up to date with whether a pack serves; called when packs came or went."""
        self._on_loop(self._tell_health())

    async def _start(self) -> None:
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        self._server = grpc.aio.server(
            maximum_concurrent_rpcs=most_calls(self._runner.most_waiting_images),
            options=[
                ("grpc.max_concurrent_streams", MOST_CALLS_OF_A_CONNECTION),
                ("grpc.keepalive_time_ms", PING_SECONDS * 1000),
                ("grpc.keepalive_timeout_ms", PONG_SECONDS * 1000),
                ("grpc.http2.ping_timeout_ms", PONG_SECONDS * 1000),
                ("grpc.max_receive_message_length", largest_request(self._runner.largest_image)),
                ("grpc.max_send_message_length", -1),
                ("grpc.enable_http_proxy", 0),
                ("grpc.so_reuseport", 0),
            ],
        )
        servicer = InferenceServicer(
            self._runner,
            self._regions,
            self._repository,
            self._version,
            self._log,
            stalled_seconds=self._stalled_seconds,
        )
        add_GRPCInferenceServiceServicer_to_server(  # type: ignore[no-untyped-call]
            Guarded(servicer, METHODS, self._log), self._server
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        await self._tell_health()
        self._bind()
        await self._server.start()

    def _bind(self) -> None:
        if isinstance(self._address, UnixAddress):
            before = os.umask(_WITHOUT_OTHERS)
            try:
                self._server.add_insecure_port(f"unix:{self._address.path}")
            finally:
                os.umask(before)
            return
        where = f"{self._address.host}:{self._address.port}"
        try:
            self.port = self._server.add_secure_port(where, credentials_from_files(self._address.tls))
        except RuntimeError as error:
            raise SettingsError(
                f"Nothing can listen on {where} with these TLS files.",
                "Choose another port, or mend the files; the log of gRPC says which.",
            ) from error

    async def _stop(self) -> None:
        await self._health.enter_graceful_shutdown()
        await self._server.stop(STOP_SECONDS)

    async def _tell_health(self) -> None:
        state = health_pb2.HealthCheckResponse
        for service in ("", SERVICE):
            await self._health.set(service, state.SERVING if self._runner.served() else state.NOT_SERVING)

    def _on_loop(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()


def most_calls(images: int) -> int:
    """Calls that may be open at a time; gRPC refuses more with RESOURCE_EXHAUSTED.

    It is room for each image that may wait to be a call of its own, and half as many streams, health checks and
    refusals. With the queue as it is by default and the largest requests of a 512 x 512 pack (4.1 MiB) they hold 1.6
    GiB of the unit's 4.

    Args:
        images: How many may wait.
    """
    return max(LEAST_CALLS, images + images // 2)


def largest_request(largest_image: int) -> int:
    """Bytes of the largest request that a pack can ask for, whichever way its pixels are sent."""
    return max(LEAST_REQUEST, largest_image * MAX_BATCH * TYPED_BYTES_PER_PIXEL) + MESSAGE_OVERHEAD


def _make_way(path: Path) -> None:
    if len(os.fsencode(path)) > LARGEST_SOCKET_PATH:
        raise SettingsError(
            f"The socket path {path} is longer than {LARGEST_SOCKET_PATH} bytes.",
            "Set inference.socket to a shorter one.",
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise SettingsError(f"{path} is there and is no socket.", "Remove it, or set inference.socket to another path.")
    if _answers(path):
        raise SettingsError(
            f"Another inference daemon serves on {path}.", "Stop it, or set inference.socket to another path."
        )
    path.unlink()


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
        return True
