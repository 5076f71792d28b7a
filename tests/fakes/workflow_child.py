"""A process that runs the workflow engine on scripted steps, so that a test can see it die.

Run as `python -m tests.fakes.workflow_child '<JSON>'`; keys are those of `Order`.
"""

import json
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from appliance.workflow import engine
from appliance.workflow.engine import Pace, StudyWorkflows
from tests.fakes.steps import RecordedSteps
from tests.fakes.transactions import begun

CLOSING_SECONDS = 30.0


@dataclass
class Order:
    """What the child does: studies to put to work, where to die, which call to wait for before it ends cleanly."""

    folder: str
    put: list[str] = field(default_factory=list)
    die_in: str = ""
    deaths: int = 1
    recoveries: int = engine.MAX_RECOVERIES
    until: list[str] = field(default_factory=list)
    times: int = 1
    connects: str = ""


def main(order: Order) -> None:
    """Run the engine until the awaited call, or until the steps kill this process."""
    if order.connects:
        sys.addaudithook(lambda event, arguments: _note(order.connects, event, arguments))
    engine.MAX_RECOVERIES = order.recoveries
    folder = Path(order.folder)
    file = folder / "ledger.db"
    file.touch(mode=0o600)
    steps = RecordedSteps(folder / "journal", due=["pacs"], die_in=order.die_in, deaths=order.deaths)
    with StudyWorkflows(file, steps, ("pacs",), Pace(0.05, 2, 0.05)) as workflows:
        for token in order.put:
            with begun(file) as transaction:
                workflows.enqueue(transaction, token, 1)
        deadline = time.monotonic() + CLOSING_SECONDS
        while not _called(steps, order) and time.monotonic() < deadline:
            workflows.tend()
            threading.Event().wait(0.1)


def _called(steps: RecordedSteps, order: Order) -> bool:
    return bool(order.until) and len(steps.calls(*order.until)) >= order.times


def _note(file: str, event: str, arguments: tuple[Any, ...]) -> None:
    if event in {"socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"}:
        with Path(file).open("a", encoding="utf-8") as stream:
            stream.write(f"{event} {arguments[1:]!r}\n")


if __name__ == "__main__":
    main(Order(**json.loads(sys.argv[1])))
