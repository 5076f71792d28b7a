"""A load of many clients against any server of the protocol, in a process of its own, for `insite bench inference`.

Each client has a connection of its own and one request under way, as a call of its own or in one stream of its own. No
two requests bring the same image: a counter is written into the first pixels, so that no cache answers. All else of a
request is serialised once: what is measured is the server, not how a client makes its messages.
"""

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from appliance.inference.converters import REGION, REGION_OFFSET, REGION_SIZE
from appliance.inference.generated import open_inference_pb2 as oip
from appliance.inference.generated.open_inference_pb2_grpc import GRPCInferenceServiceStub
from appliance.inference.shared_memory import FOLDER

COUNTER_BYTES = 8
ANSWER_SECONDS = 120.0
IN_STREAM = "refused in a stream"
"""Among failures, beside gRPC's codes: a stream's answers have a sentence and no code."""

_OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
]


@dataclass(frozen=True, slots=True)
class Load:
    """What to send, where, for how long.

    Attributes:
        models: Asked one after the other by each client, on the same image until all were asked.
        priority: Of every request; 0 sends none.
        count: Rounds of each client, in place of `seconds`; 0 for none.
        same_image: Each client asks about one image again and again.
        in_turn: Each request asks the next model, about a new image.
        stream: Requests go through one `ModelStreamInfer` of each client, not each as a call of its own.
        pause: Seconds between an answer and the next request of a client.
    """

    target: str
    models: tuple[str, ...]
    input_name: str = "image"
    output_name: str = ""
    rows: int = 512
    columns: int = 512
    clients: int = 16
    seconds: float = 5.0
    shared: bool = False
    priority: int = 0
    pause: float = 0.0
    count: int = 0
    same_image: bool = False
    in_turn: bool = False
    stream: bool = False


@dataclass(slots=True)
class Found:
    """What came of a load: answers and their times, and failures by code.

    Attributes:
        without_hint: Failures of RESOURCE_EXHAUSTED that did not say when to try again.
    """

    answers: int = 0
    seconds: float = 0.0
    milliseconds: list[float] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)
    without_hint: int = 0


_Send = Callable[[bytes], Awaitable[Any]]
"""Sends a serialised `ModelInferRequest`."""
_SERVICE = oip.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name


class StreamRefusedError(Exception):
    """A request in a stream was refused, which ends no call: the answer says so."""


class _Client:
    def __init__(self, load: Load, number: int) -> None:
        self._load = load
        self._size = load.rows * load.columns
        pixels = np.random.default_rng(number).integers(0, 256, self._size, np.uint8)
        self._pixels = pixels.tobytes()
        self._others = self._pixels[COUNTER_BYTES:]
        self._number = number << 40
        self._memory: int | None = None
        self._ready: dict[str, bytes] = {}
        self.name = f"insite-bench-{os.getpid()}-{number}"

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[_Send]:
        """What sends a request over a connection, with the client's region registered where one is used."""
        async with grpc.aio.insecure_channel(self._load.target, options=_OPTIONS) as channel:
            stub: Any = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
            send = _in_stream(channel) if self._load.stream else _as_calls(channel)
            if not self._load.shared:
                yield send
                return
            with self._region():
                await stub.SystemSharedMemoryRegister(
                    oip.SystemSharedMemoryRegisterRequest(name=self.name, key=f"/{self.name}", byte_size=self._size)
                )
                yield send
                await stub.SystemSharedMemoryUnregister(oip.SystemSharedMemoryUnregisterRequest(name=self.name))

    @contextlib.contextmanager
    def _region(self) -> Iterator[None]:
        path = FOLDER / self.name
        self._memory = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o640)
        try:
            os.pwrite(self._memory, self._pixels, 0)
            yield
        finally:
            os.close(self._memory)
            Path(path).unlink()

    def requests(self) -> list[bytes]:
        """Requests for every model on one new image, or for the model whose turn it is."""
        self._number += not self._load.same_image
        counter = self._number.to_bytes(COUNTER_BYTES, "little")
        models = self._load.models
        if self._load.in_turn:
            models = (models[self._number % len(models)],)
        for model in models:
            if model not in self._ready:
                self._ready[model] = self._request(model)
        if self._memory is None:
            return [b"".join((self._ready[model], counter, self._others)) for model in models]
        os.pwrite(self._memory, counter, 0)
        return [self._ready[model] for model in models]

    def _request(self, model: str) -> bytes:
        """All of a request but its pixels, which are the last field of it or lie in shared memory."""
        load = self._load
        request = oip.ModelInferRequest(model_name=model)
        tensor = request.inputs.add(name=load.input_name, datatype="UINT8", shape=[1, 1, load.rows, load.columns])
        if load.output_name:
            request.outputs.add(name=load.output_name)
        if load.priority:
            request.parameters["priority"].uint64_param = load.priority
        if self._memory is not None:
            tensor.parameters[REGION].string_param = self.name
            tensor.parameters[REGION_SIZE].int64_param = self._size
            tensor.parameters[REGION_OFFSET].int64_param = 0
            return bytes(request.SerializeToString())
        whole = oip.ModelInferRequest(raw_input_contents=[self._pixels]).SerializeToString()
        return bytes(request.SerializeToString() + whole[: -self._size])


