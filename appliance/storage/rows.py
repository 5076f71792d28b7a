"""Between rows and the domain's records."""

from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter
from sqlalchemy import Row

from appliance.domain.findings import ResultObject, StudyAnalysis
from appliance.domain.instance import Instance, StudyKey
from appliance.domain.lifecycle import DeliveryState, StudyState
from appliance.domain.ports import DeliveryRecord, Incident, StoredInstance, StudyRecord


def text_from_time(time: datetime) -> str:
    """UTC ISO 8601 with microseconds; `time` is aware."""
    return time.astimezone(UTC).isoformat(timespec="microseconds")


def json_from_instance(instance: Instance) -> str:
    """An instance as JSON."""
    return _instances().dump_json(instance).decode()


def json_from_analysis(analysis: StudyAnalysis) -> str:
    """An analysis as JSON, without its masks: those live in the result objects."""
    bare = replace(analysis, outcomes=tuple(replace(outcome, mask=None) for outcome in analysis.outcomes))
    return _analyses().dump_json((bare,)).decode()


def analysis_from_json(text: str) -> StudyAnalysis:
    """The analysis that `json_from_analysis` wrote."""
    return _analyses().validate_json(text)[0]


@cache
def _instances() -> TypeAdapter[Instance]:
    return TypeAdapter(Instance)


@cache
def _analyses() -> TypeAdapter[tuple[StudyAnalysis]]:
    return TypeAdapter(tuple[StudyAnalysis], config=ConfigDict(arbitrary_types_allowed=True))


def stored_from_row(row: Row[Any]) -> StoredInstance:
    """A received instance."""
    return StoredInstance(
        instance=_instances().validate_json(row.attributes),
        path=Path(row.path),
        received_at=datetime.fromisoformat(row.received_at),
        calling_ae=row.calling_ae,
        own_result=row.own_result,
    )


def study_from_rows(row: Row[Any], summary: Row[Any]) -> StudyRecord:
    """One revision, from its row joined with its study's and a summary of its images."""
    return StudyRecord(
        token=row.token,
        key=StudyKey(row.study_uid, row.patient_id, row.issuer),
        revision=row.revision,
        state=StudyState(row.state),
        reason=row.reason,
        first_received_at=datetime.fromisoformat(row.first_received_at),
        last_received_at=datetime.fromisoformat(row.last_received_at),
        images=summary.images,
        patient_name=summary.patient_name or "",
        modalities=tuple(sorted(filter(None, (summary.modalities or "").split(",")))),
        description=summary.description or "",
    )


def object_from_row(row: Row[Any]) -> ResultObject:
    """A result object."""
    return ResultObject(row.kind, row.sop_instance_uid, row.sop_class_uid, row.path)


def delivery_from_row(row: Row[Any]) -> DeliveryRecord:
    """A delivery."""
    return DeliveryRecord(
        row.token, row.revision, row.destination, DeliveryState(row.state), row.attempts, row.last_error
    )


def incident_from_row(row: Row[Any]) -> Incident:
    """An incident."""
    return Incident(datetime.fromisoformat(row.at), row.study_uid, row.what, row.sentence)
