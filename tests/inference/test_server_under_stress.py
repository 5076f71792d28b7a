"""The server when clients are many, impatient, gone, or hostile: each gets its code and sentence, others go on."""

import asyncio
import math
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest

from appliance.domain.errors import SettingsError
from appliance.domain.manifest import VerifiedPack
from appliance.inference.address import TcpAddress, TlsFiles, UnixAddress, address_from_text
from appliance.inference.generated import open_inference_pb2 as oip
from appliance.inference.generated.open_inference_pb2_grpc import GRPCInferenceServiceStub
from appliance.inference.runner import PackRunner
from appliance.inference.scheduler import QueueLimits
from appliance.inference.server import InferenceServer, most_calls
from appliance.telemetry import logger_for
from tests.fakes.certificates import certificate
from tests.fakes.tiny_pack import bright_picture
from tests.fakes.watched_runtime import Outputs, WatchedRuntime

Code = grpc.StatusCode


def request(model: str = "chest-xray.guard", picture: np.ndarray | None = None, **parameters: int) -> Any:
    """A good request."""
    pixels = bright_picture() if picture is None else picture
    message = oip.ModelInferRequest(model_name=model, raw_input_contents=[pixels.tobytes()])
    message.inputs.add(name="image", datatype="UINT8", shape=pixels.shape)
    for name, value in parameters.items():
        message.parameters[name].int64_param = value
    return message


@dataclass
class Held:
    """A runtime whose runs wait until they are let go."""

    go: threading.Event = field(default_factory=threading.Event)
    runs: list[str] = field(default_factory=list)
    waiting: Callable[[], int] = lambda: 0

    def watch(self, title: str, outputs: Outputs) -> Outputs:
        """Called after each run."""
        self.runs.append(title)
        self.go.wait(20)
        return outputs


@contextmanager
def served(
    pack: VerifiedPack, folder: Path, held: Held | None = None, images: int = 256, stalled: float = 30.0
) -> Iterator[Any]:
    """A stub of a running server."""
    runtimes = [WatchedRuntime(held.watch)] if held else None
    path = folder / "s.sock"
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    with (
        PackRunner([pack], 1, runtimes=runtimes, limits=QueueLimits(images=images)) as runner,
        InferenceServer(runner, path, version="1", log=logger_for("test"), stalled_seconds=stalled),
        grpc.insecure_channel(f"unix:{path}", options) as channel,
    ):
        if held:
            held.waiting = lambda: runner.waiting_images
        try:
            yield GRPCInferenceServiceStub(channel)
        finally:
            if held:
                held.go.set()


