"""What the tasks of this exporter are: titles, codes, eligibility, intended use; the manifest's words live here."""

from dataclasses import dataclass

from appliance.domain.manifest import Code, EligibilityRules, TaskKind, UnknownAge

GUARD = "guard"
LUNGS = "lungs"
ADULT = "adult-triage"
PAEDIATRIC = "paediatric-pneumonia"

MODALITIES = ("CR", "DX")
BODY_PARTS = ("CHEST", "THORAX")
VIEWS = ("PA", "AP")
ADULT_FROM = 18.0
CHILD_FROM, CHILD_BELOW = 1.0, 6.0
"""The Kermany images are of children "one to five years old": the fifth year counts up to the sixth birthday."""

NOT_FOR_DIAGNOSIS = (
    "Not for diagnosis and not for ruling a disease out. Every result needs review by a qualified reader. "
    "Validated only on the public validation split named in MODEL_CARD.md; validation at the site is still required."
)
NOT_FOR_OTHERS = (
    " Not for lateral views or other body parts. On which scanners the training images were made is not recorded: check"
    " each scanner at the site, portable ones too, before relying on the task."
)


@dataclass(frozen=True, slots=True)
class TaskText:
    """One task: everything of its manifest that is not measured."""

    name: str
    title: str
    kind: TaskKind
    finding: Code
    eligibility: EligibilityRules
    intended_use: str
    not_for: str


def _rules(minimum: float | None, maximum: float | None, unknown: UnknownAge) -> EligibilityRules:
    return EligibilityRules(MODALITIES, BODY_PARTS, VIEWS, minimum, maximum, unknown)


def task_texts() -> tuple[TaskText, ...]:
    """The tasks of a chest radiograph pack, the guard first."""
    return (
        TaskText(
            GUARD,
            "Is this an upright frontal chest radiograph?",
            TaskKind.GUARD,
            Code("111101", "DCM", "Image Quality"),
            _rules(None, None, UnknownAge.RUN_AND_SAY),
            "Keeps the other tasks from speaking about images that they were not made for.",
            "Not a check of image quality. It does not notice a mirrored image, nor does it check patient identity.",
        ),
        TaskText(
            LUNGS,
            "Lungs",
            TaskKind.SEGMENTATION,
            Code("39607008", "SCT", "Lung"),
            _rules(None, None, UnknownAge.RUN_AND_SAY),
            "Outlines both lungs, with the part behind the heart, on a frontal chest radiograph.",
            NOT_FOR_DIAGNOSIS + " Not for measuring volumes.",
        ),
        TaskText(
            ADULT,
            "Adult chest radiograph: finding that needs a look",
            TaskKind.CLASSIFICATION,
            Code("408574004", "SCT", "Imaging result abnormal"),
            _rules(ADULT_FROM, None, UnknownAge.RUN_AND_SAY),
            "Suggests which frontal chest radiographs of adults a reader should open first. Every radiograph with a "
            "finding that it learned from was reported with pneumonia, most with something else beside it.",
            NOT_FOR_DIAGNOSIS + NOT_FOR_OTHERS + " Adults with a finding and no pneumonia, as a mass, a fracture or a "
            "pneumothorax, were neither learned from nor measured.",
        ),
        TaskText(
            PAEDIATRIC,
            "Chest radiograph of a child of 1 to 5 years: pneumonia",
            TaskKind.CLASSIFICATION,
            Code("233604007", "SCT", "Pneumonia"),
            _rules(CHILD_FROM, CHILD_BELOW, UnknownAge.REFUSE),
            "Suggests which frontal chest radiographs of children of 1 to 5 years a reader should open first.",
            NOT_FOR_DIAGNOSIS + NOT_FOR_OTHERS,
        ),
    )
