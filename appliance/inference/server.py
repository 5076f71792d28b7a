"""Serves the Open Inference Protocol on a Unix socket, with gRPC's health and reflection services."""

import os
import socket
import stat
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from appliance.domain.errors import SettingsError
from appliance.inference.generated import open_inference_pb2 as oip
from appliance.inference.generated.open_inference_pb2_grpc import add_GRPCInferenceServiceServicer_to_server
from appliance.inference.runner import PackRunner
from appliance.inference.servicer import InferenceServicer
from appliance.inference.statuses import StatusInterceptor
from appliance.inference.tensors import MAX_BATCH
from appliance.telemetry import Logger

SERVICE: str = oip.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name

CALLS_AT_ONCE = 8
"""Threads that take calls; graphs run one at a time, so more would only wait."""
CALLS_WAITING = 64
"""Further calls are answered with RESOURCE_EXHAUSTED, so that an overload is seen and not hoarded."""
LARGEST_SOCKET_PATH = 107
"""Bytes of a Unix socket's path (unix(7): `sun_path` has 108 with its end)."""
MESSAGE_OVERHEAD = 64 * 1024
TYPED_BYTES_PER_PIXEL = 2
"""A UINT8 sent in typed contents is a varint of one or two bytes."""
STOP_SECONDS = 5.0

_WITHOUT_OTHERS = 0o117
"""umask under which the socket is made with mode 0660: owner and group may connect, nobody else."""


class InferenceServer:
    """A running server from `with` to the end of it.

    Args:
        runner: Whose models are served; its packs decide how large a request may be. Owned by the caller.
        path: The Unix socket. One that a dead daemon left is replaced, one that a living daemon holds is not.
        version: The software's version, for metadata.

    Raises:
        SettingsError: On entry: the path is too long, is no socket, or belongs to a running daemon.
    """

    def __init__(self, runner: PackRunner, path: Path, *, version: str, log: Logger) -> None:
        self._path = path
        self._ready = bool(runner.served())
        self._health = health.HealthServicer()
        self._executor = ThreadPoolExecutor(CALLS_AT_ONCE, thread_name_prefix="inference")
        self._server = grpc.server(
            self._executor,
            interceptors=[StatusInterceptor(SERVICE, log)],
            maximum_concurrent_rpcs=CALLS_WAITING,
            options=[
                ("grpc.max_receive_message_length", largest_request(runner.largest_image)),
                ("grpc.enable_http_proxy", 0),
                ("grpc.so_reuseport", 0),
            ],
        )
        add_GRPCInferenceServiceServicer_to_server(  # type: ignore[no-untyped-call]
            InferenceServicer(runner, version), self._server
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)

    def __enter__(self) -> Self:
        _make_way(self._path)
        before = os.umask(_WITHOUT_OTHERS)
        try:
            self._server.add_insecure_port(f"unix:{self._path}")
        finally:
            os.umask(before)
        state = health_pb2.HealthCheckResponse
        for service in ("", SERVICE):
            self._health.set(service, state.SERVING if self._ready else state.NOT_SERVING)
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._health.enter_graceful_shutdown()
        self._server.stop(STOP_SECONDS).wait()
        self._executor.shutdown()
        with suppress(FileNotFoundError):
            self._path.unlink()


def largest_request(largest_image: int) -> int:
    """Bytes of the largest request that a pack can ask for, whichever way its pixels are sent."""
    return largest_image * MAX_BATCH * TYPED_BYTES_PER_PIXEL + MESSAGE_OVERHEAD


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
