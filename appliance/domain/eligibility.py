"""Which image a task takes: a table of rules over an image's attributes, each with its refusal sentence.

The rules look at metadata only. What metadata can't say (is this really a chest?) the pack's guard says of pixels.
"""

from collections.abc import Callable

from appliance.domain.findings import Refusal, RefusalCode
from appliance.domain.instance import Instance
from appliance.domain.manifest import EligibilityRules, UnknownAge


def _no_pixels(instance: Instance, _: EligibilityRules) -> Refusal | None:
    if instance.image.has_pixels:
        return None
    return Refusal(RefusalCode.NO_PIXELS, "The instance holds no pixel data.")


def _modality(instance: Instance, rules: EligibilityRules) -> Refusal | None:
    if not rules.modalities or instance.image.modality in rules.modalities:
        return None
    return Refusal(
        RefusalCode.MODALITY,
        f"Modality is {instance.image.modality or 'absent'}; this task reads {' or '.join(rules.modalities)}.",
    )


def _frames(instance: Instance, _: EligibilityRules) -> Refusal | None:
    if instance.image.frames == 1:
        return None
    return Refusal(
        RefusalCode.MULTI_FRAME,
        f"The image has {instance.image.frames} frames; this task reads single frames.",
    )


def _colour(instance: Instance, _: EligibilityRules) -> Refusal | None:
    if instance.image.photometric in {"MONOCHROME1", "MONOCHROME2"} and instance.image.samples_per_pixel == 1:
        return None
    return Refusal(
        RefusalCode.COLOUR,
        f"Photometric interpretation is {instance.image.photometric or 'absent'}; this task reads grey images.",
    )


def _for_processing(instance: Instance, _: EligibilityRules) -> Refusal | None:
    if instance.image.presentation_intent != "FOR PROCESSING":
        return None
    return Refusal(
        RefusalCode.FOR_PROCESSING,
        "The image is raw (FOR PROCESSING); this task reads images for presentation.",
    )


def _body_part(instance: Instance, rules: EligibilityRules) -> Refusal | None:
    part = instance.image.body_part
    if not rules.body_parts or not part or part in rules.body_parts:
        return None
    return Refusal(RefusalCode.BODY_PART, f"Body part is {part}; this task reads {' or '.join(rules.body_parts)}.")


def _view(instance: Instance, rules: EligibilityRules) -> Refusal | None:
    view = instance.image.view_position
    if not rules.views or not view or view in rules.views:
        return None
    return Refusal(RefusalCode.VIEW, f"View position is {view}; this task reads {' or '.join(rules.views)}.")


def _age(instance: Instance, rules: EligibilityRules) -> Refusal | None:
    age = instance.patient.age_years
    if rules.min_age_years is None and rules.max_age_years is None:
        return None
    span = _age_span(rules)
    if age is None:
        if rules.unknown_age is UnknownAge.RUN_AND_SAY:
            return None
        return Refusal(RefusalCode.AGE_UNKNOWN, f"The patient's age is unknown; this task is for {span} only.")
    too_young = rules.min_age_years is not None and age < rules.min_age_years
    too_old = rules.max_age_years is not None and age >= rules.max_age_years
    if too_young or too_old:
        return Refusal(RefusalCode.AGE_OUT_OF_RANGE, f"The patient is {age:.0f} years old; this task is for {span}.")
    return None


def _age_span(rules: EligibilityRules) -> str:
    if rules.max_age_years is None:
        return f"patients of {rules.min_age_years:g} years and over"
    if rules.min_age_years is None:
        return f"patients under {rules.max_age_years:g} years"
    return f"patients from {rules.min_age_years:g} to under {rules.max_age_years:g} years"


RULES: tuple[Callable[[Instance, EligibilityRules], Refusal | None], ...] = (
    _no_pixels,
    _modality,
    _frames,
    _colour,
    _for_processing,
    _body_part,
    _view,
    _age,
)
"""In the order in which a reader would ask; the first refusal is the one reported."""

AGE_UNKNOWN_NOTE = (
    "The patient's age is unknown; this task is meant for adults. Check the age before reading the score."
)


def refusal_of(instance: Instance, rules: EligibilityRules) -> Refusal | None:
    """Why a task must not look at this image, or None when it may."""
    return next((refusal for rule in RULES if (refusal := rule(instance, rules)) is not None), None)


def notes_of(instance: Instance, rules: EligibilityRules) -> tuple[str, ...]:
    """What a reader must be told beside the result of an eligible image."""
    age_matters = rules.min_age_years is not None or rules.max_age_years is not None
    if age_matters and instance.patient.age_years is None:
        return (AGE_UNKNOWN_NOTE,)
    return ()
