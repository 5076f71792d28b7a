"""Background work that keeps the daemon busy while something else is measured, and the proof that it did.

A load that died, or that was never answered, would let an idle box pass for a busy one. So the daemon's own counter is
read before and after: without answers to all clients of the load there is no figure.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from appliance.daemons.bench_peers import Running, child_running
from appliance.domain.errors import InsiteError
from appliance.inference.client import OipClient

LOAD = "appliance.inference.bench_load"
WAIT_SECONDS = 60.0


@contextmanager
def busy(daemon: Running, order: Mapping[str, Any], wait_seconds: float = WAIT_SECONDS) -> Iterator[Callable[[], int]]:
    """Run a load from when all its clients are answered; on the way out, see that they still are.

    Args:
        order: Of `bench_load`; it must last longer than what is measured.

    Yields:
        How many requests for the load's model the daemon has answered, the load's and others'.

    Raises:
        InsiteError: The load ended early, or the daemon answers it no more.
    """
    with OipClient(daemon.target, 10) as client, child_running(LOAD, order) as process:

        def answered() -> int:
            return client.answers(order["models"][0])

        def lives() -> bool:
            return process.poll() is None

        # Each client asks once before all begin: one answer more than clients, and all are at work.
        wait_for_answers(answered, lives, int(order["clients"]) + 1, wait_seconds)
        yield answered
        wait_for_answers(answered, lives, int(order["clients"]) + 1, wait_seconds)


def wait_for_answers(answered: Callable[[], int], lives: Callable[[], bool], count: int, seconds: float) -> None:
    """Return when so many more requests were answered.

    Raises:
        InsiteError: Whoever asks has ended, or the time has.
    """
    wanted, deadline = answered() + count, time.monotonic() + seconds
    while answered() < wanted:
        if not lives():
            raise InsiteError("The background load ended while it was needed.", "Run it by hand to see why.")
        if time.monotonic() > deadline:
            raise InsiteError(
                f"The daemon did not answer {count} requests of the background load in {seconds:g} s.",
                "Read the daemon's log.",
            )
        time.sleep(0.05)
    if not lives():
        raise InsiteError("The background load ended while it was needed.", "Run it by hand to see why.")
