"""`insite drain`: waits until no study is under way, before the services are stopped for a change."""

import time

from appliance.domain.lifecycle import OPEN_STATES, StudyState
from appliance.settings import Settings
from appliance.storage.ledger import SqlLedger

POLL_SECONDS = 0.5
WAITS_FOR_PEERS = StudyState.DELIVERING
"""A peer that is away may stay so for hours; what it has not got is sent after the change."""


def drained(settings: Settings, seconds: float) -> int:
    """Wait until no study is received, analysed or reported.

    Returns:
        How many still are after `seconds`; they are taken up again at the next start.
    """
    if not settings.ledger_file.exists():
        return 0
    deadline = time.monotonic() + seconds
    with SqlLedger.open(settings.ledger_file) as ledger:
        while True:
            counts = ledger.counts()
            under_way = sum(counts.get(state.value, 0) for state in OPEN_STATES - {WAITS_FOR_PEERS})
            if under_way == 0 or time.monotonic() >= deadline:
                return under_way
            time.sleep(POLL_SECONDS)
