"""Asks an inference daemon over the Open Inference Protocol; the worker's `Inference`."""

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
import numpy as np
from numpy.typing import NDArray

from appliance.domain.errors import InferenceUnavailableError, ProvenanceError
from appliance.domain.ports import Answer, ServedModel
from appliance.inference.converters import outputs_from_response, provenance_from_parameters, request_from_image
from appliance.inference.generated import open_inference_pb2 as oip
from appliance.inference.generated.open_inference_pb2_grpc import GRPCInferenceServiceStub
from appliance.inference.statuses import error_from_status

RECONNECT_SECONDS = 2.0
"""How long a call waits for a daemon that is starting again before it gives up and leaves the retry to the worker."""
LARGEST_ANSWER = 64 * 1024 * 1024
"""Bytes; a full-size mask of the largest batch is a quarter of this."""

_OPTIONS = [
    ("grpc.enable_http_proxy", 0),
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.max_receive_message_length", LARGEST_ANSWER),
    ("grpc.max_send_message_length", -1),
]

T = TypeVar("T")


class OipClient:
    """One connection, made at the first call and made again when it breaks; may be shared by threads.

    Args:
        target: `unix:///path` or `host:port`.
        timeout_seconds: For one answer.
        credentials: For `host:port`: who we are, and whom we believe.
    """

    def __init__(self, target: str, timeout_seconds: float, credentials: grpc.ChannelCredentials | None = None) -> None:
        self._timeout = timeout_seconds
        if credentials is None:
            self._nobody = f"nobody answers at {target}"
            self._channel = grpc.insecure_channel(target, options=_OPTIONS)
        else:
            self._nobody = f"nobody answers at {target}, or one side does not accept the other's certificate"
            self._channel = grpc.secure_channel(target, credentials, options=_OPTIONS)
        self._stub: Any = GRPCInferenceServiceStub(self._channel)  # type: ignore[no-untyped-call]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection."""
        self._channel.close()

    def infer(self, model: str, image: NDArray[np.uint8]) -> Answer:
        """Run one model on one image; see `Inference.infer`."""
        metadata = self._metadata(model)
        request = request_from_image(model, metadata.inputs[0].name, image)
        response: oip.ModelInferResponse = self._call(self._stub.ModelInfer, request, f"Asking {model}")
        if response.model_name != model:
            raise ProvenanceError(
                f"Asked for {model}, the server answered with {response.model_name}.", "Read its log."
            )
        return Answer(outputs_from_response(response), provenance_from_parameters(model, response.parameters))

    def served(self) -> Sequence[ServedModel]:
        """The models that are ready; see `Inference.served`."""
        request = oip.RepositoryIndexRequest(ready=True)
        index: oip.RepositoryIndexResponse = self._call(self._stub.RepositoryIndex, request, "Listing the models")
        return tuple(self._served(model.name) for model in index.models)

    def is_ready(self, model: str) -> bool:
        """Whether a server, ours or another, says that a model is ready."""
        request = oip.ModelReadyRequest(name=model)
        answer: oip.ModelReadyResponse = self._call(self._stub.ModelReady, request, f"Asking after {model}")
        return answer.ready

    def regions(self) -> Sequence[str]:
        """Names of the regions of shared memory that are registered."""
        request = oip.SystemSharedMemoryStatusRequest()
        answer: oip.SystemSharedMemoryStatusResponse = self._call(
            self._stub.SystemSharedMemoryStatus, request, "Listing shared memory"
        )
        return tuple(sorted(answer.regions))

    def answers(self, model: str) -> int:
        """How many requests for a model the server has answered since it started."""
        request = oip.ModelStatisticsRequest(name=model)
        found: oip.ModelStatisticsResponse = self._call(
            self._stub.ModelStatistics, request, f"Asking how often {model} answered"
        )
        return sum(each.inference_stats.success.count for each in found.model_stats)

    def load_pack(self, name: str, seconds: float) -> None:
        """Have the daemon verify, replay and serve a pack in its selected release."""
        self._patiently(
            self._stub.RepositoryModelLoad, oip.RepositoryModelLoadRequest(model_name=name), seconds, "Loading"
        )

    def unload_pack(self, name: str, seconds: float) -> None:
        """Have the daemon stop serving a pack."""
        request = oip.RepositoryModelUnloadRequest(model_name=name)
        self._patiently(self._stub.RepositoryModelUnload, request, seconds, "Unloading")

    def _patiently(self, method: Callable[..., Any], request: Any, seconds: float, what: str) -> None:
        try:
            method(request, timeout=seconds)
        except grpc.RpcError as error:
            raise error_from_status(
                error.code(), error.details() or "", f"{what} the pack {request.model_name}"
            ) from error

    def _served(self, model: str) -> ServedModel:
        metadata = self._metadata(model)
        provenance = provenance_from_parameters(model, metadata.parameters)
        return ServedModel(model, provenance, tuple(output.name for output in metadata.outputs))

    def _metadata(self, model: str) -> oip.ModelMetadataResponse:
        request = oip.ModelMetadataRequest(name=model)
        metadata: oip.ModelMetadataResponse = self._call(
            self._stub.ModelMetadata, request, f"Asking for the metadata of {model}"
        )
        return metadata

    def _call(self, method: Callable[..., T], request: Any, what: str) -> T:
        """Call once, and once more when the daemon was away and came back within `RECONNECT_SECONDS`."""
        try:
            return self._once(method, request, what)
        except InferenceUnavailableError as error:
            if not is_away(error):
                raise
            if not self._is_back():
                raise InferenceUnavailableError(
                    f"{what} failed: {self._nobody}.", "Start `insite inference`, or read its log."
                ) from error
        return self._once(method, request, what)

    def _is_back(self) -> bool:
        try:
            self._stub.ServerLive(
                oip.ServerLiveRequest(), timeout=min(RECONNECT_SECONDS, self._timeout), wait_for_ready=True
            )
        except grpc.RpcError:
            return False
        return True

    def _once(self, method: Callable[..., T], request: Any, what: str) -> T:
        try:
            return method(request, timeout=self._timeout)
        except grpc.RpcError as error:
            raise error_from_status(error.code(), error.details() or "", what) from error


def is_away(error: InferenceUnavailableError) -> bool:
    """Whether nobody answered; a daemon that was too slow, too busy or told to stop is there."""
    cause: Any = error.__cause__
    return isinstance(cause, grpc.RpcError) and cause.code() is grpc.StatusCode.UNAVAILABLE
