"""`insite doctor`: looks at everything that must hold for this installation to do its work, one line each."""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from appliance.daemons import doctor_machine, doctor_services
from appliance.daemons.doctor_check import Check, Health
from appliance.domain.errors import InputError
from appliance.settings import Settings

SIGNS = {Health.OK: "ok     ", Health.WARNING: "WARNING", Health.FAILED: "FAILED "}


def examine(settings: Settings, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> Sequence[Check]:
    """Every check in the order in which a reader would mend things; nothing is changed."""
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)
    return tuple(_looks(settings, clock))


def healthy(found: Sequence[Check]) -> bool:
    """Whether nothing failed; warnings are no failure."""
    return not any(check.health is Health.FAILED for check in found)


def excused(found: Sequence[Check], names: frozenset[str]) -> Sequence[Check]:
    """The same checks; a failure of one of these names is a warning: it was there before a change, so not by it."""
    return [
        replace(check, health=Health.WARNING) if check.health is Health.FAILED and check.name in names else check
        for check in found
    ]


def names_failed_in(report: Path) -> frozenset[str]:
    """The checks that failed in an earlier report (`insite doctor --json`).

    Raises:
        InputError: The file is no such report.
    """
    try:
        checks = json.loads(report.read_text(encoding="utf-8"))["checks"]
        return frozenset(each["name"] for each in checks if each["health"] == Health.FAILED.value)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{report} is no report of the doctor: {error}.", "Make one with --json.") from error


def lines_of(found: Sequence[Check]) -> Iterator[str]:
    """One line a check, the way forward at its end, and a last line that sums up."""
    for check in found:
        yield f"{SIGNS[check.health]} {check.name}: {check.sentence} {check.way_forward}".rstrip()
    number = sum(check.health is Health.FAILED for check in found)
    yield "All is in order." if number == 0 else f"{number} of {len(found)} checks failed."


def as_values(found: Sequence[Check]) -> dict[str, Any]:
    """The same for programs."""
    checks = [
        {"name": each.name, "health": each.health.value, "sentence": each.sentence, "way_forward": each.way_forward}
        for each in found
    ]
    return {"healthy": healthy(found), "checks": checks}


def _looks(settings: Settings, clock: Callable[[], datetime]) -> Iterator[Check]:
    yield from doctor_machine.disk(settings)
    yield from doctor_machine.permissions(settings)
    yield from doctor_machine.firewall()
    yield from doctor_services.packs(settings)
    yield from doctor_services.node(settings)
    yield from doctor_services.worker(settings)
    yield from doctor_services.web(settings)
    yield from doctor_services.queue(settings, clock())
    yield from doctor_services.destinations(settings)
