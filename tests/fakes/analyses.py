"""Analyses made by hand over real or synthetic files."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from appliance.domain.device import DeviceIdentity
from appliance.domain.findings import (
    ModelProvenance,
    Refusal,
    RefusalCode,
    SegmentationMask,
    StudyAnalysis,
    TaskOutcome,
    TaskState,
)
from appliance.domain.instance import Instance, key_of
from appliance.domain.manifest import Code, OperatingPoint, TaskKind
from appliance.imaging.header import read_instance

DIGEST, BASE, GATE = "a" * 64, "b" * 64, "c" * 64
DEVICE = DeviceIdentity("serial-1", "2.25.123456789", "0.1.0", "INSITE")
LUNG = Code("39607008", "SCT", "Lung")
ABNORMAL = Code("263654008", "SCT", "Abnormal")
POINT = OperatingPoint("int8", 0.42, None, "Sensitivity 0.90 on 110 images.")
PROVENANCE = ModelProvenance("chest-xray", 3, DIGEST, BASE, "int8")


def outcome(task: str, kind: TaskKind, state: TaskState, finding: Code = ABNORMAL) -> TaskOutcome:
    """A bare outcome of the pack chest-xray."""
    return TaskOutcome(task, f"Title of {task}", kind, finding, state, pack="chest-xray")


def refused_analysis(path: Path) -> StudyAnalysis:
    """A study of one file, all of whose tasks were refused."""
    instance = read_instance(path)
    refusal = Refusal(RefusalCode.MODALITY, f"Modality is {instance.image.modality}; this task reads CR or DX.")
    tasks = (("lungs", TaskKind.SEGMENTATION, LUNG), ("adult-triage", TaskKind.CLASSIFICATION, ABNORMAL))
    outcomes = [outcome(task, kind, TaskState.REFUSED, finding) for task, kind, finding in tasks]
    return _analysis(instance, tuple(_with(each, refusal=refusal) for each in outcomes))


def answered_analysis(path: Path, *, area_mm2: float | None = None) -> StudyAnalysis:
    """A study of one radiograph: segmented, flagged, one task refused, one failed."""
    instance = read_instance(path)
    rows, columns = instance.image.rows, instance.image.columns
    pixels = np.zeros((rows, columns), bool)
    pixels[rows // 4 : rows // 2, columns // 4 : columns // 2] = True
    lungs = outcome("lungs", TaskKind.SEGMENTATION, TaskState.RAN, LUNG)
    triage = outcome("adult-triage", TaskKind.CLASSIFICATION, TaskState.RAN)
    child = outcome("paediatric-pneumonia", TaskKind.CLASSIFICATION, TaskState.REFUSED)
    broken = outcome("other", TaskKind.CLASSIFICATION, TaskState.FAILED)
    return _analysis(
        instance,
        (
            _with(lungs, image=instance.identity, mask=SegmentationMask(pixels, area_mm2), provenance=PROVENANCE),
            _with(
                triage,
                image=instance.identity,
                score=0.731,
                operating_point=POINT,
                positive=True,
                provenance=PROVENANCE,
                notes=("The patient's age is unknown.",),
            ),
            _with(child, refusal=Refusal(RefusalCode.AGE_OUT_OF_RANGE, "The patient is 64 years old.")),
            _with(broken, error="The model gave no number."),
        ),
    )


def _with(made: TaskOutcome, **changes: object) -> TaskOutcome:
    return replace(made, **changes)  # type: ignore[arg-type]  # the fields are those of TaskOutcome


def _analysis(instance: Instance, outcomes: tuple[TaskOutcome, ...]) -> StudyAnalysis:
    return StudyAnalysis(
        key_of(instance),
        1,
        instance.patient,
        (instance.identity,),
        outcomes,
        {"chest-xray": DIGEST},
        {"chest-xray": GATE},
        {"chest-xray": "validated"},
    )
