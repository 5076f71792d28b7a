"""The words and signs of the pages: one table for each state, so that a colour never stands alone."""

from dataclasses import dataclass

from appliance.domain.findings import TaskOutcome, TaskState
from appliance.domain.lifecycle import DeliveryState, StudyState
from appliance.domain.manifest import TaskKind


@dataclass(frozen=True, slots=True)
class Word:
    """A state as people read it.

    Attributes:
        sign: A character that differs between tones, for those who do not see the colour.
        tone: `busy`, `good`, `bad`, `quiet`: a class of the style sheet.
    """

    text: str
    sign: str
    tone: str
    meaning: str = ""


STUDY_WORDS = {
    StudyState.RECEIVING: Word("Receiving", "…", "busy", "Images are still arriving."),
    StudyState.QUEUED: Word("Waiting", "…", "busy", "The study is complete and waits for its turn."),
    StudyState.ANALYSING: Word("Analysing", "…", "busy", "The tasks look at the images."),
    StudyState.REPORTING: Word("Reporting", "…", "busy", "The result objects are being made."),
    StudyState.DELIVERING: Word("Delivering", "…", "busy", "The results are on their way to the destinations."),
    StudyState.DONE: Word("Done", "✓", "good", "Every destination has the results."),
    StudyState.UNDELIVERED: Word("Not delivered", "!", "bad", "A destination did not take the results."),
    StudyState.FAILED: Word("Failed", "✕", "bad", "The study could not be analysed."),
    StudyState.SUPERSEDED: Word("Superseded", "↷", "quiet", "A later revision of the study replaces this one."),
}
TASK_WORDS = {
    TaskState.RAN: Word("Ran", "✓", "good"),
    TaskState.REFUSED: Word("Refused", "○", "quiet"),
    TaskState.FAILED: Word("Failed", "✕", "bad"),
}
DELIVERY_WORDS = {
    DeliveryState.PENDING: Word("Waiting", "…", "busy"),
    DeliveryState.SENT: Word("Sent", "✓", "good"),
    DeliveryState.DEAD: Word("Given up", "✕", "bad"),
}
PACK_WORDS = {
    "active": Word("Active", "✓", "good"),
    "installed": Word("Stands by", "○", "busy"),
    "shadow": Word("In shadow", "◐", "busy"),
    "refused": Word("Refused", "✕", "bad"),
}
"""By the state that the inference daemon writes."""
AGAIN_WORDS = {
    StudyState.DONE: "Analyse and send again",
    StudyState.UNDELIVERED: "Analyse and send again",
    StudyState.FAILED: "Try again",
}
"""What an administrator may ask for, by state; the lifecycle allows it nowhere else."""


def flags(outcome: TaskOutcome) -> bool:
    """Whether an outcome asks for a look; a guard's "positive" only says that it knows this kind of image."""
    return outcome.kind is TaskKind.CLASSIFICATION and bool(outcome.positive)


def person(name: str) -> str:
    """A DICOM person name (PS3.5 6.2.1) for reading: `Family, Given Middle`, ideographic group after it."""
    groups = [group for group in name.split("=") if group.strip("^ ")]
    return " / ".join(_alphabetic(group) for group in groups) or "(no name)"


def _alphabetic(group: str) -> str:
    family, *others = [part.strip() for part in group.split("^")]
    given = " ".join(part for part in others if part)
    return ", ".join(part for part in (family, given) if part)
