"""The client: the contract of inference over a real socket, a daemon that comes and goes, and foreign servers."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from appliance.domain.errors import (
    InferenceError,
    InferenceUnavailableError,
    InvalidTensorError,
    ProvenanceError,
    UnknownModelError,
)
from appliance.domain.manifest import VerifiedPack
from appliance.inference.client import OipClient
from appliance.inference.converters import metadata_from_description, response_from_outputs
from appliance.inference.generated import open_inference_pb2 as oip
from appliance.inference.generated.open_inference_pb2_grpc import (
    GRPCInferenceServiceServicer,
    add_GRPCInferenceServiceServicer_to_server,
)
from appliance.inference.runner import PackRunner
from appliance.inference.server import InferenceServer
from appliance.inference.statuses import error_from_status
from appliance.telemetry import logger_for
from tests.contracts.inference_contract import InferenceContract
from tests.fakes.tiny_pack import bright_picture
from tests.fakes.watched_runtime import Outputs, WatchedRuntime


@contextmanager
def serving(runner: PackRunner, path: Path) -> Iterator[None]:
    """A daemon's server around a runner."""
    with InferenceServer(runner, path, version="0", log=logger_for("test")):
        yield


class TestOipClient(InferenceContract):
    """The suite, over a real socket."""

    @pytest.fixture
    def inference(self, pack: VerifiedPack, tmp_path: Path) -> Iterator[OipClient]:
        """A client of a running server."""
        path = tmp_path / "s.sock"
        with PackRunner([pack], 1) as runner, serving(runner, path), OipClient(f"unix://{path}", 10) as client:
            yield client


def test_answers_are_counted_by_the_server(pack: VerifiedPack, tmp_path: Path) -> None:
    """How often a model answered is asked of the server; a request that failed is no answer."""
    path = tmp_path / "s.sock"
    with PackRunner([pack], 1) as runner, serving(runner, path), OipClient(f"unix://{path}", 10) as client:
        client.infer("chest-xray.guard", bright_picture())
        client.infer("chest-xray.guard", bright_picture() - 1)
        with pytest.raises(InvalidTensorError):
            client.infer("chest-xray.guard", bright_picture()[..., :8])
        ended = time.monotonic() + 10
        while client.answers("chest-xray.guard") < 2 and time.monotonic() < ended:
            time.sleep(0.01)  # a batch is counted once its callers have their answers
        assert (client.answers("chest-xray.guard"), client.answers("chest-xray.lungs")) == (2, 0)


def test_nobody_there_is_said_soon(tmp_path: Path) -> None:
    """Without a daemon a call ends as unavailable, and names the socket."""
    with OipClient(f"unix://{tmp_path}/none.sock", 0.2) as client:
        with pytest.raises(InferenceUnavailableError, match=r"nobody answers at unix://.*none\.sock"):
            client.served()
        with pytest.raises(InferenceUnavailableError, match="insite inference"):
            client.infer("chest-xray.guard", bright_picture())


def test_a_daemon_that_starts_again_is_found_again(pack: VerifiedPack, tmp_path: Path) -> None:
    """A call that falls into a restart waits for the daemon and is answered."""
    path = tmp_path / "s.sock"
    with PackRunner([pack], 1) as runner, OipClient(f"unix://{path}", 10) as client:
        with serving(runner, path):
            client.infer("chest-xray.guard", bright_picture())
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(client.infer, "chest-xray.guard", bright_picture())
            with serving(runner, path):
                assert asked.result(10).provenance.pack == "chest-xray"


def test_an_answer_that_takes_too_long_is_not_waited_for(pack: VerifiedPack, tmp_path: Path) -> None:
    """The worker's patience ends at its setting; the daemon goes on serving."""
    go = threading.Event()

    def hold(_: str, outputs: Outputs) -> Outputs:
        go.wait(10)
        return outputs

    path = tmp_path / "s.sock"
    with (
        PackRunner([pack], runtimes=[WatchedRuntime(hold)]) as runner,
        serving(runner, path),
        OipClient(f"unix://{path}", 0.3) as client,
    ):
        with pytest.raises(InferenceUnavailableError, match="Deadline"):
            client.infer("chest-xray.guard", bright_picture())
        go.set()
        with OipClient(f"unix://{path}", 10) as patient:
            assert patient.served()


