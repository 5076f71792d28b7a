"""The Protocols through which rooms meet, and the records that cross them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from appliance.domain.findings import ModelProvenance, ResultObject, StudyAnalysis
from appliance.domain.instance import Instance, StudyKey
from appliance.domain.lifecycle import DeliveryState, StudyEvent, StudyState


@dataclass(frozen=True, slots=True)
class StoredInstance:
    """An instance on disk: its parsed attributes, its file, and whether the appliance made it itself."""

    instance: Instance
    path: Path
    received_at: datetime
    calling_ae: str
    own_result: bool


@dataclass(frozen=True, slots=True)
class StudyRecord:
    """One revision of a study as the ledger knows it.

    Attributes:
        token: `StudyKey.token`, the path-safe name.
        revision: Counts from 1; a late image or a retry makes the next one.
        last_received_at: When the newest image of this revision arrived.
        images: How many instances the revision holds.
        reason: Why it failed or is undelivered; empty otherwise.
    """

    token: str
    key: StudyKey
    revision: int
    state: StudyState
    reason: str
    first_received_at: datetime
    last_received_at: datetime
    images: int
    patient_name: str
    modalities: tuple[str, ...]
    description: str


@dataclass(frozen=True, slots=True)
class Incident:
    """Something that arrived and could not be used, or needs a look: shown on the study's page and in the log."""

    at: datetime
    study_uid: str
    what: str
    sentence: str


@dataclass(frozen=True, slots=True)
class DeliveryRecord:
    """One set of results on its way to one destination."""

    token: str
    revision: int
    destination: str
    state: DeliveryState
    attempts: int
    last_error: str


class Transaction(Protocol):
    """An open database transaction that workflow code may enlist in."""

    @property
    def connection(self) -> Any:
        """The SQLAlchemy connection (kept opaque here: only `storage` and `workflow` know the library)."""
        ...


class Ledger(Protocol):
    """The truth about studies, results and deliveries; every write is durable when its method returns.

    Times are timezone-aware UTC. Methods raise `StorageError`, and `UnknownStudyError` where a study is named.
    """

    def add_instance(self, stored: StoredInstance) -> bool:
        """Record an instance: True when new, False when the same bytes were known (nothing changes).

        A new image moves its study to RECEIVING: within the open RECEIVING revision, or as a new revision with all
        earlier images when the current one has left RECEIVING. Own results never open a revision.

        Raises:
            IdentityConflictError: The SOP Instance UID is known with other content, study or patient.
        """
        ...

    def add_incident(self, incident: Incident) -> None:
        """Record something that could not be used."""
        ...

    def settled(self, quiet_since: datetime) -> Sequence[StudyRecord]:
        """Revisions in RECEIVING whose newest image arrived at or before `quiet_since`."""
        ...

    def transaction(self) -> AbstractContextManager[Transaction]:
        """A transaction that commits on exit and rolls back on an exception."""
        ...

    def apply(
        self,
        token: str,
        revision: int,
        event: StudyEvent,
        *,
        reason: str = "",
        within: Transaction | None = None,
    ) -> StudyState:
        """Move a revision along the lifecycle table and return its new state.

        Raises:
            TransitionError: The table has no such row.
        """
        ...

    def study(self, token: str, revision: int | None = None) -> StudyRecord:
        """One revision; the current one when `revision` is None."""
        ...

    def studies(self, limit: int = 200, offset: int = 0) -> Sequence[StudyRecord]:
        """Current revisions, newest first."""
        ...

    def revisions(self, token: str) -> Sequence[StudyRecord]:
        """All revisions of a study, oldest first."""
        ...

    def instances(self, token: str, revision: int | None = None) -> Sequence[StoredInstance]:
        """The images of a revision, sorted by SOP Instance UID; own results left out."""
        ...

    def record_analysis(self, token: str, revision: int, analysis: StudyAnalysis) -> None:
        """Keep the outcomes (masks apart, which live in the result objects); a repeated call replaces them."""
        ...

    def analysis(self, token: str, revision: int) -> StudyAnalysis | None:
        """The recorded outcomes, without masks."""
        ...

    def record_objects(self, token: str, revision: int, objects: Sequence[ResultObject]) -> None:
        """Keep which result objects were made; a repeated call replaces them."""
        ...

    def objects(self, token: str, revision: int) -> Sequence[ResultObject]:
        """The result objects of a revision."""
        ...

    def record_delivery(self, record: DeliveryRecord) -> None:
        """Keep the state of a delivery; the newest call for (study, revision, destination) counts."""
        ...

    def deliveries(self, token: str, revision: int) -> Sequence[DeliveryRecord]:
        """All deliveries of a revision."""
        ...

    def incidents(self, study_uid: str | None = None, limit: int = 200) -> Sequence[Incident]:
        """Incidents, newest first, of one study or of all."""
        ...

    def counts(self) -> Mapping[str, int]:
        """How many current revisions are in each state, by the state's word."""
        ...


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model as the daemon serves it: name `<pack>.<task>`, provenance, tensors' names."""

    name: str
    provenance: ModelProvenance
    outputs: tuple[str, ...]


