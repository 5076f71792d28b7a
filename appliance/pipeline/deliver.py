"""Sends the results of a study to each destination, and says in the ledger how that stands."""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from appliance.domain.errors import DeliveryError
from appliance.domain.golden_study import is_golden_study
from appliance.domain.lifecycle import DeliveryState, StudyEvent, StudyState
from appliance.domain.ports import DeliveryRecord, Destination, Ledger, Sender
from appliance.telemetry import logger_for


class StudyDelivery:
    """Deliveries of all studies to the configured destinations.

    Args:
        destinations: By name, as configured now.
        attempts: How often a destination is tried before a delivery is dead.
    """

    def __init__(self, ledger: Ledger, sender: Sender, destinations: Mapping[str, Destination], attempts: int) -> None:
        self._ledger = ledger
        self._sender = sender
        self._destinations = dict(destinations)
        self._attempts = attempts
        self._concluding = threading.Lock()
        self._log = logger_for("pipeline")

    def hand_over(self, token: str, revision: int) -> Sequence[str]:
        """Note a delivery for each destination and name those still due; without any, the study is done here.

        A golden study is a trial of this machine: no destination gets its results.
        """
        known = {record.destination: record for record in self._ledger.deliveries(token, revision)}
        golden = is_golden_study(self._ledger.study(token, revision).key)
        for name in () if golden else self._destinations:
            if name not in known:
                self._ledger.record_delivery(DeliveryRecord(token, revision, name, DeliveryState.PENDING, 0, ""))
        self._conclude(token, revision)
        records = self._ledger.deliveries(token, revision)
        return [record.destination for record in records if record.state is DeliveryState.PENDING]

    def deliver(self, token: str, revision: int, name: str, attempt: int) -> bool:
        """Try one destination once.

        Returns:
            False when it has to be tried again later.
        """
        known = self._known(token, revision, name)
        if known is None or known.state is DeliveryState.PENDING:
            state, error = self._try(token, revision, name, attempt)
            self._ledger.record_delivery(DeliveryRecord(token, revision, name, state, attempt, error))
            self._log.info(
                "delivery tried",
                study=token,
                revision=revision,
                destination=name,
                attempt=attempt,
                state=state.value,
                error=error,
            )
            if state is DeliveryState.PENDING:
                return False
        self._conclude(token, revision)
        return True

    def abandon(self, token: str, revision: int, name: str, reason: str) -> None:
        """End a pending delivery as dead."""
        known = self._known(token, revision, name)
        if known is None or known.state is DeliveryState.PENDING:
            attempts = known.attempts if known is not None else 0
            self._ledger.record_delivery(DeliveryRecord(token, revision, name, DeliveryState.DEAD, attempts, reason))
        self._conclude(token, revision)

    def _try(self, token: str, revision: int, name: str, attempt: int) -> tuple[DeliveryState, str]:
        destination = self._destinations.get(name)
        if destination is None:
            return DeliveryState.DEAD, f"Destination {name} is no longer in the settings."
        paths = [Path(result.path) for result in self._ledger.objects(token, revision)]
        missing = [path.name for path in paths if not path.is_file()]
        if missing:
            return DeliveryState.DEAD, f"Result files are missing: {', '.join(missing)}."
        try:
            self._sender.send(destination, paths)
        except DeliveryError as error:
            if error.permanent:
                return DeliveryState.DEAD, str(error)
            if attempt >= self._attempts:
                return DeliveryState.DEAD, f"Given up after {attempt} attempts. {error}"
            return DeliveryState.PENDING, str(error)
        return DeliveryState.SENT, ""

    def _conclude(self, token: str, revision: int) -> None:
        """When every delivery has ended, so has the study; deliveries to several destinations may end at once."""
        with self._concluding:
            if self._ledger.study(token, revision).state is not StudyState.DELIVERING:
                return
            records = self._ledger.deliveries(token, revision)
            if any(record.state is DeliveryState.PENDING for record in records):
                return
            dead = [record for record in records if record.state is DeliveryState.DEAD]
            if dead:
                reason = " ".join(f"{record.destination}: {record.last_error}" for record in dead)
                self._ledger.apply(token, revision, StudyEvent.GAVE_UP, reason=reason)
            else:
                self._ledger.apply(token, revision, StudyEvent.DELIVERED)

    def _known(self, token: str, revision: int, name: str) -> DeliveryRecord | None:
        records = self._ledger.deliveries(token, revision)
        return next((record for record in records if record.destination == name), None)
