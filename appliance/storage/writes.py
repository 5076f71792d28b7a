"""What changes the ledger, each within an open writing transaction."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Table, insert, select, update
from sqlalchemy.dialects.sqlite import insert as upsert

from appliance.domain.errors import IdentityConflictError, TransitionError, UnknownStudyError
from appliance.domain.instance import key_of
from appliance.domain.lifecycle import StudyEvent, StudyState, next_state
from appliance.domain.ports import StoredInstance
from appliance.storage.rows import json_from_instance, text_from_time
from appliance.storage.schema import INSTANCES, REVISIONS, STUDIES


def add_instance(connection: Connection, stored: StoredInstance) -> bool:
    """Record an instance and open or extend its study's revision; False when it was known."""
    identity = stored.instance.identity
    key = key_of(stored.instance)
    known = connection.execute(
        select(INSTANCES).where(INSTANCES.c.sop_instance_uid == identity.sop_instance_uid)
    ).one_or_none()
    if known is not None:
        if (known.content_sha256, known.token) != (identity.content_sha256, key.token):
            raise IdentityConflictError(
                f"SOP Instance UID {identity.sop_instance_uid} is known with other content, study or patient.",
                "The first one stays; the sender must give the other a UID of its own.",
            )
        return False
    at = text_from_time(stored.received_at)
    revision = 0 if stored.own_result else _receiving_revision(connection, stored, at)
    connection.execute(
        insert(INSTANCES).values(
            sop_instance_uid=identity.sop_instance_uid,
            token=key.token,
            revision=revision,
            study_uid=identity.study_uid,
            content_sha256=identity.content_sha256,
            modality=stored.instance.image.modality,
            patient_name=stored.instance.patient.name,
            description=stored.instance.image.description,
            attributes=json_from_instance(stored.instance),
            path=str(stored.path),
            received_at=at,
            calling_ae=stored.calling_ae,
            own_result=stored.own_result,
        )
    )
    return True


def _receiving_revision(connection: Connection, stored: StoredInstance, at: str) -> int:
    """The revision that takes this image: the current one while it still receives, else a new one."""
    key = key_of(stored.instance)
    current = connection.execute(
        select(REVISIONS)
        .join(STUDIES, (STUDIES.c.token == REVISIONS.c.token) & (STUDIES.c.revision == REVISIONS.c.revision))
        .where(STUDIES.c.token == key.token)
    ).one_or_none()
    if current is None:
        connection.execute(
            insert(STUDIES).values(
                token=key.token, study_uid=key.study_uid, patient_id=key.patient_id, issuer=key.issuer, revision=1
            )
        )
        return open_revision(connection, key.token, 1, at, at)
    state = StudyState(current.state)
    if state is not StudyState.RECEIVING:
        return open_revision(connection, key.token, current.revision + 1, current.first_received_at, at)
    next_state(state, StudyEvent.IMAGE_ARRIVED)
    connection.execute(
        update(REVISIONS)
        .where(REVISIONS.c.token == key.token, REVISIONS.c.revision == current.revision)
        .values(last_received_at=max(at, current.last_received_at))
    )
    return int(current.revision)


def open_revision(connection: Connection, token: str, revision: int, first: str, last: str) -> int:
    """Make a revision in RECEIVING and let the study point at it."""
    connection.execute(
        insert(REVISIONS).values(
            token=token,
            revision=revision,
            state=StudyState.RECEIVING.value,
            reason="",
            first_received_at=first,
            last_received_at=last,
        )
    )
    connection.execute(update(STUDIES).where(STUDIES.c.token == token).values(revision=revision))
    return revision


def apply_event(connection: Connection, token: str, revision: int, event: StudyEvent, reason: str) -> StudyState:
    """Move a revision along the lifecycle; RETRIED leaves it as it ended and opens the next one."""
    row = connection.execute(
        select(REVISIONS).where(REVISIONS.c.token == token, REVISIONS.c.revision == revision)
    ).one_or_none()
    if row is None:
        raise UnknownStudyError(f"The ledger has no study {token} at revision {revision}.")
    state = next_state(StudyState(row.state), event)
    if event is StudyEvent.RETRIED:
        current = connection.execute(select(STUDIES.c.revision).where(STUDIES.c.token == token)).scalar_one()
        if current != revision:
            raise TransitionError(f"Revision {revision} can't be retried: revision {current} has taken its place.")
        open_revision(connection, token, revision + 1, row.first_received_at, row.last_received_at)
        return state
    connection.execute(
        update(REVISIONS)
        .where(REVISIONS.c.token == token, REVISIONS.c.revision == revision)
        .values(state=state.value, reason=reason)
    )
    return state


def put(connection: Connection, table: Table, values: Mapping[str, Any]) -> None:
    """Insert a row, or replace the one with the same primary key."""
    statement = upsert(table).values(**values)
    keys = [column.name for column in table.primary_key]
    rest = {name: statement.excluded[name] for name in values if name not in keys}
    connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=rest))
