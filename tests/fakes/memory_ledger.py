"""A ledger in memory: the `Ledger` Protocol without a database, for tests of whatever reads or writes one."""

# ruff: noqa: D102 - the Protocol says what each method does

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime

from appliance.domain.errors import IdentityConflictError, UnknownStudyError
from appliance.domain.findings import ResultObject, StudyAnalysis
from appliance.domain.instance import StudyKey, key_of
from appliance.domain.lifecycle import StudyEvent, StudyState, next_state
from appliance.domain.ports import DeliveryRecord, Incident, StoredInstance, StudyRecord, Transaction


@dataclass
class _Revision:
    record: StudyRecord
    instances: list[StoredInstance] = field(default_factory=list)
    analysis: StudyAnalysis | None = None
    objects: tuple[ResultObject, ...] = ()
    deliveries: dict[str, DeliveryRecord] = field(default_factory=dict)


class _NoTransaction:
    connection = None


class MemoryLedger:
    """Behaves like the ledger that the Protocol describes, and forgets everything."""

    def __init__(self) -> None:
        self._studies: dict[str, list[_Revision]] = {}
        self._incidents: list[Incident] = []

    def add_instance(self, stored: StoredInstance) -> bool:
        identity = stored.instance.identity
        key = key_of(stored.instance)
        for known, token in self._all_instances():
            if known.instance.identity.sop_instance_uid == identity.sop_instance_uid:
                if known.instance.identity.content_sha256 == identity.content_sha256 and token == key.token:
                    return False
                raise IdentityConflictError(f"{identity.sop_instance_uid} is known with other content.")
        if stored.own_result:
            return True
        revisions = self._studies.setdefault(key.token, [])
        if revisions and revisions[-1].record.state is StudyState.RECEIVING:
            self._extend(revisions[-1], stored)
        else:
            earlier = list(revisions[-1].instances) if revisions else []
            revisions.append(_revision(key, len(revisions) + 1, earlier, stored))
        return True

    def add_incident(self, incident: Incident) -> None:
        self._incidents.append(incident)

    def settled(self, quiet_since: datetime) -> Sequence[StudyRecord]:
        return [
            record
            for record in self.studies(limit=10**9)
            if record.state is StudyState.RECEIVING and record.last_received_at <= quiet_since
        ]

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        yield _NoTransaction()

    def apply(
        self, token: str, revision: int, event: StudyEvent, *, reason: str = "", within: Transaction | None = None
    ) -> StudyState:
        found = self._revision(token, revision)
        state = next_state(found.record.state, event)
        if event is StudyEvent.RETRIED:
            again = replace(found.record, revision=revision + 1, state=state, reason="")
            self._studies[token].append(_Revision(again, list(found.instances)))
        else:
            found.record = replace(found.record, state=state, reason=reason)
        return state

    def study(self, token: str, revision: int | None = None) -> StudyRecord:
        return self._revision(token, revision).record

    def studies(self, limit: int = 200, offset: int = 0) -> Sequence[StudyRecord]:
        current = [revisions[-1].record for revisions in self._studies.values()]
        current.sort(key=lambda record: (record.last_received_at, record.token), reverse=True)
        return current[offset : offset + limit]

    def revisions(self, token: str) -> Sequence[StudyRecord]:
        self._revision(token, None)
        return [revision.record for revision in self._studies[token]]

    def instances(self, token: str, revision: int | None = None) -> Sequence[StoredInstance]:
        found = self._revision(token, revision).instances
        return sorted(found, key=lambda stored: stored.instance.identity.sop_instance_uid)

    def record_analysis(self, token: str, revision: int, analysis: StudyAnalysis) -> None:
        outcomes = tuple(replace(outcome, mask=None) for outcome in analysis.outcomes)
        self._revision(token, revision).analysis = replace(analysis, outcomes=outcomes)

    def analysis(self, token: str, revision: int) -> StudyAnalysis | None:
        return self._revision(token, revision).analysis

    def record_objects(self, token: str, revision: int, objects: Sequence[ResultObject]) -> None:
        self._revision(token, revision).objects = tuple(objects)

    def objects(self, token: str, revision: int) -> Sequence[ResultObject]:
        return self._revision(token, revision).objects

    def record_delivery(self, record: DeliveryRecord) -> None:
        self._revision(record.token, record.revision).deliveries[record.destination] = record

    def deliveries(self, token: str, revision: int) -> Sequence[DeliveryRecord]:
        return list(self._revision(token, revision).deliveries.values())

    def incidents(self, study_uid: str | None = None, limit: int = 200) -> Sequence[Incident]:
        fitting = [each for each in self._incidents if study_uid is None or each.study_uid == study_uid]
        return sorted(fitting, key=lambda each: each.at, reverse=True)[:limit]

    def counts(self) -> Mapping[str, int]:
        return Counter(record.state.value for record in self.studies(limit=10**9))

    def _all_instances(self) -> Iterator[tuple[StoredInstance, str]]:
        for token, revisions in self._studies.items():
            for stored in revisions[-1].instances:
                yield stored, token

    def _revision(self, token: str, number: int | None) -> _Revision:
        revisions = self._studies.get(token, [])
        if not revisions or (number is not None and not 1 <= number <= len(revisions)):
            raise UnknownStudyError(f"There is no study {token}.")
        return revisions[-1 if number is None else number - 1]

    def _extend(self, revision: _Revision, stored: StoredInstance) -> None:
        revision.instances.append(stored)
        revision.record = replace(
            revision.record,
            last_received_at=max(revision.record.last_received_at, stored.received_at),
            images=len(revision.instances),
            modalities=_modalities(revision.instances),
        )


def _revision(key: StudyKey, number: int, earlier: list[StoredInstance], stored: StoredInstance) -> _Revision:
    instances = [*earlier, stored]
    record = StudyRecord(
        token=key.token,
        key=key,
        revision=number,
        state=StudyState.RECEIVING,
        reason="",
        first_received_at=min(each.received_at for each in instances),
        last_received_at=max(each.received_at for each in instances),
        images=len(instances),
        patient_name=stored.instance.patient.name,
        modalities=_modalities(instances),
        description=stored.instance.image.description,
    )
    return _Revision(record, instances)


def _modalities(instances: Sequence[StoredInstance]) -> tuple[str, ...]:
    return tuple(sorted({each.instance.image.modality for each in instances if each.instance.image.modality}))
