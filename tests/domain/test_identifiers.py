"""Deterministic identifiers."""

import re
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from appliance.domain.device import MANUFACTURER, MODEL_NAME, made_here
from appliance.domain.errors import DeliveryError, InsiteError
from appliance.domain.identifiers import digest_of, uid_from_content
from appliance.domain.instance import StudyKey, key_of
from tests.fakes.instances import radiograph

SOURCES = st.lists(st.tuples(st.text(max_size=8), st.text(max_size=8)), max_size=5)


@given(SOURCES, st.lists(st.text(max_size=8), max_size=4), st.randoms())
def test_order_does_not_matter(sources: list[tuple[str, str]], models: list[str], random: object) -> None:
    """The same content gives the same UID in any order: a retry sends the same objects."""
    first = uid_from_content("SR", "binary", sources, models)
    assert uid_from_content("SR", "binary", sources[::-1], models[::-1]) == first


@given(SOURCES)
def test_a_uid_is_valid(sources: list[tuple[str, str]]) -> None:
    """A UID is under 2.25, at most 64 characters, without leading zeros (PS3.5 9.1 and B.2)."""
    uid = uid_from_content("SEG", "binary", sources, [])
    assert re.fullmatch(r"2\.25\.[1-9]\d*", uid)
    assert len(uid) <= 64


def test_content_kind_profile_and_models_all_count() -> None:
    """Another image, another kind, another encoding or another pack is another object."""
    base = uid_from_content("SR", "binary", [("1", "a")], ["lungs"])
    others = {
        uid_from_content("SEG", "binary", [("1", "a")], ["lungs"]),
        uid_from_content("SR", "labelmap", [("1", "a")], ["lungs"]),
        uid_from_content("SR", "binary", [("1", "b")], ["lungs"]),
        uid_from_content("SR", "binary", [("1", "a")], ["lungs2"]),
    }
    assert base not in others
    assert len(others) == 4


def test_joined_parts_do_not_collide() -> None:
    """`a, bc` and `ab, c` have different digests."""
    assert digest_of("a", "bc") != digest_of("ab", "c")


def test_two_patients_under_one_study_uid_are_two_studies() -> None:
    """A Study Instance UID shared by two patients gives two keys with path-safe names that show no patient data."""
    one, two = (StudyKey("1.1", patient, "") for patient in ("P1", "P2"))
    assert one.token != two.token
    assert re.fullmatch(r"[0-9a-f]{32}", one.token)


def test_a_patient_without_id_is_told_apart_by_name_and_birth_date() -> None:
    """Missing patient IDs do not merge two people."""
    image = radiograph()
    one = replace(image, patient=replace(image.patient, patient_id="", name="A"))
    two = replace(image, patient=replace(image.patient, patient_id="", name="B"))
    assert key_of(one) != key_of(two)


def test_own_results_are_known_by_their_equipment() -> None:
    """A result that comes back from the PACS is recognised."""
    assert not made_here(radiograph())
    assert made_here(radiograph(manufacturer=MANUFACTURER, model_name=MODEL_NAME))


def test_an_error_says_what_happened_and_the_way_forward() -> None:
    """An error reads as two sentences."""
    assert str(InsiteError("The disk is full.", "Free some space.")) == "The disk is full. Free some space."
    assert str(DeliveryError("No answer.", permanent=False)) == "No answer."
