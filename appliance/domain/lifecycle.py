"""The life of a study revision and of a delivery, as tables: state x event -> next state."""

import enum

from appliance.domain.errors import TransitionError


class StudyState(enum.Enum):
    """Where one revision of a study stands."""

    RECEIVING = "receiving"
    QUEUED = "queued"
    ANALYSING = "analysing"
    REPORTING = "reporting"
    DELIVERING = "delivering"
    DONE = "done"
    UNDELIVERED = "undelivered"
    FAILED = "failed"
    SUPERSEDED = "superseded"


class StudyEvent(enum.Enum):
    """What happens to a revision."""

    IMAGE_ARRIVED = "image-arrived"
    SETTLED = "settled"
    STARTED = "started"
    ANALYSED = "analysed"
    REPORTED = "reported"
    DELIVERED = "delivered"
    GAVE_UP = "gave-up"
    FAILED = "failed"
    SUPERSEDED = "superseded"
    RETRIED = "retried"


_S, _E = StudyState, StudyEvent

STUDY_TABLE: dict[tuple[StudyState, StudyEvent], StudyState] = {
    (_S.RECEIVING, _E.IMAGE_ARRIVED): _S.RECEIVING,
    (_S.RECEIVING, _E.SETTLED): _S.QUEUED,
    (_S.QUEUED, _E.STARTED): _S.ANALYSING,
    (_S.ANALYSING, _E.STARTED): _S.ANALYSING,
    (_S.ANALYSING, _E.ANALYSED): _S.REPORTING,
    (_S.REPORTING, _E.ANALYSED): _S.REPORTING,
    (_S.REPORTING, _E.REPORTED): _S.DELIVERING,
    (_S.DELIVERING, _E.REPORTED): _S.DELIVERING,
    (_S.DELIVERING, _E.DELIVERED): _S.DONE,
    (_S.DONE, _E.DELIVERED): _S.DONE,
    (_S.DELIVERING, _E.GAVE_UP): _S.UNDELIVERED,
    (_S.QUEUED, _E.FAILED): _S.FAILED,
    (_S.ANALYSING, _E.FAILED): _S.FAILED,
    (_S.REPORTING, _E.FAILED): _S.FAILED,
    (_S.DELIVERING, _E.FAILED): _S.FAILED,
    (_S.QUEUED, _E.SUPERSEDED): _S.SUPERSEDED,
    (_S.ANALYSING, _E.SUPERSEDED): _S.SUPERSEDED,
    (_S.REPORTING, _E.SUPERSEDED): _S.SUPERSEDED,
    (_S.SUPERSEDED, _E.SUPERSEDED): _S.SUPERSEDED,
    (_S.FAILED, _E.RETRIED): _S.RECEIVING,
    (_S.UNDELIVERED, _E.RETRIED): _S.RECEIVING,
    (_S.DONE, _E.RETRIED): _S.RECEIVING,
}
"""An event repeated by a resumed step leaves the state as it is; what is absent is an error."""

OPEN_STATES = frozenset({_S.RECEIVING, _S.QUEUED, _S.ANALYSING, _S.REPORTING, _S.DELIVERING})
"""States in which work is still due."""


def next_state(state: StudyState, event: StudyEvent) -> StudyState:
    """The state after an event.

    Raises:
        TransitionError: The table has no such row.
    """
    try:
        return STUDY_TABLE[state, event]
    except KeyError:
        raise TransitionError(f"A study that is {state.value} can't take the event {event.value}.") from None


class DeliveryState(enum.Enum):
    """Where one set of results for one destination stands."""

    PENDING = "pending"
    SENT = "sent"
    DEAD = "dead"
