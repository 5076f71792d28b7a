"""A recipe is read strictly."""

from pathlib import Path

import pytest

from appliance.domain.errors import SettingsError
from export.recipe import recipe_from_toml


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("[guard]\n", "[guard]\nsurprise = 1\n", "surprise"),
        ("[guard]\n", "[attic]\nx = 1\n[guard]\n", "attic"),
        ("seed = 5\n", "", "seed"),
        ("seed = 5\n", 'seed = "five"\n', "pack.seed"),
        ("seed = 5\n", "seed = true\n", "pack.seed"),
        ("seed = 5\n", "seed = = 5\n", "can't be read"),
    ],
)
def test_what_does_not_fit_is_named(tiny_recipe: Path, tmp_path: Path, old: str, new: str, named: str) -> None:
    """An unknown, missing or mistyped key, and a file that is no TOML, are refused by name."""
    path = tmp_path / "recipe.toml"
    path.write_text(tiny_recipe.read_text().replace(old, new, 1))
    with pytest.raises(SettingsError, match=named):
        recipe_from_toml(path)


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    """A recipe that is not there is refused by its path."""
    with pytest.raises(SettingsError, match=r"nowhere\.toml"):
        recipe_from_toml(tmp_path / "nowhere.toml")
