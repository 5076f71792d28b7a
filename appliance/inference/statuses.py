"""Errors as gRPC status codes and back: the one table, and the guard around the service that applies it."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc

from appliance.domain.errors import (
    DeadlineError,
    EngineFileError,
    InferenceError,
    InferenceUnavailableError,
    InsiteError,
    InvalidTensorError,
    ManifestError,
    NotOfferedError,
    OverloadedError,
    PackContentError,
    PackError,
    RegionAccessError,
    RegionExistsError,
    RegionFullError,
    RegionRangeError,
    SignatureError,
    TooManyRegionsError,
    UnknownModelError,
    UnknownRegionError,
)
from appliance.telemetry import Logger

STATUS_OF_ERROR: tuple[tuple[type[InsiteError], grpc.StatusCode], ...] = (
    (UnknownModelError, grpc.StatusCode.NOT_FOUND),
    (InvalidTensorError, grpc.StatusCode.INVALID_ARGUMENT),
    (OverloadedError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (DeadlineError, grpc.StatusCode.DEADLINE_EXCEEDED),
    (NotOfferedError, grpc.StatusCode.UNIMPLEMENTED),
    (UnknownRegionError, grpc.StatusCode.NOT_FOUND),
    (RegionExistsError, grpc.StatusCode.ALREADY_EXISTS),
    (TooManyRegionsError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (RegionAccessError, grpc.StatusCode.PERMISSION_DENIED),
    (RegionRangeError, grpc.StatusCode.OUT_OF_RANGE),
    (RegionFullError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (SignatureError, grpc.StatusCode.PERMISSION_DENIED),
    (ManifestError, grpc.StatusCode.DATA_LOSS),
    (EngineFileError, grpc.StatusCode.FAILED_PRECONDITION),
    (PackContentError, grpc.StatusCode.DATA_LOSS),
    (PackError, grpc.StatusCode.FAILED_PRECONDITION),
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

LONGEST_SENTENCE = 1000
"""Characters: a hostile request's names come back in sentences, and a header of gRPC holds 8 KiB."""

LONGEST_ID = 100
"""Characters of a request's identifier in the log; a client may send megabytes."""

RETRY_AFTER, PUSHBACK = "retry-after-ms", "grpc-retry-pushback-ms"
"""Trailing metadata of RESOURCE_EXHAUSTED: our hint, and the one that gRPC's own retries obey (gRFC A6)."""


def error_from_status(code: grpc.StatusCode, details: str, what: str) -> InferenceError:
    """The error that a failed call stands for.

    Args:
        what: What was asked, for the error's first sentence.
    """
    kind = ERROR_OF_STATUS.get(code, InferenceError)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and _TOO_LARGE in details:
        kind = InvalidTensorError
    return kind(f"{what} failed: {details or code.name}", WAYS_FORWARD[kind])


def told(error: InsiteError) -> str:
    """What a client and the log may know of an error: our own sentences, no longer than gRPC's headers carry."""
    return _cut(str(error), LONGEST_SENTENCE)


def id_of(request: Any) -> str:
    """A request's identifier for the log; empty where it has none."""
    return _cut(str(getattr(request, "id", "")), LONGEST_ID)


class Guarded:
    """A servicer whose every call that raises ends with the code of its error, and is logged.

    A client is told our own sentences; the text of an unforeseen exception goes to the log only.

    Args:
        servicer: Its methods are coroutines of (request or requests, context).
        methods: Their names.
    """

    def __init__(self, servicer: Any, methods: Sequence[str], log: Logger) -> None:
        for name in methods:
            setattr(self, name, _guarded(getattr(servicer, name), name, log))


def _guarded(
    behaviour: Callable[[Any, Any], Awaitable[Any]], method: str, log: Logger
) -> Callable[[Any, "grpc.aio.ServicerContext[Any, Any]"], Awaitable[Any]]:
    async def answer(request: Any, context: "grpc.aio.ServicerContext[Any, Any]") -> Any:
        try:
            return await behaviour(request, context)
        except InsiteError as error:
            code = next(code for kind, code in STATUS_OF_ERROR if isinstance(error, kind))
            sentence = told(error)
            log.warning("call refused", method=method, id=id_of(request), code=code.name, error=sentence)
            if isinstance(error, OverloadedError):
                hint = str(int(error.retry_after_seconds * 1000))
                context.set_trailing_metadata(((RETRY_AFTER, hint), (PUSHBACK, hint)))
        except Exception:  # the top of a call: logged whole, counted by its code, told as nothing
            code, sentence = grpc.StatusCode.INTERNAL, "The daemon failed; its log says why."
            log.exception("call failed", method=method, id=id_of(request))
        return await context.abort(code, sentence)

    return answer


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[:longest]} …"
