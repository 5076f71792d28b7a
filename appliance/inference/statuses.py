"""Errors as gRPC status codes and back: the one table, and the server's interceptor that applies it."""

from collections.abc import Callable
from typing import Any, TypeAlias

import grpc

from appliance.domain.errors import (
    InferenceError,
    InferenceUnavailableError,
    InsiteError,
    InvalidTensorError,
    UnknownModelError,
)
from appliance.telemetry import Logger

STATUS_OF_ERROR: tuple[tuple[type[InsiteError], grpc.StatusCode], ...] = (
    (UnknownModelError, grpc.StatusCode.NOT_FOUND),
    (InvalidTensorError, grpc.StatusCode.INVALID_ARGUMENT),
    (InferenceUnavailableError, grpc.StatusCode.UNAVAILABLE),
    (InsiteError, grpc.StatusCode.INTERNAL),
)
"""The first class that fits gives the code."""

ERROR_OF_STATUS: dict[grpc.StatusCode, type[InferenceError]] = {
    grpc.StatusCode.NOT_FOUND: UnknownModelError,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidTensorError,
    grpc.StatusCode.UNAVAILABLE: InferenceUnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: InferenceUnavailableError,
    grpc.StatusCode.CANCELLED: InferenceUnavailableError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: InferenceUnavailableError,
}
"""Any other code is an `InferenceError`."""

WAYS_FORWARD: dict[type[InferenceError], str] = {
    UnknownModelError: "`insite status` lists what is served and what was refused.",
    InvalidTensorError: "Ask for the model's metadata.",
    InferenceUnavailableError: "Try again; if it stays away, read the inference daemon's log.",
    InferenceError: "Read the inference daemon's log.",
}

_TOO_LARGE = "larger than max"
"""How gRPC says that a message is over the server's limit: RESOURCE_EXHAUSTED, as for an overload."""

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
"""Quoted: only the stubs know that the class is generic."""


def error_from_status(code: grpc.StatusCode, details: str, what: str) -> InferenceError:
    """The error that a failed call stands for.

    Args:
        what: What was asked, for the error's first sentence.
    """
    kind = ERROR_OF_STATUS.get(code, InferenceError)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and _TOO_LARGE in details:
        kind = InvalidTensorError
    return kind(f"{what} failed: {details or code.name}", WAYS_FORWARD[kind])


class StatusInterceptor(grpc.ServerInterceptor):  # type: ignore[type-arg]
    """Ends every call of one service that raised with the code of its error, and logs it.

    A client is told our own sentences; the text of an unforeseen exception goes to the log only.

    Args:
        service: Full name of the service; others (health, reflection) answer for themselves.
    """

    def __init__(self, service: str, log: Logger) -> None:
        self._prefix = f"/{service}/"
        self._log = log

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], "Handler | None"],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        """Wrap the handler of one call."""
        handler = continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or handler.unary_unary is None or not method.startswith(self._prefix):
            return handler
        return grpc.unary_unary_rpc_method_handler(
            self._guarded(handler.unary_unary, method.removeprefix(self._prefix)),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _guarded(self, behaviour: Callable[..., Any], method: str) -> Callable[[Any, grpc.ServicerContext], Any]:
        def answer(request: Any, context: grpc.ServicerContext) -> Any:
            try:
                return behaviour(request, context)
            except InsiteError as error:
                code = next(code for kind, code in STATUS_OF_ERROR if isinstance(error, kind))
                self._log.warning("call refused", method=method, code=code.name, error=str(error))
                sentence = str(error)
            except Exception:  # noqa: BLE001 - the top of a call: logged whole, counted by its code, told as nothing
                code, sentence = grpc.StatusCode.INTERNAL, "The daemon failed; its log says why."
                self._log.exception("call failed", method=method)
            return context.abort(code, sentence)

        return answer
