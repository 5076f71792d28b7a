"""The server: its socket, its limits, and the protocol as a bare client sees it."""

import io
import json
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import grpc
import numpy as np
import pytest
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from appliance.domain.errors import SettingsError
from appliance.domain.manifest import VerifiedPack
from appliance.inference.generated import open_inference_pb2 as oip
from appliance.inference.generated.open_inference_pb2_grpc import GRPCInferenceServiceStub
from appliance.inference.runner import PackRunner
from appliance.inference.server import SERVICE, InferenceServer
from appliance.inference.servicer import EXTENSIONS
from appliance.inference.shared_memory import FOLDER
from appliance.telemetry import logger_for
from tests.fakes.tiny_pack import bright_picture
from tests.fakes.watched_runtime import Outputs, WatchedRuntime


def server(runner: PackRunner, path: Path) -> InferenceServer:
    """A server that is not yet running."""
    return InferenceServer(runner, path, version="1.2.3", log=logger_for("test"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the socket will be, in a folder that is not there yet."""
    return tmp_path / "run" / "s.sock"


@pytest.fixture
def channel(pack: VerifiedPack, path: Path) -> Iterator[grpc.Channel]:
    """A connection to a running server."""
    options = [("grpc.max_send_message_length", -1)]
    with PackRunner([pack], 1) as runner, server(runner, path), grpc.insecure_channel(f"unix:{path}", options) as to:
        yield to


@pytest.fixture
def stub(channel: grpc.Channel) -> Any:
    """The bare client that the protocol's compiler made."""
    return GRPCInferenceServiceStub(channel)


def guard_request(**changes: Any) -> oip.ModelInferRequest:
    """A good request for the guard, with raw contents."""
    request = oip.ModelInferRequest(model_name="chest-xray.guard", id="42")
    request.inputs.add(name="image", datatype="UINT8", shape=[1, 1, 512, 512])
    request.raw_input_contents.append(bright_picture().tobytes())
    request.MergeFrom(oip.ModelInferRequest(**changes))
    return request


def test_only_owner_and_group_may_connect(channel: grpc.Channel, path: Path) -> None:
    """The socket has mode 0660, and is gone when the server has stopped."""
    assert stat.S_IMODE(path.stat().st_mode) == 0o660


def test_the_socket_is_removed_at_the_end(pack: VerifiedPack, path: Path) -> None:
    """A stopped server leaves nothing behind."""
    with PackRunner([pack], 1) as runner, server(runner, path):
        assert path.is_socket()
    assert not path.exists()


def test_a_dead_daemons_socket_is_replaced(pack: VerifiedPack, path: Path) -> None:
    """After a crash the next start takes the path over."""
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with PackRunner([pack], 1) as runner, server(runner, path), grpc.insecure_channel(f"unix:{path}") as to:
        assert GRPCInferenceServiceStub(to).ServerLive(oip.ServerLiveRequest(), timeout=10).live


def test_a_living_daemons_socket_is_not_taken(pack: VerifiedPack, path: Path) -> None:
    """Two daemons on one path would answer for each other."""
    with PackRunner([pack], 1) as runner, server(runner, path):
        with pytest.raises(SettingsError, match="Another inference daemon"), server(runner, path):
            pass
        assert path.is_socket()


def test_a_path_that_cannot_be_a_socket_is_refused(tmp_path: Path) -> None:
    """A file in the way is not removed, and a path beyond the system's limit is named."""
    (tmp_path / "notes").write_text("keep me")
    with PackRunner(()) as runner:
        with pytest.raises(SettingsError, match="is no socket"), server(runner, tmp_path / "notes"):
            pass
        with pytest.raises(SettingsError, match="longer than 107 bytes"), server(runner, tmp_path / ("x" * 108)):
            pass
    assert (tmp_path / "notes").read_text() == "keep me"


def test_health_says_serving(channel: grpc.Channel) -> None:
    """The health service of gRPC answers for the whole and for the protocol's service."""
    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", SERVICE):
        answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_without_packs_it_is_live_but_not_ready(path: Path) -> None:
    """A daemon that can serve nothing still says so."""
    with PackRunner(()) as runner, server(runner, path), grpc.insecure_channel(f"unix:{path}") as to:
        stub = GRPCInferenceServiceStub(to)
        assert stub.ServerLive(oip.ServerLiveRequest(), timeout=10).live
        assert not stub.ServerReady(oip.ServerReadyRequest(), timeout=10).ready
        answer = health_pb2_grpc.HealthStub(to).Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING


def test_reflection_lists_the_services(channel: grpc.Channel) -> None:
    """A tool without the .proto file can find out what is spoken."""
    ask = reflection_pb2.ServerReflectionRequest(list_services="")
    (answer,) = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([ask]), timeout=10)
    listed = {service.name for service in answer.list_services_response.service}
    assert {SERVICE, "grpc.health.v1.Health"} <= listed


def test_metadata_describes_server_and_model(stub: Any, pack: VerifiedPack) -> None:
    """Name, version, extensions; tensors, version and provenance."""
    of_server = stub.ServerMetadata(oip.ServerMetadataRequest(), timeout=10)
    assert (of_server.name, of_server.version, tuple(of_server.extensions)) == ("insite", "1.2.3", EXTENSIONS)
    model = stub.ModelMetadata(oip.ModelMetadataRequest(name="chest-xray.guard"), timeout=10)
    assert (list(model.versions), model.platform) == (["1"], "onnxruntime-cpu")
    assert [(each.name, each.datatype, list(each.shape)) for each in model.inputs] == [
        ("image", "UINT8", [-1, 1, 512, 512])
    ]
    assert [each.name for each in model.outputs] == ["score", "distance"]
    assert model.parameters["pack_digest"].string_param == pack.manifest.digest


@pytest.mark.parametrize(
    ("name", "version", "ready"),
    [
        ("chest-xray.guard", "", True),
        ("chest-xray.guard", "1", True),
        ("chest-xray.guard", "2", False),
        ("x", "", False),
    ],
)
def test_a_model_that_is_not_served_is_not_ready(stub: Any, name: str, version: str, ready: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """Readiness is asked by name and version."""
    assert stub.ModelReady(oip.ModelReadyRequest(name=name, version=version), timeout=10).ready is ready


def test_an_answer_names_request_version_and_pack(stub: Any, pack: VerifiedPack) -> None:
    """The request's identifier comes back, with the release and the digests."""
    answer = stub.ModelInfer(guard_request(), timeout=10)
    assert (answer.id, answer.model_name, answer.model_version) == ("42", "chest-xray.guard", "1")
    assert [(each.name, each.datatype, list(each.shape)) for each in answer.outputs] == [
        ("score", "FP32", [1, 1]),
        ("distance", "FP32", [1, 1]),
    ]
    assert answer.parameters["base_digest"].string_param == pack.manifest.base_digest
    assert answer.parameters["precision"].string_param == "fp32"


def test_typed_contents_give_what_raw_contents_give(stub: Any) -> None:
    """A client may send pixels as numbers, the largest batch of the brightest pixels included."""
    request = guard_request()
    del request.raw_input_contents[:]
    request.inputs[0].contents.uint_contents.extend(bright_picture().ravel().tolist())
    assert stub.ModelInfer(request, timeout=10) == stub.ModelInfer(guard_request(), timeout=10)
    largest = oip.ModelInferRequest(model_name="chest-xray.guard")
    tensor = largest.inputs.add(name="image", datatype="UINT8", shape=[8, 1, 512, 512])
    tensor.contents.uint_contents.extend(np.full(8 * 512 * 512, 255).tolist())
    assert list(stub.ModelInfer(largest, timeout=30).outputs[0].shape) == [8, 1]


def test_a_request_may_choose_its_outputs(stub: Any) -> None:
    """Only the outputs that were asked for come back, in that order; an unknown one is refused."""
    wanted = [oip.ModelInferRequest.InferRequestedOutputTensor(name="distance")]
    assert [each.name for each in stub.ModelInfer(guard_request(outputs=wanted), timeout=10).outputs] == ["distance"]
    unknown = [oip.ModelInferRequest.InferRequestedOutputTensor(name="heat")]
    with pytest.raises(grpc.RpcError, match="no output heat") as refused:
        stub.ModelInfer(guard_request(outputs=unknown), timeout=10)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_one_request_asks_several_tasks(stub: Any) -> None:
    """The model `all` answers what was asked of it, in that order, with the bytes that each task alone answers with."""
    names = ["guard.distance", "lungs.mask", "guard.score"]
    wanted = [oip.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in names]
    answer = stub.ModelInfer(guard_request(model_name="chest-xray.all", outputs=wanted), timeout=10)
    assert [each.name for each in answer.outputs] == names
    for name, raw in zip(names, answer.raw_output_contents, strict=True):
        task, _, output = name.partition(".")
        one = [oip.ModelInferRequest.InferRequestedOutputTensor(name=output)]
        alone = stub.ModelInfer(guard_request(model_name=f"chest-xray.{task}", outputs=one), timeout=10)
        assert raw == alone.raw_output_contents[0]
    whole = stub.ModelInfer(guard_request(model_name="chest-xray.all"), timeout=10)
    metadata = stub.ModelMetadata(oip.ModelMetadataRequest(name="chest-xray.all"), timeout=10)
    assert [each.name for each in whole.outputs] == [each.name for each in metadata.outputs]
    assert len(whole.outputs) == 5


@pytest.mark.parametrize("name", ["guard", "score", "lungs.score", "spleen.mask", "embedding.embedding"])
def test_an_output_that_no_task_has_is_refused(stub: Any, name: str) -> None:
    """The code says that the request is wrong, the sentence what there is."""
    wanted = [oip.ModelInferRequest.InferRequestedOutputTensor(name=each) for each in ("lungs.mask", name)]
    with pytest.raises(grpc.RpcError, match=f"chest-xray.all has no output {name}.*guard.distance") as refused:
        stub.ModelInfer(guard_request(model_name="chest-xray.all", outputs=wanted), timeout=10)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (oip.ModelInferRequest(model_name="nobody"), grpc.StatusCode.NOT_FOUND),
        (guard_request(model_version="9"), grpc.StatusCode.NOT_FOUND),
        (oip.ModelInferRequest(model_name="chest-xray.guard"), grpc.StatusCode.INVALID_ARGUMENT),
        (guard_request(raw_input_contents=[b"more"]), grpc.StatusCode.INVALID_ARGUMENT),
        (guard_request(raw_input_contents=[bytes(10_000_000)]), grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
    ids=["unknown model", "unknown version", "no input", "count", "too large"],
)
def test_a_bad_request_gets_its_code_and_the_next_one_its_answer(
    stub: Any, request_: oip.ModelInferRequest, code: grpc.StatusCode
) -> None:
    """A refused request leaves the daemon as it was."""
    with pytest.raises(grpc.RpcError) as refused:
        stub.ModelInfer(request_, timeout=10)
    assert refused.value.code() is code
    assert stub.ModelInfer(guard_request(), timeout=10).outputs


def test_what_a_client_sends_makes_no_long_lines_in_the_log(pack: VerifiedPack, path: Path) -> None:
    """A name and an identifier of a megabyte each are refused, alone and in a stream, and logged by their beginning."""
    written = io.StringIO()
    log = structlog.wrap_logger(structlog.PrintLogger(written), processors=[structlog.processors.JSONRenderer()])
    long = guard_request(model_name="m" * 1_000_000, id="i" * 1_000_000)
    good = guard_request(id="g" * 1_000_000)
    good.parameters["insite_trace"].bool_param = True
    options = [("grpc.max_receive_message_length", -1)]
    with (
        PackRunner([pack], 1) as runner,
        InferenceServer(runner, path, version="1", log=log),
        grpc.insecure_channel(f"unix:{path}", options) as to,
    ):
        stub: Any = GRPCInferenceServiceStub(to)
        with pytest.raises(grpc.RpcError, match="The model m"):
            stub.ModelInfer(long, timeout=30)
        assert [bool(each.error_message) for each in stub.ModelStreamInfer(iter([long]), timeout=30)] == [True]
        assert stub.ModelInfer(good, timeout=30).id == good.id
    lines = [json.loads(line) for line in written.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["call refused", "request refused", "answered", "trace"]
    for line in lines:
        assert line["id"] in {"i" * 100 + " …", "g" * 100 + " …"}
        assert len(line.get("error", "")) < 1100


def test_memory_that_was_not_given_is_refused(stub: Any) -> None:
    """A region of another user that lets nobody else read it is PERMISSION_DENIED, even where the daemon is root."""
    with NamedTemporaryFile(dir=FOLDER) as memory:
        memory.truncate(64)
        os.fchmod(memory.fileno(), 0o600 if os.geteuid() == 0 else 0)
        if os.geteuid() == 0:
            os.fchown(memory.fileno(), 4321, 8765)
        region = oip.SystemSharedMemoryRegisterRequest(name="p", key=Path(memory.name).name, byte_size=64)
        with pytest.raises(grpc.RpcError, match=r"The .*shared memory") as refused:
            stub.SystemSharedMemoryRegister(region, timeout=10)
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert not stub.SystemSharedMemoryStatus(oip.SystemSharedMemoryStatusRequest(), timeout=10).regions


def test_unforeseen_failures_are_told_as_nothing_and_logged(pack: VerifiedPack, path: Path) -> None:
    """A client never sees an exception's text; the log holds it."""

    def burst(_: str, __: Outputs) -> Outputs:
        raise ZeroDivisionError("inner detail")

    written = io.StringIO()
    log = structlog.wrap_logger(
        structlog.PrintLogger(written),
        processors=[structlog.processors.format_exc_info, structlog.processors.JSONRenderer()],
    )
    with (
        PackRunner([pack], runtimes=[WatchedRuntime(burst)]) as runner,
        InferenceServer(runner, path, version="1", log=log),
        grpc.insecure_channel(f"unix:{path}") as to,
    ):
        with pytest.raises(grpc.RpcError) as failed:
            GRPCInferenceServiceStub(to).ModelInfer(guard_request(), timeout=10)
        assert failed.value.code() is grpc.StatusCode.INTERNAL
        assert failed.value.details() == "The daemon failed; its log says why."
        assert GRPCInferenceServiceStub(to).ServerReady(oip.ServerReadyRequest(), timeout=10).ready
    assert "ZeroDivisionError: inner detail" in written.getvalue()
