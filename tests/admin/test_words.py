"""Every state has its word, and names read as people write them."""

import pytest

from appliance.admin.words import DELIVERY_WORDS, STUDY_WORDS, TASK_WORDS, person
from appliance.domain.findings import TaskState
from appliance.domain.lifecycle import DeliveryState, StudyState


def test_every_state_has_a_word() -> None:
    """No state of a study, a task or a delivery is shown without a word and a sign."""
    for words, states in ((STUDY_WORDS, StudyState), (TASK_WORDS, TaskState), (DELIVERY_WORDS, DeliveryState)):
        assert set(words) == set(states)
        assert all(word.text and word.sign for word in words.values())


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Müller^Änne^Marie", "Müller, Änne Marie"),
        ("Doe^John^^Dr.^Jr.", "Doe, John Dr. Jr."),
        ("Yamada^Tarou=山田^太郎=やまだ^たろう", "Yamada, Tarou / 山田, 太郎 / やまだ, たろう"),
        ("ANONYMOUS", "ANONYMOUS"),
        ("^Given", "Given"),
        ("", "(no name)"),
        ("^^^=", "(no name)"),
    ],
)
def test_person_names(name: str, shown: str) -> None:
    """A DICOM person name is shown as family name, given names, and other scripts after it."""
    assert person(name) == shown
