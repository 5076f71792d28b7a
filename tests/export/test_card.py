"""The card says what was measured, in words that are true."""

from pathlib import Path

from export.card import task_card
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
