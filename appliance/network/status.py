"""Which DICOM status answers which error of ours, and what the sender may read beside it.

PS3.4 B.2.3 and GG.4.2 (Storage), PS3.7 annex C (general). The comment of a status goes to the peer: no exception text,
no patient data, at most 64 characters (PS3.7 C.5).
"""

from dataclasses import dataclass

from appliance.domain.errors import (
    DataSetMismatchError,
    IdentityConflictError,
    InputError,
    InsiteError,
    StorageFullError,
)

SUCCESS = 0x0000
PROCESSING_FAILURE = 0x0110
DUPLICATE_INSTANCE = 0x0111
OUT_OF_RESOURCES = 0xA700
MISMATCH = 0xA900
CANNOT_UNDERSTAND = 0xC000
WARNING = 0xB000
SOP_CLASS_NOT_SUPPORTED = 0x0122


@dataclass(frozen=True, slots=True)
class Answer:
    """A status with its comment."""

    status: int
    comment: str


_ANSWERS: tuple[tuple[type[Exception], Answer], ...] = (
    (StorageFullError, Answer(OUT_OF_RESOURCES, "Storage is full, try again later")),
    (IdentityConflictError, Answer(DUPLICATE_INSTANCE, "SOP instance is known with other content")),
    (DataSetMismatchError, Answer(MISMATCH, "Data set differs from the request's identifiers")),
    (InputError, Answer(CANNOT_UNDERSTAND, "Data set can't be read")),
    (InsiteError, Answer(PROCESSING_FAILURE, "Storage failed, try again later")),
)
"""The first row whose type fits counts."""


def answer_for(error: Exception) -> Answer:
    """The answer to a C-STORE request that failed with this error."""
    found = next((answer for kind, answer in _ANSWERS if isinstance(error, kind)), None)
    return found or Answer(PROCESSING_FAILURE, "Internal error, see the receiver's log")


def is_taken(status: int) -> bool:
    """Whether a peer's status means that it has the instance: Success, a warning (B000, B006, B007), known before."""
    return status in {SUCCESS, DUPLICATE_INSTANCE} or _class_of(status) == WARNING


def is_permanent(status: int) -> bool:
    """Whether sending the same again is pointless: SOP class not supported, mismatch, cannot understand."""
    return status == SOP_CLASS_NOT_SUPPORTED or status & 0xFF00 == MISMATCH or _class_of(status) == CANNOT_UNDERSTAND


def _class_of(status: int) -> int:
    return status & 0xF000
