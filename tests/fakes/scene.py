"""A ledger with one study of every kind that a page has to show: flagged, refused, failed, undelivered, waiting."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from appliance.domain.findings import (
    ModelProvenance,
    Refusal,
    RefusalCode,
    SegmentationMask,
    StudyAnalysis,
    TaskOutcome,
    TaskState,
)
from appliance.domain.instance import Instance, InstanceIdentity, Patient, key_of
from appliance.domain.lifecycle import DeliveryState, StudyEvent
from appliance.domain.manifest import Code, OperatingPoint, TaskKind
from appliance.domain.ports import DeliveryRecord, Incident, StoredInstance
from tests.fakes import phantom
from tests.fakes.instances import radiograph
from tests.fakes.memory_ledger import MemoryLedger

BEGINNING = datetime(2024, 3, 1, 9, 0, tzinfo=UTC)
HOSTILE = '<script>alert("x")</script>^<img src=x onerror=alert(1)>'
DIGEST, BASE = "a1b2c3d4e5f6" + "0" * 52, "b" * 64
PACKS = [
    {
        "name": "chest-xray",
        "title": "Frontal chest radiograph",
        "release": 1,
        "version": "0.1.0",
        "digest": DIGEST,
        "validation": "research-only",
        "precision": "int8",
        "state": "active",
        "reason": "",
    },
    {
        "name": "broken",
        "title": "",
        "release": None,
        "version": "",
        "digest": "",
        "validation": "",
        "precision": "",
        "state": "refused",
        "reason": "The signature is missing.",
    },
]
PROVENANCE = ModelProvenance("chest-xray", 1, DIGEST, BASE, "int8")
POINT = OperatingPoint("int8", 0.42, None, "Sensitivity 0.90 [0.85, 0.94], n = 210, one data set.")
PATH_TO_DONE = (
    StudyEvent.SETTLED,
    StudyEvent.STARTED,
    StudyEvent.ANALYSED,
    StudyEvent.REPORTED,
    StudyEvent.DELIVERED,
)


def instance(number: int, name: str, **image: object) -> Instance:
    """A radiograph of its own study and patient."""
    made = radiograph(description=image.pop("description", "THORAX"), **image)
    identity = replace(made.identity, study_uid=f"1.2.3.{number}", sop_instance_uid=f"1.2.3.{number}.1.1")
    return replace(made, identity=identity, patient=replace(made.patient, name=name, patient_id=f"P{number:03}"))


def phantom_instance() -> Instance:
    """The synthetic phantom as the appliance knows it."""
    made = instance(0, "PHANTOM^SYNTHETIC", rows=phantom.SIDE, columns=phantom.SIDE, photometric="MONOCHROME2")
    identity = InstanceIdentity(
        phantom.SOP_UID,
        made.identity.sop_class_uid,
        phantom.SERIES_UID,
        phantom.STUDY_UID,
        "1.2.840.10008.1.2.1",
        "1" * 64,
    )
    patient: Patient = replace(made.patient, patient_id="SYNTHETIC-1", birth_date="19600101", sex="O")
    return Instance(
        identity, patient, replace(made.image, description="Chest PA (synthetic phantom)", study_date="20240301")
    )


def outcomes_of(made: Instance) -> tuple[TaskOutcome, ...]:
    """What the tasks say of the phantom; the figures are invented."""
    lung, triage, child = (
        Code("39607008", "SCT", "Lung"),
        Code("R-1", "99INSITE", "Needs a look"),
        Code("233604007", "SCT", "Pneumonia"),
    )
    refusal = Refusal(
        RefusalCode.AGE_OUT_OF_RANGE, "The patient is 64 years old; this task is for patients under 6 years."
    )
    ran = {"state": TaskState.RAN, "image": made.identity, "provenance": PROVENANCE}
    return (
        TaskOutcome(task="lungs", title="Lung segmentation", kind=TaskKind.SEGMENTATION, finding=lung, **ran),
        TaskOutcome(
            task="adult-triage",
            title="Triage of an adult chest radiograph",
            kind=TaskKind.CLASSIFICATION,
            finding=triage,
            score=0.874,
            operating_point=POINT,
            positive=True,
            notes=("The scores on this page are invented: the image is a synthetic phantom.",),
            **ran,
        ),
        TaskOutcome(
            task="child-triage",
            title="Triage of a child's chest radiograph",
            kind=TaskKind.CLASSIFICATION,
            finding=child,
            state=TaskState.REFUSED,
            refusal=refusal,
        ),
    )


def with_mask(outcomes: tuple[TaskOutcome, ...]) -> tuple[TaskOutcome, ...]:
    """The same outcomes, the segmentation with the phantom's lungs, as the analysis hands them to the reporter."""
    mask = SegmentationMask(phantom.lungs(), None)
    return tuple(replace(each, mask=mask) if each.kind is TaskKind.SEGMENTATION else each for each in outcomes)