@dataclass(frozen=True, eq=False, slots=True)
class Answer:
    """An inference daemon's answer: output arrays by name, and which model computed them."""

    outputs: Mapping[str, NDArray[np.float32]]
    provenance: ModelProvenance


class Inference(Protocol):
    """Somebody who runs models: the daemon behind its socket, or the same runner in process."""

    def infer(self, model: str, image: NDArray[np.uint8]) -> Answer:
        """Run one model on one image, uint8 [1, 1, rows, columns].

        Raises:
            UnknownModelError, InvalidTensorError, InferenceUnavailableError: As their names say.
        """
        ...

    def served(self) -> Sequence[ServedModel]:
        """The models that are ready.

        Raises:
            InferenceUnavailableError: Nobody answers.
        """
        ...


@dataclass(frozen=True, slots=True)
class Destination:
    """Where results go by C-STORE: a name for the page, the peer's AE title, host and port."""

    name: str
    ae_title: str
    host: str
    port: int


class Sender(Protocol):
    """Somebody who delivers DICOM files."""

    def send(self, destination: Destination, paths: Sequence[Path]) -> None:
        """Send all files over one association; returns only when each was answered with Success or a warning.

        Raises:
            DeliveryError: Some file was not taken; `permanent` when trying again is pointless.
        """
        ...

    def echo(self, destination: Destination) -> None:
        """C-ECHO.

        Raises:
            DeliveryError: No answer, or not Success.
        """
        ...


class InstanceSink(Protocol):
    """Somebody who takes received instances and keeps them."""

    def accept(
        self,
        chunks: Iterator[bytes],
        *,
        transfer_syntax_uid: str,
        sop_class_uid: str,
        sop_instance_uid: str,
        calling_ae: str,
    ) -> bool:
        """Keep an encoded data set; when this returns, the bytes and the ledger row are on disk.

        Returns:
            True when new, False when the same bytes were there already.

        Raises:
            UnreadableFileError, IdentityConflictError, StorageFullError, StorageError: As their names say.
        """
        ...


class Reporter(Protocol):
    """Somebody who turns an analysis into DICOM objects."""

    def write(
        self,
        analysis: StudyAnalysis,
        sources: Mapping[str, Path],
        created: datetime,
        folder: Path,
        earlier: Sequence[ResultObject] = (),
    ) -> Sequence[ResultObject]:
        """Write one SR, and one SEG where a segmentation ran, into `folder`; same input, same bytes.

        Args:
            sources: File of each source image by SOP Instance UID.
            created: Content date and time of the objects; aware.
            earlier: What was made of the study's earlier revisions, oldest first; a new report refers to the last one.

        Raises:
            ReportError: The sources can't carry the result.
        """
        ...