def _as_calls(channel: grpc.aio.Channel) -> _Send:
    call: Any = channel.unary_unary(
        f"/{_SERVICE}/ModelInfer", request_serializer=None, response_deserializer=oip.ModelInferResponse.FromString
    )
    return partial(call, timeout=ANSWER_SECONDS)


def _in_stream(channel: grpc.aio.Channel) -> _Send:
    open_stream: Any = channel.stream_stream(
        f"/{_SERVICE}/ModelStreamInfer",
        request_serializer=None,
        response_deserializer=oip.ModelStreamInferResponse.FromString,
    )
    call = open_stream()

    async def send(request: bytes) -> Any:
        await call.write(request)
        answer = await call.read()
        if answer.error_message:
            raise StreamRefusedError(answer.error_message)
        return answer.infer_response

    return send


def regions_of(process: int) -> Sequence[Path]:
    """The shared memory of a load's process; what is left of it when it was killed."""
    return tuple(FOLDER.glob(f"insite-bench-{process}-*"))


async def run_load(load: Load) -> Found:
    """Send for `load.seconds`, or `load.count` rounds of each client, after one round that is not counted."""
    found = Found()
    begin = asyncio.Barrier(load.clients)
    started = 0.0

    async def client(number: int) -> None:
        nonlocal started
        sender = _Client(load, number)
        async with sender.connected() as send:
            await _ask(send, sender, Found())
            await begin.wait()
            started = started or time.perf_counter()
            done = 0
            while done < load.count if load.count else time.perf_counter() - started < load.seconds:
                await _ask(send, sender, found)
                done += 1
                if load.pause:
                    await asyncio.sleep(load.pause)
            found.seconds = time.perf_counter() - started

    await asyncio.gather(*(client(number) for number in range(load.clients)))
    return found


async def _ask(send: _Send, sender: _Client, found: Found) -> None:
    start = time.perf_counter()
    requests = sender.requests()
    outcomes = [await _one(send, request, found) for request in requests]
    if all(outcomes):
        found.answers += 1
        found.milliseconds.append((time.perf_counter() - start) * 1000)


async def _one(send: _Send, request: bytes, found: Found) -> bool:
    try:
        await send(request)
    except StreamRefusedError:
        found.failures[IN_STREAM] = found.failures.get(IN_STREAM, 0) + 1
        return False
    except grpc.aio.AioRpcError as error:
        code = error.code().name
        found.failures[code] = found.failures.get(code, 0) + 1
        trailing: Any = error.trailing_metadata() or ()
        hints = [each[1] for each in trailing if each[0] == "retry-after-ms"]
        if code == "RESOURCE_EXHAUSTED":
            found.without_hint += not hints
            await asyncio.sleep(int(hints[0]) / 1000 if hints else 0.1)
        return False
    return True


def main() -> None:
    """Read a load as JSON from standard input and write what came of it as JSON to standard output."""
    values = json.load(sys.stdin)
    load = Load(**{**values, "models": tuple(values["models"])})
    json.dump(asdict(asyncio.run(run_load(load))), sys.stdout)


if __name__ == "__main__":
    main()
