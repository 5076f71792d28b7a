"""The ledger: the truth about studies, results and deliveries, in one SQLite file shared by the daemons."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sqlalchemy import ColumnElement, Connection, Engine, Select, delete, func, insert, select

from appliance.domain.errors import UnknownStudyError
from appliance.domain.findings import ResultObject, StudyAnalysis
from appliance.domain.lifecycle import StudyEvent, StudyState
from appliance.domain.ports import DeliveryRecord, Incident, StoredInstance, StudyRecord, Transaction
from appliance.storage import rows, writes
from appliance.storage.database import open_database, read, storage_errors, write
from appliance.storage.schema import ANALYSES, DELIVERIES, INCIDENTS, INSTANCES, OBJECTS, REVISIONS, STUDIES


@dataclass(frozen=True, slots=True)
class SqlTransaction:
    """An open writing transaction; `connection` is a SQLAlchemy `Connection`."""

    connection: Connection


class SqlLedger:
    """Implements `Ledger` on SQLite; safe for threads, and for several processes on one file."""

    def __init__(self, engine: Engine, file: Path) -> None:
        self._engine = engine
        self._file = file

    @classmethod
    def open(cls, file: Path) -> Self:
        """Open the ledger, making it where it is missing.

        Raises:
            StorageError: It can't be opened, or a later version wrote it.
        """
        return cls(open_database(file), file)

    def close(self) -> None:
        """Give back every connection."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """A writing transaction that commits on exit and rolls back on an exception."""
        with self._write() as connection:
            yield SqlTransaction(connection)

    def add_instance(self, stored: StoredInstance) -> bool:
        """Record an instance; see `Ledger.add_instance`."""
        with self._write() as connection:
            return writes.add_instance(connection, stored)

    def add_incident(self, incident: Incident) -> None:
        """Record something that could not be used."""
        values = {
            "at": rows.text_from_time(incident.at),
            "study_uid": incident.study_uid,
            "what": incident.what,
            "sentence": incident.sentence,
        }
        with self._write() as connection:
            connection.execute(insert(INCIDENTS).values(**values))

    def apply(
        self,
        token: str,
        revision: int,
        event: StudyEvent,
        *,
        reason: str = "",
        within: Transaction | None = None,
    ) -> StudyState:
        """Move a revision along the lifecycle table; RETRIED opens a new revision. See `Ledger.apply`."""
        if within is not None:
            return writes.apply_event(within.connection, token, revision, event, reason)
        with self._write() as connection:
            return writes.apply_event(connection, token, revision, event, reason)

    def record_analysis(self, token: str, revision: int, analysis: StudyAnalysis) -> None:
        """Keep the outcomes of a revision."""
        values = {"token": token, "revision": revision, "analysis": rows.json_from_analysis(analysis)}
        with self._write() as connection:
            writes.put(connection, ANALYSES, values)

    def record_objects(self, token: str, revision: int, objects: Sequence[ResultObject]) -> None:
        """Keep the result objects of a revision, in place of those kept before."""
        with self._write() as connection:
            connection.execute(delete(OBJECTS).where(OBJECTS.c.token == token, OBJECTS.c.revision == revision))
            for position, result in enumerate(objects):
                connection.execute(
                    insert(OBJECTS).values(
                        token=token,
                        revision=revision,
                        position=position,
                        kind=result.kind,
                        sop_instance_uid=result.sop_instance_uid,
                        sop_class_uid=result.sop_class_uid,
                        path=result.path,
                    )
                )

    def record_delivery(self, record: DeliveryRecord) -> None:
        """Keep the state of a delivery."""
        values = {
            "token": record.token,
            "revision": record.revision,
            "destination": record.destination,
            "state": record.state.value,
            "attempts": record.attempts,
            "last_error": record.last_error,
        }
        with self._write() as connection:
            writes.put(connection, DELIVERIES, values)

    def settled(self, quiet_since: datetime) -> Sequence[StudyRecord]:
        """Current revisions in RECEIVING whose newest image arrived at or before `quiet_since`."""
        query = _current().where(
            REVISIONS.c.state == StudyState.RECEIVING.value,
            REVISIONS.c.last_received_at <= rows.text_from_time(quiet_since),
        )
        with self._read() as connection:
            return _records(connection, query.order_by(REVISIONS.c.last_received_at))

    def study(self, token: str, revision: int | None = None) -> StudyRecord:
        """One revision; the current one when `revision` is None."""
        query = _current() if revision is None else _revisions().where(REVISIONS.c.revision == revision)
        with self._read() as connection:
            found = _records(connection, query.where(REVISIONS.c.token == token))
        if not found:
            raise UnknownStudyError(
                f"The ledger has no study {token}" + (f" at revision {revision}." if revision else ".")
            )
        return found[0]

    def studies(self, limit: int = 200, offset: int = 0) -> Sequence[StudyRecord]:
        """Current revisions, newest first."""
        newest = REVISIONS.c.last_received_at.desc(), REVISIONS.c.token
        with self._read() as connection:
            return _records(connection, _current().order_by(*newest).limit(limit).offset(offset))

    def revisions(self, token: str) -> Sequence[StudyRecord]:
        """All revisions of a study, oldest first."""
        with self._read() as connection:
            found = _records(connection, _revisions().where(REVISIONS.c.token == token).order_by(REVISIONS.c.revision))
        if not found:
            raise UnknownStudyError(f"The ledger has no study {token}.")
        return found

    def instances(self, token: str, revision: int | None = None) -> Sequence[StoredInstance]:
        """The images of a revision, sorted by SOP Instance UID; own results left out."""
        query = select(INSTANCES).where(_held(token, revision)).order_by(INSTANCES.c.sop_instance_uid)
        with self._read() as connection:
            return [rows.stored_from_row(row) for row in connection.execute(query)]

    def analysis(self, token: str, revision: int) -> StudyAnalysis | None:
        """The recorded outcomes, without masks."""
        query = select(ANALYSES.c.analysis).where(ANALYSES.c.token == token, ANALYSES.c.revision == revision)
        with self._read() as connection:
            text = connection.execute(query).scalar_one_or_none()
        return None if text is None else rows.analysis_from_json(text)

    def objects(self, token: str, revision: int) -> Sequence[ResultObject]:
        """The result objects of a revision."""
        query = select(OBJECTS).where(OBJECTS.c.token == token, OBJECTS.c.revision == revision)
        with self._read() as connection:
            return [rows.object_from_row(row) for row in connection.execute(query.order_by(OBJECTS.c.position))]

    def deliveries(self, token: str, revision: int) -> Sequence[DeliveryRecord]:
        """All deliveries of a revision."""
        query = select(DELIVERIES).where(DELIVERIES.c.token == token, DELIVERIES.c.revision == revision)
        with self._read() as connection:
            return [rows.delivery_from_row(row) for row in connection.execute(query.order_by(DELIVERIES.c.destination))]

    def incidents(self, study_uid: str | None = None, limit: int = 200) -> Sequence[Incident]:
        """Incidents, newest first, of one study or of all."""
        query = select(INCIDENTS).order_by(INCIDENTS.c.id.desc()).limit(limit)
        if study_uid is not None:
            query = query.where(INCIDENTS.c.study_uid == study_uid)
        with self._read() as connection:
            return [rows.incident_from_row(row) for row in connection.execute(query)]

    def counts(self) -> Mapping[str, int]:
        """How many current revisions are in each state."""
        current = _current().subquery()
        query = select(current.c.state, func.count().label("studies")).group_by(current.c.state)
        with self._read() as connection:
            return {row.state: row.studies for row in connection.execute(query)}

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        with storage_errors(self._file), write(self._engine) as connection:
            yield connection

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        with storage_errors(self._file), read(self._engine) as connection:
            yield connection


def _revisions() -> Select[Any]:
    return select(REVISIONS, STUDIES.c.study_uid, STUDIES.c.patient_id, STUDIES.c.issuer).join(
        STUDIES, STUDIES.c.token == REVISIONS.c.token
    )


def _current() -> Select[Any]:
    return _revisions().where(STUDIES.c.revision == REVISIONS.c.revision)


def _held(token: str, revision: int | None) -> ColumnElement[bool]:
    held = (INSTANCES.c.token == token) & INSTANCES.c.own_result.is_(False)
    return held if revision is None else held & (INSTANCES.c.revision <= revision)


def _records(connection: Connection, query: Select[Any]) -> list[StudyRecord]:
    summary = select(
        func.count().label("images"),
        func.group_concat(INSTANCES.c.modality.distinct()).label("modalities"),
        func.max(INSTANCES.c.patient_name).label("patient_name"),
        func.max(INSTANCES.c.description).label("description"),
    )
    return [
        rows.study_from_rows(row, connection.execute(summary.where(_held(row.token, row.revision))).one())
        for row in connection.execute(query).all()
    ]
