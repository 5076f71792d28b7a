"""The parameters of a request: how urgent it is, how long it may take, whether it wants a trace; no others."""

from collections.abc import Mapping
from dataclasses import dataclass

from appliance.domain.errors import InvalidTensorError, NotOfferedError
from appliance.inference.generated import open_inference_pb2 as oip
from appliance.inference.scheduler import Priority

TRACE = "insite_trace"
"""A request with this parameter true is told where its time went."""
FINAL_WANTED = "triton_enable_empty_final_response"
FINAL = "triton_final_response"

_SEQUENCES = frozenset({"sequence_id", "sequence_start", "sequence_end"})
_MICROSECONDS = 1e-6


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a request asks for beside its answer; `seconds` from its arrival, None for no limit of its own."""

    priority: Priority = Priority.ROUTINE
    seconds: float | None = None
    trace: bool = False
    final: bool = False


_DEFAULT = Wishes()


def wishes_from_parameters(parameters: Mapping[str, oip.InferParameter]) -> Wishes:
    """Read a request's parameters.

    Raises:
        NotOfferedError: A sequence: no model here keeps state between requests.
        InvalidTensorError: A parameter that is not known, or a value that it does not take.
    """
    if not parameters:
        return _DEFAULT
    unknown = sorted(set(parameters) - {"priority", "timeout", TRACE, FINAL_WANTED})
    if unknown:
        if _SEQUENCES & set(unknown):
            raise NotOfferedError(
                "The parameter sequence_id is not offered: no model here keeps state between requests.",
                "Leave out sequence_id, sequence_start and sequence_end.",
            )
        raise InvalidTensorError(
            f"The parameter {unknown[0]} is not known.", f"Known: priority, timeout, {TRACE}, {FINAL_WANTED}."
        )
    return Wishes(
        _priority(parameters), _seconds(parameters), _flag(parameters, TRACE), _flag(parameters, FINAL_WANTED)
    )


def _priority(parameters: Mapping[str, oip.InferParameter]) -> Priority:
    number = _number(parameters, "priority")
    if number in {None, 0}:
        return Priority.ROUTINE
    try:
        return Priority(number)
    except ValueError:
        raise InvalidTensorError(
            f"The priority is {number}.", "1 is STAT, 2 routine, 3 background; 0 takes the default, routine."
        ) from None


def _seconds(parameters: Mapping[str, oip.InferParameter]) -> float | None:
    number = _number(parameters, "timeout")
    if number is not None and number < 0:
        raise InvalidTensorError(f"The timeout is {number} microseconds.", "Give a positive one, or 0 for none.")
    return number * _MICROSECONDS if number else None


def _number(parameters: Mapping[str, oip.InferParameter], name: str) -> int | None:
    if name not in parameters:
        return None
    parameter = parameters[name]
    kind = parameter.WhichOneof("parameter_choice")
    if kind not in {"int64_param", "uint64_param"}:
        raise InvalidTensorError(f"The parameter {name} is no integer.", "Send it as int64 or uint64.")
    return int(getattr(parameter, kind))


def _flag(parameters: Mapping[str, oip.InferParameter], name: str) -> bool:
    if name not in parameters:
        return False
    if parameters[name].WhichOneof("parameter_choice") != "bool_param":
        raise InvalidTensorError(f"The parameter {name} is no truth value.", "Send it as bool.")
    return parameters[name].bool_param
