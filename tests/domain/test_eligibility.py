"""Which image a task takes, rule by rule."""

from dataclasses import replace
from typing import Any

import pytest

from appliance.domain.eligibility import notes_of, refusal_of
from appliance.domain.findings import RefusalCode
from appliance.domain.manifest import EligibilityRules, UnknownAge
from tests.fakes.instances import radiograph

ADULT = EligibilityRules(("CR", "DX"), ("CHEST", "THORAX"), ("PA", "AP"), 18, None, UnknownAge.RUN_AND_SAY)
CHILD = EligibilityRules(("CR", "DX"), ("CHEST", "THORAX"), ("PA", "AP"), 1, 6, UnknownAge.REFUSE)


def test_an_adult_frontal_chest_radiograph_is_eligible() -> None:
    """A CR of an adult's chest, PA, one grey frame, is taken by an adult task without remark."""
    assert refusal_of(radiograph(), ADULT) is None
    assert notes_of(radiograph(), ADULT) == ()


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"has_pixels": False}, RefusalCode.NO_PIXELS, "no pixel data"),
        ({"modality": "CT"}, RefusalCode.MODALITY, "CT"),
        ({"modality": ""}, RefusalCode.MODALITY, "absent"),
        ({"frames": 10}, RefusalCode.MULTI_FRAME, "10 frames"),
        ({"photometric": "RGB", "samples_per_pixel": 3}, RefusalCode.COLOUR, "RGB"),
        ({"presentation_intent": "FOR PROCESSING"}, RefusalCode.FOR_PROCESSING, "raw"),
        ({"body_part": "EXTREMITY"}, RefusalCode.BODY_PART, "EXTREMITY"),
        ({"view_position": "LL"}, RefusalCode.VIEW, "LL"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_attribute_named(
    change: dict[str, Any], code: RefusalCode, words: str
) -> None:
    """Each attribute that does not fit gives its own code and a sentence that names the value."""
    refusal = refusal_of(radiograph(**change), ADULT)
    assert refusal is not None
    assert refusal.code is code
    assert words in refusal.sentence


@pytest.mark.parametrize("change", [{"body_part": ""}, {"view_position": ""}, {"presentation_intent": ""}])
def test_an_absent_attribute_leaves_the_decision_to_the_guard(change: dict[str, Any]) -> None:
    """An absent body part, view or intent refuses nothing: the guard looks at the pixels."""
    assert refusal_of(radiograph(**change), ADULT) is None


@pytest.mark.parametrize(
    ("age", "adult", "child"),
    [
        (0.5, RefusalCode.AGE_OUT_OF_RANGE, RefusalCode.AGE_OUT_OF_RANGE),
        (1.0, RefusalCode.AGE_OUT_OF_RANGE, None),
        (5.99, RefusalCode.AGE_OUT_OF_RANGE, None),
        (6.0, RefusalCode.AGE_OUT_OF_RANGE, RefusalCode.AGE_OUT_OF_RANGE),
        (17.99, RefusalCode.AGE_OUT_OF_RANGE, RefusalCode.AGE_OUT_OF_RANGE),
        (18.0, None, RefusalCode.AGE_OUT_OF_RANGE),
        (None, None, RefusalCode.AGE_UNKNOWN),
    ],
)
def test_age_decides_between_the_adult_and_the_paediatric_task(
    age: float | None, adult: RefusalCode | None, child: RefusalCode | None
) -> None:
    """A child is refused by adult tasks and the other way round; an unknown age runs the adult tasks only."""
    found = [refusal_of(radiograph(age), rules) for rules in (ADULT, CHILD)]
    assert [refusal.code if refusal else None for refusal in found] == [adult, child]


def test_an_unknown_age_is_said_where_a_task_depends_on_age() -> None:
    """An adult task that runs at unknown age says so; a task for any age has nothing to say."""
    any_age = replace(ADULT, min_age_years=None)
    assert "age is unknown" in notes_of(radiograph(None), ADULT)[0]
    assert notes_of(radiograph(None), any_age) == ()


def test_the_first_rule_that_refuses_is_the_one_reported() -> None:
    """A multi-frame CT is refused for its modality, the question that a reader asks first."""
    refusal = refusal_of(radiograph(modality="CT", frames=4), ADULT)
    assert refusal is not None
    assert refusal.code is RefusalCode.MODALITY


def test_an_upper_bound_alone_is_put_in_words() -> None:
    """The sentence of a refusal by age names the span in years."""
    refusal = refusal_of(radiograph(70), replace(CHILD, min_age_years=None))
    assert refusal is not None
    assert "under 6 years" in refusal.sentence