class ForeignServer(GRPCInferenceServiceServicer):
    """A server of the protocol that is not ours: `change` is applied to each answer before it leaves."""

    def __init__(self, runner: PackRunner, change: Callable[[oip.ModelInferResponse], None]) -> None:
        self._runner = runner
        self._change = change

    def ModelMetadata(self, request: oip.ModelMetadataRequest, context: Any) -> oip.ModelMetadataResponse:  # noqa: N802 - the protocol's name
        """As ours, without parameters."""
        metadata = metadata_from_description(self._runner.describe(request.name))
        metadata.ClearField("parameters")
        return metadata

    def RepositoryIndex(self, request: oip.RepositoryIndexRequest, context: Any) -> oip.RepositoryIndexResponse:  # noqa: N802 - the protocol's name
        """One model."""
        return oip.RepositoryIndexResponse(models=[{"name": "chest-xray.guard"}])

    def ModelInfer(self, request: oip.ModelInferRequest, context: Any) -> oip.ModelInferResponse:  # noqa: N802 - the protocol's name
        """As ours, then changed."""
        answer = self._runner.infer(request.model_name, bright_picture())
        response = response_from_outputs(request, answer.outputs, answer.provenance)
        self._change(response)
        return response


@pytest.fixture
def foreign(
    pack: VerifiedPack, tmp_path: Path
) -> Callable[[Callable[[oip.ModelInferResponse], None]], AbstractContextManager[OipClient]]:
    """A client of a foreign server whose answers are changed."""

    @contextmanager
    def start(change: Callable[[oip.ModelInferResponse], None]) -> Iterator[OipClient]:
        with PackRunner([pack], 1) as runner, ThreadPoolExecutor(1) as pool:
            server = grpc.server(pool)
            add_GRPCInferenceServiceServicer_to_server(ForeignServer(runner, change), server)
            server.add_insecure_port(f"unix:{tmp_path}/f.sock")
            server.start()
            with OipClient(f"unix://{tmp_path}/f.sock", 10) as client:
                yield client
            server.stop(None).wait()

    return start


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        (lambda answer: answer.parameters.clear(), ProvenanceError, "does not say which pack"),
        (lambda answer: setattr(answer, "model_name", "other"), ProvenanceError, "answered with other"),
        (lambda answer: answer.raw_output_contents.append(b""), InvalidTensorError, "2 outputs but 3 raw contents"),
        (lambda answer: answer.outputs[0].ClearField("datatype"), InvalidTensorError, "the datatype none"),
    ],
    ids=["no provenance", "another model", "count", "no datatype"],
)
def test_an_answer_that_does_not_fit_is_no_result(
    foreign: Any, change: Callable[[oip.ModelInferResponse], None], error: type[InferenceError], sentence: str
) -> None:
    """A server that does not say which pack computed an answer, or answers something else, is not believed."""
    with foreign(change) as client, pytest.raises(error, match=sentence):
        client.infer("chest-xray.guard", bright_picture())


def test_a_listing_without_provenance_is_refused(foreign: Any) -> None:
    """The worker plans with digests, so a server without them can't be used."""
    with foreign(lambda _: None) as client, pytest.raises(ProvenanceError, match=r"chest-xray\.guard"):
        client.served()


@pytest.mark.parametrize(
    ("code", "details", "kind"),
    [
        (grpc.StatusCode.NOT_FOUND, "no such model", UnknownModelError),
        (grpc.StatusCode.INVALID_ARGUMENT, "shape", InvalidTensorError),
        (grpc.StatusCode.UNAVAILABLE, "", InferenceUnavailableError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "", InferenceUnavailableError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "Concurrent RPC limit exceeded!", InferenceUnavailableError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "Received message larger than max", InvalidTensorError),
        (grpc.StatusCode.INTERNAL, "failed", InferenceError),
        (grpc.StatusCode.UNIMPLEMENTED, "", InferenceError),
    ],
)
def test_each_code_is_one_error(code: grpc.StatusCode, details: str, kind: type[InferenceError]) -> None:
    """What may pass by itself is `unavailable`; what will not is told apart."""
    error = error_from_status(code, details, "Asking chest-xray.guard")
    assert type(error) is kind
    assert (details or code.name) in error.message
    assert error.way_forward
