"""Puts complete studies to work: no new image for a while, and a study is taken up, in one transaction."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Protocol

from appliance.domain.errors import TransitionError
from appliance.domain.lifecycle import StudyEvent
from appliance.domain.ports import Ledger, StudyRecord, Transaction
from appliance.pipeline.hold import Hold
from appliance.telemetry import logger_for


class WorkQueue(Protocol):
    """Where settled revisions are put to work."""

    def enqueue(self, within: Transaction, token: str, revision: int) -> None:
        """Put a revision to work at the transaction's commit.

        Raises:
            TransitionError: An earlier revision of the study is still in work.
        """
        ...


class Assembler:
    """Sweeps the ledger for complete studies.

    Args:
        quiet: How long no image of a study may have arrived.
        clock: The present time, aware.
        hold: Which studies wait for the end of a proof.
    """

    def __init__(
        self, ledger: Ledger, queue: WorkQueue, quiet: timedelta, clock: Callable[[], datetime], hold: Hold
    ) -> None:
        self._hold = hold
        self._ledger = ledger
        self._queue = queue
        self._quiet = quiet
        self._clock = clock
        self._log = logger_for("pipeline")

    def sweep(self) -> int:
        """Put every settled revision to work; one whose predecessor is still in work waits for a later sweep.

        Returns:
            How many were put to work.
        """
        settled = self._ledger.settled(self._clock() - self._quiet)
        return sum(self._settle(record) for record in settled if not self._hold.keeps(record.key))

    def _settle(self, record: StudyRecord) -> bool:
        try:
            with self._ledger.transaction() as transaction:
                self._ledger.apply(record.token, record.revision, StudyEvent.SETTLED, within=transaction)
                self._queue.enqueue(transaction, record.token, record.revision)
        except TransitionError as busy:
            self._log.debug("study waits", study=record.token, revision=record.revision, reason=str(busy))
            return False
        self._log.info("study settled", study=record.token, revision=record.revision, images=record.images)
        return True
