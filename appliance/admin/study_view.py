"""One study's page as plain values: patient, findings, pictures, deliveries, revisions, incidents."""

from collections.abc import Sequence
from dataclasses import dataclass

from appliance.admin.packs_list import Caution, PackList
from appliance.admin.words import AGAIN_WORDS, DELIVERY_WORDS, STUDY_WORDS, TASK_WORDS, Word, flags, person
from appliance.domain.findings import ResultObject, StudyAnalysis, TaskOutcome, TaskState
from appliance.domain.instance import Patient
from appliance.domain.lifecycle import OPEN_STATES
from appliance.domain.manifest import TaskKind
from appliance.domain.ports import DeliveryRecord, Incident, Ledger, StoredInstance, StudyRecord

_SEXES = {"M": "male", "F": "female", "O": "other"}


@dataclass(frozen=True, slots=True)
class FindingRow:
    """One task's line of the findings table.

    Attributes:
        flagged: Whether it asks for a look.
        verdict: Score against operating point, in words; empty where there is no score.
        caution: What must be said of the pack; None for a validated one.
    """

    outcome: TaskOutcome
    word: Word
    flagged: bool
    verdict: str
    digest: str
    caution: Caution | None


@dataclass(frozen=True, slots=True)
class StudyView:
    """Everything that the page shows."""

    record: StudyRecord
    word: Word
    patient: str
    patient_facts: tuple[str, ...]
    study_date: str
    findings: tuple[FindingRow, ...]
    notes: tuple[str, ...]
    images: Sequence[StoredInstance]
    shown: int | None
    contour: bool
    objects: Sequence[ResultObject]
    deliveries: tuple[tuple[DeliveryRecord, Word], ...]
    revisions: tuple[tuple[StudyRecord, Word], ...]
    incidents: Sequence[Incident]
    current: int

    @property
    def busy(self) -> bool:
        """Whether work on the revision is still due."""
        return self.record.state in OPEN_STATES

    @property
    def again(self) -> str:
        """What an administrator may ask for, in words; empty where nothing."""
        return AGAIN_WORDS.get(self.record.state, "") if self.record.revision == self.current else ""


def view_of(ledger: Ledger, packs: PackList, token: str, revision: int | None, image: int | None) -> StudyView:
    """Gather what the page of one revision shows.

    Args:
        revision: None takes the current one.
        image: Which image to show, counted from 1; None takes the one that the tasks speak of.

    Raises:
        UnknownStudyError: The ledger has no such study or revision.
    """
    record = ledger.study(token, revision)
    revisions = ledger.revisions(token)
    images = ledger.instances(token, record.revision)
    analysis = ledger.analysis(token, record.revision)
    outcomes = analysis.outcomes if analysis else ()
    objects = ledger.objects(token, record.revision)
    patient = analysis.patient if analysis else images[0].instance.patient if images else None
    shown = shown_image(images, outcomes, image)
    return StudyView(
        record=record,
        word=STUDY_WORDS[record.state],
        patient=person(record.patient_name),
        patient_facts=_facts(record, patient),
        study_date=_date(images[0].instance.image.study_date) if images else "",
        findings=tuple(_finding(outcome, packs) for outcome in outcomes),
        notes=_notes(outcomes),
        images=images,
        shown=shown,
        contour=shown is not None and _is_segmented(images[shown - 1], analysis, objects),
        objects=objects,
        deliveries=tuple((each, DELIVERY_WORDS[each.state]) for each in ledger.deliveries(token, record.revision)),
        revisions=tuple((each, STUDY_WORDS[each.state]) for each in revisions),
        incidents=ledger.incidents(record.key.study_uid),
        current=max((each.revision for each in revisions), default=record.revision),
    )


def shown_image(images: Sequence[StoredInstance], outcomes: Sequence[TaskOutcome], wanted: int | None) -> int | None:
    """Which image to show, counted from 1: the wanted one, else the one segmented, else one that a task looked at.

    None when no image holds pixels.
    """
    if wanted is not None and 1 <= wanted <= len(images):
        return wanted
    spoken_of = sorted(
        (outcome for outcome in outcomes if outcome.image is not None and outcome.state is TaskState.RAN),
        key=lambda outcome: outcome.kind is not TaskKind.SEGMENTATION,
    )
    uids = [each.instance.identity.sop_instance_uid for each in images]
    for outcome in spoken_of:
        if outcome.image is not None and outcome.image.sop_instance_uid in uids:
            return uids.index(outcome.image.sop_instance_uid) + 1
    return next((number for number, each in enumerate(images, 1) if each.instance.image.has_pixels), None)


def _is_segmented(stored: StoredInstance, analysis: StudyAnalysis | None, objects: Sequence[ResultObject]) -> bool:
    if analysis is None or not any(each.kind == "SEG" for each in objects):
        return False
    uid = stored.instance.identity.sop_instance_uid
    return any(
        outcome.kind is TaskKind.SEGMENTATION
        and outcome.state is TaskState.RAN
        and outcome.image is not None
        and outcome.image.sop_instance_uid == uid
        for outcome in analysis.outcomes
    )


def _finding(outcome: TaskOutcome, packs: PackList) -> FindingRow:
    made_by = outcome.provenance
    return FindingRow(
        outcome=outcome,
        word=TASK_WORDS[outcome.state],
        flagged=flags(outcome),
        verdict=_verdict(outcome),
        digest=made_by.pack_digest[:12] if made_by else "",
        caution=packs.caution_of(made_by) if made_by else None,
    )


def _verdict(outcome: TaskOutcome) -> str:
    if outcome.score is None or outcome.operating_point is None:
        return ""
    threshold = f"the operating point {outcome.operating_point.threshold:.2f}"
    if outcome.kind is TaskKind.GUARD:
        return f"recognised; {threshold}" if outcome.positive else f"not recognised; {threshold}"
    return f"at or above {threshold}" if outcome.positive else f"below {threshold}"


def _notes(outcomes: Sequence[TaskOutcome]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(note for outcome in outcomes for note in outcome.notes))


def _facts(record: StudyRecord, patient: Patient | None) -> tuple[str, ...]:
    if patient is None:
        return (f"ID {record.key.patient_id}",)
    issuer = f" ({patient.issuer})" if patient.issuer else ""
    return (
        f"ID {patient.patient_id}{issuer}" if patient.patient_id else "no patient ID",
        f"born {_date(patient.birth_date)}" if patient.birth_date else "birth date unknown",
        _SEXES.get(patient.sex, "sex unknown"),
        "age unknown" if patient.age_years is None else f"{_age(patient.age_years)} at the examination",
    )


def _age(years: float) -> str:
    return f"{years:.0f} years" if years >= 2 else f"{years * 12:.0f} months"  # noqa: PLR2004 - infants count in months


def _date(value: str) -> str:
    return f"{value[:4]}-{value[4:6]}-{value[6:]}" if len(value) == 8 and value.isdigit() else value  # noqa: PLR2004 - DA
