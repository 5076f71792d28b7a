"""One line of the doctor: what was looked at, how it stands, what to do."""

import enum
from dataclasses import dataclass

from appliance.domain.errors import InsiteError


class Health(enum.Enum):
    """OK; worth a look, while the appliance does its work; or it does not do its work."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Check:
    """What one look found; `way_forward` is empty where nothing is to be done."""

    name: str
    health: Health
    sentence: str
    way_forward: str = ""


def ok(name: str, sentence: str) -> Check:
    """All is well."""
    return Check(name, Health.OK, sentence)


def warning(name: str, sentence: str, way_forward: str) -> Check:
    """Worth a look."""
    return Check(name, Health.WARNING, sentence, way_forward)


def failed(name: str, sentence: str, way_forward: str) -> Check:
    """Not in order."""
    return Check(name, Health.FAILED, sentence, way_forward)


def failed_by(name: str, error: InsiteError) -> Check:
    """Not in order, in an error's own words."""
    return Check(name, Health.FAILED, error.message, error.way_forward)
