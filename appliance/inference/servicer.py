"""The protocol's service: it only translates between messages and the runner."""

import grpc

from appliance.domain.errors import InferenceUnavailableError, UnknownModelError
from appliance.inference.converters import arrays_from_request, metadata_from_description, response_from_outputs
from appliance.inference.generated import open_inference_pb2 as oip
from appliance.inference.generated.open_inference_pb2_grpc import GRPCInferenceServiceServicer
from appliance.inference.runner import PackRunner

SERVER_NAME = "insite"
EXTENSIONS = ("model_repository",)


class InferenceServicer(GRPCInferenceServiceServicer):
    """Answers calls; errors leave it as they are and become codes in `StatusInterceptor`.

    Args:
        runner: Whose models are served; owned by the caller.
        version: The software's version, for metadata.
    """

    def __init__(self, runner: PackRunner, version: str) -> None:
        self._runner = runner
        self._version = version

    def ServerLive(  # noqa: N802 - the protocol's name
        self, request: oip.ServerLiveRequest, context: grpc.ServicerContext
    ) -> oip.ServerLiveResponse:
        """Whoever can answer is live."""
        del request, context
        return oip.ServerLiveResponse(live=True)

    def ServerReady(  # noqa: N802 - the protocol's name
        self, request: oip.ServerReadyRequest, context: grpc.ServicerContext
    ) -> oip.ServerReadyResponse:
        """Ready as soon as one pack serves."""
        del request, context
        return oip.ServerReadyResponse(ready=bool(self._runner.served()))

    def ModelReady(  # noqa: N802 - the protocol's name
        self, request: oip.ModelReadyRequest, context: grpc.ServicerContext
    ) -> oip.ModelReadyResponse:
        """A model that is not known is not ready."""
        del context
        try:
            self._runner.describe(request.name, request.version)
        except UnknownModelError:
            return oip.ModelReadyResponse(ready=False)
        return oip.ModelReadyResponse(ready=True)

    def ServerMetadata(  # noqa: N802 - the protocol's name
        self, request: oip.ServerMetadataRequest, context: grpc.ServicerContext
    ) -> oip.ServerMetadataResponse:
        """Name, version, extensions."""
        del request, context
        return oip.ServerMetadataResponse(name=SERVER_NAME, version=self._version, extensions=EXTENSIONS)

    def ModelMetadata(  # noqa: N802 - the protocol's name
        self, request: oip.ModelMetadataRequest, context: grpc.ServicerContext
    ) -> oip.ModelMetadataResponse:
        """Tensors and provenance of one model."""
        del context
        return metadata_from_description(self._runner.describe(request.name, request.version))

    def ModelInfer(  # noqa: N802 - the protocol's name
        self, request: oip.ModelInferRequest, context: grpc.ServicerContext
    ) -> oip.ModelInferResponse:
        """Run one model; nothing is computed for a caller who has gone."""
        if not context.is_active():
            raise InferenceUnavailableError("The caller has gone.")
        answer = self._runner.run(request.model_name, request.model_version, arrays_from_request(request))
        return response_from_outputs(request, answer.outputs, answer.provenance)

    def RepositoryIndex(  # noqa: N802 - the protocol's name
        self, request: oip.RepositoryIndexRequest, context: grpc.ServicerContext
    ) -> oip.RepositoryIndexResponse:
        """Every model that is served; a model that is not ready is not in memory at all."""
        del request, context
        models = [
            oip.RepositoryIndexResponse.ModelIndex(
                name=model.name, version=str(model.provenance.release), state="READY"
            )
            for model in self._runner.served()
        ]
        return oip.RepositoryIndexResponse(models=models)
