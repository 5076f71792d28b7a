"""The card says what was measured, in words that are true."""

from pathlib import Path

from export.card import ages, model_card, task_card
from export.recipe import recipe_from_toml
from export.shortcuts import FEATURES
from export.tasks import ADULT, task_texts


def test_the_card_names_what_the_trivial_classifier_sees(repository: Path) -> None:
    """It sees numbers that summarise file and picture; what another site will show is not foretold."""
    recipe = recipe_from_toml(repository / "engines" / "chest-xray" / "recipe.toml")
    row = [ADULT, 110, "0.90 [0.80, 0.97]", "0.84 [0.75, 0.92]", "0.800", "0.650", "95.0 %"]
    report = {"tables": [{"title": "Shortcut audit: …", "columns": [], "rows": [row], "note": ""}]}
    task = next(each for each in task_texts() if each.name == ADULT)
    text = task_card(recipe, report, task, {})
    assert "sees a dozen summary numbers alone" in text
    assert len(FEATURES) == 12
    assert "reaches 0.800 and it 0.650; in 95.0 % of resampled patients" in text
    assert "does not exclude it" in text
    assert "sees no picture" not in text
    assert "expect" not in text.lower()


def test_ages_are_said_in_words() -> None:
    """No bound is named that there is none of."""
    said = {task.name: ages(task.eligibility) for task in task_texts()}
    assert said == {
        "guard": "all ages",
        "lungs": "all ages",
        "adult-triage": "18 years and over",
        "paediatric-pneumonia": "from 1 to below 6 years",
    }


def test_the_card_names_the_file_that_it_was_made_from(repository: Path) -> None:
    """The recipe by the digest of its file, a question's title without a full stop, and scanners as not recorded."""
    recipe = recipe_from_toml(repository / "engines" / "chest-xray" / "recipe.toml")
    report = {"summary": "", "tables": [], "verdict": "pass", "judged": "integrity only", "rules": [], "limits": []}
    text = model_card(recipe, report, "untrained", "0123456789abcdef" * 4)
    assert "recipe.toml whose SHA-256 begins with 0123456789ab; do not edit." in text
    assert "radiograph?** Keeps" in text
    assert "Verdict: **pass, integrity only**" in text
    assert "On which scanners the training images were made is not recorded" in text
    assert "`speed.json`" in text
    assert "Verdict: **pass**." in model_card(
        recipe, report | {"judged": "accuracy and integrity"}, "validated", "0" * 64
    )
