"""The ledger's tables. Times are UTC ISO 8601 with microseconds, so that text order is time order."""

from sqlalchemy import Boolean, Column, ForeignKeyConstraint, Index, Integer, MetaData, String, Table, Text

SCHEMA_VERSION = 1
"""Kept in `PRAGMA user_version`; a database of a later version is refused. A rollback runs the release before on the
present file, so a new table leaves the number as it is; it is raised only with a release between (ADR 9)."""

METADATA = MetaData()

STUDIES = Table(
    "insite_studies",
    METADATA,
    Column("token", String, primary_key=True),
    Column("study_uid", String, nullable=False),
    Column("patient_id", String, nullable=False),
    Column("issuer", String, nullable=False),
    Column("revision", Integer, nullable=False),
)
"""One row a study: its identity and its current revision."""

REVISIONS = Table(
    "insite_revisions",
    METADATA,
    Column("token", String, primary_key=True),
    Column("revision", Integer, primary_key=True),
    Column("state", String, nullable=False),
    Column("reason", Text, nullable=False),
    Column("first_received_at", String, nullable=False),
    Column("last_received_at", String, nullable=False),
    ForeignKeyConstraint(["token"], ["insite_studies.token"]),
    Index("insite_revisions_state", "state", "last_received_at"),
)

INSTANCES = Table(
    "insite_instances",
    METADATA,
    Column("sop_instance_uid", String, primary_key=True),
    Column("token", String, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("study_uid", String, nullable=False),
    Column("content_sha256", String, nullable=False),
    Column("modality", String, nullable=False),
    Column("patient_name", String, nullable=False),
    Column("description", String, nullable=False),
    Column("attributes", Text, nullable=False),
    Column("path", String, nullable=False),
    Column("received_at", String, nullable=False),
    Column("calling_ae", String, nullable=False),
    Column("own_result", Boolean, nullable=False),
    Index("insite_instances_token", "token", "revision"),
)
"""`revision` is the first that holds the image; every later one holds it too. `attributes` is an `Instance`
as JSON; modality, name and description stand beside it so that a list of studies reads no JSON."""

ANALYSES = Table(
    "insite_analyses",
    METADATA,
    Column("token", String, primary_key=True),
    Column("revision", Integer, primary_key=True),
    Column("analysis", Text, nullable=False),
)

OBJECTS = Table(
    "insite_objects",
    METADATA,
    Column("token", String, primary_key=True),
    Column("revision", Integer, primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("kind", String, nullable=False),
    Column("sop_instance_uid", String, nullable=False),
    Column("sop_class_uid", String, nullable=False),
    Column("path", String, nullable=False),
)

DELIVERIES = Table(
    "insite_deliveries",
    METADATA,
    Column("token", String, primary_key=True),
    Column("revision", Integer, primary_key=True),
    Column("destination", String, primary_key=True),
    Column("state", String, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("last_error", Text, nullable=False),
)

INCIDENTS = Table(
    "insite_incidents",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("at", String, nullable=False),
    Column("study_uid", String, nullable=False, index=True),
    Column("what", String, nullable=False),
    Column("sentence", Text, nullable=False),
)