def analysis_of(made: Instance, outcomes: tuple[TaskOutcome, ...]) -> StudyAnalysis:
    """An analysis of one image."""
    key = key_of(made)
    return StudyAnalysis(
        key, 1, made.patient, (made.identity,), outcomes, {"chest-xray": DIGEST}, {"chest-xray": "d" * 64}
    )


def fill(ledger: MemoryLedger, folder: Path) -> str:
    """Put the studies into the ledger, the phantom's file into the folder; return the phantom's token."""
    file = phantom.write_phantom(folder / "phantom.dcm")
    made = phantom_instance()
    token = _arrive(ledger, made, 50, file)
    _walk(ledger, token, PATH_TO_DONE)
    ledger.record_analysis(token, 1, analysis_of(made, outcomes_of(made)))
    ledger.record_delivery(DeliveryRecord(token, 1, "pacs", DeliveryState.SENT, 1, ""))

    leg = instance(1, "LEG^LEONARD", body_part="LEG", description="RIGHT LEG", view_position="AP")
    refused = _arrive(ledger, leg, 40)
    _walk(ledger, refused, PATH_TO_DONE)
    refusal = Refusal(RefusalCode.BODY_PART, "Body part is LEG; this task reads CHEST.")
    nothing = [
        replace(each, state=TaskState.REFUSED, refusal=refusal, image=None, score=None) for each in outcomes_of(leg)
    ]
    bare = tuple(replace(each, positive=None, provenance=None, operating_point=None, notes=()) for each in nothing)
    ledger.record_analysis(refused, 1, analysis_of(leg, bare))

    failed = _arrive(ledger, instance(2, HOSTILE, description="<b>bold</b>"), 30)
    _walk(ledger, failed, PATH_TO_DONE[:2])
    ledger.apply(failed, 1, StudyEvent.FAILED, reason="The inference daemon did not answer.")
    ledger.add_incident(Incident(BEGINNING, "1.2.3.2", "pixels-unreadable", "<i>The pixel data is truncated.</i>"))

    undelivered = _arrive(ledger, instance(3, "Müller^Änne^Marie"), 20)
    _walk(ledger, undelivered, PATH_TO_DONE[:4])
    ledger.apply(undelivered, 1, StudyEvent.GAVE_UP, reason="pacs did not answer 20 times.")
    ledger.record_delivery(DeliveryRecord(undelivered, 1, "pacs", DeliveryState.DEAD, 20, "Connection refused."))

    waiting = _arrive(ledger, instance(4, "WAITING^WANDA"), 10)
    ledger.apply(waiting, 1, StudyEvent.SETTLED)
    return token


def _arrive(ledger: MemoryLedger, made: Instance, minutes: int, file: Path | None = None) -> str:
    path = file or Path("/nowhere/absent.dcm")
    ledger.add_instance(
        StoredInstance(made, path, BEGINNING + timedelta(minutes=minutes), "MODALITY", own_result=False)
    )
    return key_of(made).token


def _walk(ledger: MemoryLedger, token: str, events: tuple[StudyEvent, ...]) -> None:
    for event in events:
        ledger.apply(token, 1, event)