def wait_for(condition: Callable[[], bool]) -> None:
    """Until it holds, or twenty seconds."""
    for _ in range(2000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come to pass")


def test_a_cancelled_call_leaves_the_queue(pack: VerifiedPack, tmp_path: Path) -> None:
    """A question whose caller has gone leaves its place at once, while another is answered, and is never computed."""
    held = Held()
    with served(pack, tmp_path, held) as stub:
        first = stub.ModelInfer.future(request())
        wait_for(lambda: len(held.runs) == 1)
        second = stub.ModelInfer.future(request(picture=bright_picture() + 1))
        wait_for(lambda: held.waiting() == 1)
        second.cancel()
        wait_for(lambda: held.waiting() == 0)
        assert not held.go.is_set()
        assert not first.done()
        held.go.set()
        assert first.result(10).outputs
    assert held.runs.count("encoder.onnx of the pack chest-xray") == 1


def test_a_deadline_that_passes_in_the_queue_is_said(pack: VerifiedPack, tmp_path: Path) -> None:
    """The protocol's `timeout`, in microseconds, ends a question that waits, however long another one runs."""
    held = Held()
    with served(pack, tmp_path, held) as stub:
        first = stub.ModelInfer.future(request())
        wait_for(lambda: len(held.runs) == 1)
        late = stub.ModelInfer.future(request(picture=bright_picture() + 1, timeout=50_000))
        with pytest.raises(grpc.RpcError, match="deadline passed while the request waited") as refused:
            late.result(10)
        assert refused.value.code() is Code.DEADLINE_EXCEEDED
        assert not held.go.is_set()
        assert not first.done()
        held.go.set()
        assert first.result(10).outputs


def test_a_full_queue_says_when_to_come_again(pack: VerifiedPack, tmp_path: Path) -> None:
    """RESOURCE_EXHAUSTED with a hint in milliseconds, also as gRPC's own pushback; afterwards all is well."""
    held = Held()
    with served(pack, tmp_path, held, images=2) as stub:
        calls = [stub.ModelInfer.future(request(picture=bright_picture() - level)) for level in range(6)]
        wait_for(lambda: sum(call.done() for call in calls) == 3)
        held.go.set()
        errors = [call.exception(10) for call in calls]
        refused = [error for error in errors if error is not None]
        assert len(refused) == 3
        for error in refused:
            hints = {each.key: int(each.value) for each in error.trailing_metadata()}
            assert error.code() is Code.RESOURCE_EXHAUSTED
            assert hints["retry-after-ms"] == hints["grpc-retry-pushback-ms"] > 0
            assert "Try again in" in error.details()
        assert stub.ModelInfer(request(), timeout=10).outputs


def test_open_calls_are_bounded(pack: VerifiedPack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One more than may be open is refused at once, with a code that says to come again; then all is well."""
    monkeypatch.setattr("appliance.inference.server.LEAST_CALLS", 3)
    monkeypatch.setattr("appliance.inference.runner.PackRunner.most_waiting_images", 2)
    held = Held()
    with served(pack, tmp_path, held) as stub:
        calls = [stub.ModelInfer.future(request(picture=bright_picture() - level)) for level in range(5)]
        wait_for(lambda: sum(call.done() for call in calls) == 2)
        held.go.set()
        refused = [error for error in (call.exception(20) for call in calls) if error is not None]
        assert [error.code() for error in refused] == [Code.RESOURCE_EXHAUSTED] * 2
        assert stub.ModelInfer(request(), timeout=10).outputs


def test_a_longer_queue_has_calls_to_fill_it() -> None:
    """Each image that may wait may be a call of its own, and there is room beside them; a short queue takes none."""
    assert [most_calls(images) for images in (1, 256, 257, 4096)] == [384, 384, 385, 6144]


WAITING = """
import sys

import grpc

from appliance.inference.generated import open_inference_pb2 as oip
from appliance.inference.generated.open_inference_pb2_grpc import GRPCInferenceServiceStub

request = oip.ModelInferRequest(model_name="chest-xray.guard", raw_input_contents=[bytes(512 * 512)])
request.inputs.add(name="image", datatype="UINT8", shape=[1, 1, 512, 512])
with grpc.insecure_channel(f"unix:{sys.argv[1]}") as channel:
    GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=600)
"""
"""A client that asks and waits, in a process of its own that can be stopped."""


def test_a_client_that_stands_still_is_let_go(
    pack: VerifiedPack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stopped process, which answers no ping and reads nothing, holds neither its call nor its place in the queue."""
    monkeypatch.setattr("appliance.inference.server.PING_SECONDS", 1)
    monkeypatch.setattr("appliance.inference.server.PONG_SECONDS", 5)  # long enough for our own channel's answer
    held = Held()
    with served(pack, tmp_path, held) as stub:
        first = stub.ModelInfer.future(request())
        wait_for(lambda: len(held.runs) == 1)
        with subprocess.Popen(
            [sys.executable, "-c", WAITING, str(tmp_path / "s.sock")], stderr=subprocess.DEVNULL
        ) as client:
            try:
                wait_for(lambda: held.waiting() == 1)
                client.send_signal(signal.SIGSTOP)
                wait_for(lambda: held.waiting() == 0)
            finally:
                client.kill()
        assert not held.go.is_set()
        held.go.set()
        assert first.result(20).outputs


def test_two_hundred_clients_are_served_at_once(pack: VerifiedPack, tmp_path: Path) -> None:
    """Each with a call of its own that is open while the others' are."""
    held = Held()
    with served(pack, tmp_path, held) as stub:
        first = stub.ModelInfer.future(request())
        wait_for(lambda: len(held.runs) == 1)
        others = [stub.ModelInfer.future(request()) for _ in range(199)]
        wait_for(lambda: held.waiting() == 199)
        held.go.set()
        assert all(call.result(60).outputs for call in (first, *others))


def test_a_client_that_stops_reading_its_stream_is_let_go(pack: VerifiedPack, tmp_path: Path) -> None:
    """Its answers are not hoarded: no more is read from it, when it reads again the stream has ended; others go on."""
    sent = 0

    async def send_and_read_late(path: Path) -> grpc.StatusCode:
        nonlocal sent

        async def requests() -> Any:
            nonlocal sent
            for _ in range(400):
                sent += 1
                yield request("chest-xray.lungs", np.repeat(bright_picture(), 8, axis=0))

        options = [("grpc.http2.lookahead_bytes", 1), ("grpc.http2.bdp_probe", 0)]
        async with grpc.aio.insecure_channel(f"unix:{path}", options) as channel:
            call: Any = GRPCInferenceServiceStub(channel).ModelStreamInfer(requests())  # type: ignore[no-untyped-call]
            await asyncio.sleep(4)
            with pytest.raises(grpc.aio.AioRpcError, match=r"has read no answer of its stream for 0\.5 s"):
                async for _ in call:
                    pass
            code: grpc.StatusCode = await call.code()
            return code

    with served(pack, tmp_path, stalled=0.5) as stub:
        code = asyncio.run(send_and_read_late(tmp_path / "s.sock"))
        assert code is Code.DEADLINE_EXCEEDED
        assert sent < 400
        assert stub.ModelInfer(request(), timeout=10).outputs


def real(value: float) -> Any:
    """A request that brings numbers instead of pixels."""
    pixels = np.full((1, 1, 512, 512), value, np.float32)
    message = oip.ModelInferRequest(model_name="chest-xray.guard", raw_input_contents=[pixels.tobytes()])
    message.inputs.add(name="image", datatype="FP32", shape=pixels.shape)
    return message


def shaped(*shape: int, datatype: str = "UINT8", name: str = "image", content: bytes | None = None) -> Any:
    """A request of another form."""
    size = max(0, int(np.prod(shape)))
    message = oip.ModelInferRequest(
        model_name="chest-xray.guard", raw_input_contents=[bytes(size) if content is None else content]
    )
    message.inputs.add(name=name, datatype=datatype, shape=shape)
    return message


def in_memory(*shape: int, name: str = "image", model: str = "chest-xray.guard") -> Any:
    """A request whose input lies in a region that nobody registered: looking for it gives an error of its own."""
    message = oip.ModelInferRequest(model_name=model)
    tensor = message.inputs.add(name=name, datatype="UINT8", shape=shape)
    tensor.parameters["shared_memory_region"].string_param = "nowhere"
    tensor.parameters["shared_memory_byte_size"].int64_param = math.prod(shape)
    return message


def repeated(*, inputs: int = 1, outputs: int = 0) -> Any:
    """A good request but for a name that comes again and again."""
    message = request("chest-xray.lungs")
    for _ in range(inputs - 1):
        message.inputs.append(message.inputs[0])
        message.raw_input_contents.append(message.raw_input_contents[0])
    for _ in range(outputs):
        message.outputs.add(name="mask")
    return message


BAD: list[tuple[str, Any, grpc.StatusCode, str]] = [
    ("shape", shaped(1, 1, 8, 8), Code.INVALID_ARGUMENT, r"image is uint8 \[1, 1, 8, 8\]. Expected is image UINT8"),
    ("datatype", shaped(1, 1, 512, 512, datatype="INT8"), Code.INVALID_ARGUMENT, "image is int8"),
    ("name", shaped(1, 1, 512, 512, name="picture"), Code.INVALID_ARGUMENT, "brings picture. Expected is image"),
    ("count", oip.ModelInferRequest(model_name="chest-xray.guard"), Code.INVALID_ARGUMENT, "brings no input"),
    ("bytes", shaped(1, 1, 512, 512, content=b"x"), Code.INVALID_ARGUMENT, r"has 1 bytes.*takes 262144"),
    ("numbers", real(np.nan), Code.INVALID_ARGUMENT, r"image is float32 \[1, 1, 512, 512\]. Expected is image UINT8"),
    ("zero size", shaped(0, 1, 512, 512), Code.INVALID_ARGUMENT, "holds 0 images. One request takes 1 to 8"),
    ("large batch", shaped(9, 1, 512, 512), Code.INVALID_ARGUMENT, "holds 9 images"),
    ("negative", shaped(-1, 1, 512, 512), Code.INVALID_ARGUMENT, "Lengths of a request are not negative"),
    ("dimensions", shaped(*[1] * 65, content=b"x"), Code.INVALID_ARGUMENT, "image is uint8 of 65 dimensions"),
    ("overflow", shaped(0, 2**62, 2**62, content=b""), Code.INVALID_ARGUMENT, "Expected is image UINT8"),
    ("an output again", repeated(outputs=200), Code.INVALID_ARGUMENT, "mask is asked for twice. Ask for each output"),
    ("an input again", repeated(inputs=2), Code.INVALID_ARGUMENT, "brings image, image. Expected is image UINT8"),
    ("no datatype", shaped(1, 1, 512, 512, datatype="BYTES"), Code.INVALID_ARGUMENT, "has the datatype BYTES"),
    ("nobody's memory", in_memory(1, 1, 512, 512, model="nobody"), Code.NOT_FOUND, "model nobody is not served"),
    ("vast memory", in_memory(1 << 40), Code.INVALID_ARGUMENT, r"image is uint8 \[1099511627776\]. Expected"),
    ("others' memory", in_memory(1, 1, 512, 512, name="x"), Code.INVALID_ARGUMENT, "brings x. Expected is image"),
    ("long name", request("x" * 100_000), Code.NOT_FOUND, "The model x{900}"),
    ("unknown model", request("nobody"), Code.NOT_FOUND, "model nobody is not served. Served: chest-xray"),
    ("empty model", request(""), Code.NOT_FOUND, "is not served"),
]


@pytest.mark.parametrize(("bad", "code", "sentence"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_a_bad_request_gets_its_code_and_its_sentence(
    pack: VerifiedPack, tmp_path: Path, bad: Any, code: grpc.StatusCode, sentence: str
) -> None:
    """What was expected is said, and the next request is answered."""
    with served(pack, tmp_path) as stub:
        with pytest.raises(grpc.RpcError, match=sentence) as refused:
            stub.ModelInfer(bad, timeout=10)
        assert refused.value.code() is code
        assert stub.ModelInfer(request(), timeout=10).outputs


def test_a_stream_survives_what_no_array_can_hold(pack: VerifiedPack, tmp_path: Path) -> None:
    """Each bad request of a stream is told so in its place, and those behind it are answered."""
    bad = [
        shaped(*[1] * 65, content=b"x"),
        shaped(0, 2**62, 2**62, content=b""),
        in_memory(1 << 40),
        request("nobody"),
    ]
    with served(pack, tmp_path) as stub:
        answers = list(stub.ModelStreamInfer(iter([*bad, request()]), timeout=20))
    assert [bool(each.error_message) for each in answers] == [True, True, True, True, False]
    assert answers[-1].infer_response.outputs


HUGE = """
import sys

import grpc

from appliance.inference.generated import open_inference_pb2 as oip
from appliance.inference.generated.open_inference_pb2_grpc import GRPCInferenceServiceStub

request = oip.ModelInferRequest(model_name="chest-xray.guard", raw_input_contents=[bytes(1 << 30)])
request.inputs.add(name="image", datatype="UINT8", shape=[1 << 30])
with grpc.insecure_channel(f"unix:{sys.argv[1]}", [("grpc.max_send_message_length", -1)]) as channel:
    try:
        GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=60)
    except grpc.RpcError as error:
        print(error.code().name, error.details())
"""
"""A client that sends a gigabyte, in a process of its own: its memory is not the server's."""


def test_a_huge_message_is_refused_and_its_memory_comes_back(pack: VerifiedPack, tmp_path: Path) -> None:
    """A gigabyte is refused by its announced length: the server's process never holds it, then or later."""
    with served(pack, tmp_path) as stub:
        stub.ModelInfer(request(), timeout=10)
        process, most = psutil.Process(), 0
        before = process.memory_info().rss
        with subprocess.Popen(
            [sys.executable, "-c", HUGE, str(tmp_path / "s.sock")], stdout=subprocess.PIPE, text=True
        ) as client:
            while client.poll() is None:
                most = max(most, process.memory_info().rss)
                time.sleep(0.005)
            assert client.stdout is not None
            said = client.stdout.read()
        assert said.startswith("RESOURCE_EXHAUSTED")
        assert "larger than max" in said
        assert stub.ModelInfer(request(), timeout=10).outputs
        assert max(most, process.memory_info().rss) < before + (64 << 20)


def test_over_tcp_both_sides_show_a_certificate(pack: VerifiedPack, tmp_path: Path) -> None:
    """A client of the authority is served; one without a certificate, or a stranger's, does not get a word in."""
    site = certificate(tmp_path, "authority")
    certificate(tmp_path, "daemon", site)
    certificate(tmp_path, "worker", site)
    certificate(tmp_path, "stranger")
    tls = TlsFiles(tmp_path / "daemon.pem", tmp_path / "daemon.key", tmp_path / "authority.pem")
    address = address_from_text("127.0.0.1:0", tls)

    def ask(name: str, port: int) -> bool:
        authority = (tmp_path / "authority.pem").read_bytes()
        pair = (
            ((tmp_path / f"{name}.key").read_bytes(), (tmp_path / f"{name}.pem").read_bytes()) if name else (None, None)
        )
        with grpc.secure_channel(f"127.0.0.1:{port}", grpc.ssl_channel_credentials(authority, *pair)) as channel:
            stub = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
            return bool(stub.ServerReady(oip.ServerReadyRequest(), timeout=5).ready)

    with (
        PackRunner([pack], 1) as runner,
        InferenceServer(runner, address, version="1", log=logger_for("test")) as server,
    ):
        assert ask("worker", server.port)
        for name in ("", "stranger"):
            with pytest.raises(grpc.RpcError) as refused:
                ask(name, server.port)
            assert refused.value.code() is Code.UNAVAILABLE


def test_an_address_says_what_it_is(tmp_path: Path) -> None:
    """A path, or a host with TLS; a port that anybody could reach without it is refused."""
    tls = TlsFiles(tmp_path / "a", tmp_path / "b", tmp_path / "c")
    assert address_from_text("unix:///run/s.sock", None) == UnixAddress(Path("/run/s.sock"))
    assert address_from_text("[::1]:9000", tls) == TcpAddress("::1", 9000, tls)
    for text in ("9000", ":9000", "host:", "host:port", "host:70000"):
        with pytest.raises(SettingsError, match="no address"):
            address_from_text(text, tls)
    with pytest.raises(SettingsError, match="tls_client_authority"):
        address_from_text("0.0.0.0:9000", None)
    with (
        PackRunner(()) as runner,
        pytest.raises(SettingsError, match="can't be read"),
        InferenceServer(runner, address_from_text("127.0.0.1:0", tls), version="1", log=logger_for("test")),
    ):
        pass
