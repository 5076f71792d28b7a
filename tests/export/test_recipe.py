"""A recipe is read strictly."""

from pathlib import Path

import pytest

from appliance.domain.errors import SettingsError
from export.recipe import as_json, recipe_from_toml
from tests.export.foundations import AGGLOMERATION


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


@pytest.mark.parametrize("side", [0, -8, 4, 100])
def test_a_mask_that_can_not_be_cut_into_pieces_is_refused(tiny_recipe: Path, tmp_path: Path, side: int) -> None:
    """What `attribution` would stumble over at the end of the line is found before it begins."""
    path = tmp_path / "recipe.toml"
    path.write_text(tiny_recipe.read_text().replace("mask_side = 64", f"mask_side = {side}"))
    with pytest.raises(SettingsError, match=rf"data\.mask_side of the recipe is {side}\..*multiple of 8"):
        recipe_from_toml(path)


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    """A recipe that is not there is refused by its path."""
    with pytest.raises(SettingsError, match=r"nowhere\.toml"):
        recipe_from_toml(tmp_path / "nowhere.toml")


TEACHER = """
[[foundation]]
name = "one"
kind = "{kind}"
licence = "some licence"
research_only = {research}
weight = {weight}
checkpoint = "one"
"""


def with_teacher(
    recipe: str,
    folder: Path,
    *,
    kind: str = "timm",
    research: bool = False,
    weight: float = 1.0,
    claim: str = "untrained",
) -> Path:
    """A recipe with one foundation teacher."""
    path = folder / "recipe.toml"
    teacher = TEACHER.format(kind=kind, research=str(research).lower(), weight=weight)
    recipe = recipe.replace("starts_from_second_teacher = true", "starts_from_second_teacher = false")
    path.write_text(recipe.replace('claim = "untrained"', f'claim = "{claim}"') + AGGLOMERATION + teacher)
    return path


@pytest.mark.parametrize(("kind", "research"), [("rad-dino", False), ("biomedclip", False), ("timm", True)])
def test_a_research_only_teacher_forbids_a_validated_pack(
    tiny_recipe: Path, tmp_path: Path, kind: str, *, research: bool
) -> None:
    """A pack that learned from a research-only model may call itself research-only, never validated."""
    recipe = tiny_recipe.read_text()
    with pytest.raises(SettingsError, match="for research only") as caught:
        recipe_from_toml(with_teacher(recipe, tmp_path, kind=kind, research=research, claim="validated"))
    assert 'claim = "research-only"' in caught.value.way_forward
    recipe_from_toml(with_teacher(recipe, tmp_path, kind=kind, research=research, claim="research-only"))


SOURCE = """
[[source]]
name = "{name}"
title = "Our hospital, 2015 to 2020"
licence = "Own data"
origin = "Our hospital"
research_only = true
"""


def test_a_data_set_of_ones_own_may_be_left_out(tiny_recipe: Path, tmp_path: Path) -> None:
    """Without one no digest changes; with one it is part of the recipe."""
    assert "source" not in as_json(recipe_from_toml(tiny_recipe))
    path = tmp_path / "recipe.toml"
    path.write_text(tiny_recipe.read_text() + SOURCE.format(name="ours"))
    (source,) = as_json(recipe_from_toml(path))["source"]
    assert (source["name"], source["research_only"]) == ("ours", True)


def test_a_data_set_that_does_not_fit_is_named(tiny_recipe: Path, tmp_path: Path) -> None:
    """A name that is none, a missing key, no list of tables, and a licence that the claim exceeds."""
    path, recipe = tmp_path / "recipe.toml", tiny_recipe.read_text()
    path.write_text(recipe + SOURCE.format(name="Our data"))
    with pytest.raises(SettingsError, match="'Our data' has no plain name"):
        recipe_from_toml(path)
    path.write_text(recipe + SOURCE.format(name="ours").replace('origin = "Our hospital"\n', ""))
    with pytest.raises(SettingsError, match="lacks the key 'origin'"):
        recipe_from_toml(path)
    path.write_text(recipe + SOURCE.format(name="ours").replace("[[source]]", "[source]"))
    with pytest.raises(SettingsError, match="source of the recipe is no list") as refused:
        recipe_from_toml(path)
    assert "[[source]]" in refused.value.way_forward
    path.write_text(recipe.replace('claim = "untrained"', 'claim = "validated"') + SOURCE.format(name="ours"))
    with pytest.raises(SettingsError, match=r"source ours is for research only \(Own data\)"):
        recipe_from_toml(path)


def test_a_free_teacher_allows_a_validated_pack(tiny_recipe: Path, tmp_path: Path) -> None:
    """MedSAM under Apache-2.0 forbids nothing."""
    recipe = recipe_from_toml(with_teacher(tiny_recipe.read_text(), tmp_path, kind="medsam", claim="validated"))
    assert recipe.foundation[0].kind == "medsam"


INITIAL = """initial = "w/timm.safetensors"
initial_sha256 = "00"
initial_licence = "CC BY-NC 4.0"
initial_origin = "Hugging Face, timm"
initial_research_only = true
"""


def with_initial(recipe: str, folder: Path, initial: str = INITIAL, claim: str = "research-only") -> Path:
    """A recipe with one foundation teacher and weights that its student starts from."""
    path = with_teacher(recipe, folder, claim=claim)
    path.write_text(path.read_text().replace("checkpoint_steps = 2\n", f"checkpoint_steps = 2\n{initial}"))
    return path


def test_weights_to_start_from_say_whose_they_are(tiny_recipe: Path, tmp_path: Path) -> None:
    """Digest, licence, publisher and whether they are for research only: each is asked for by its name."""
    given = tiny_recipe.read_text()
    section = recipe_from_toml(with_initial(given, tmp_path)).agglomeration
    assert section is not None
    assert (section.initial_licence, section.initial_research_only) == ("CC BY-NC 4.0", True)
    for line in INITIAL.splitlines(keepends=True)[1:]:
        key = line.split(" = ")[0]
        with pytest.raises(SettingsError, match=f"with initial weights lacks the key '{key}'"):
            recipe_from_toml(with_initial(given, tmp_path, INITIAL.replace(line, "")))
        if key in {"initial_licence", "initial_origin"}:
            with pytest.raises(SettingsError, match=rf"agglomeration\.{key} of the recipe is empty"):
                recipe_from_toml(with_initial(given, tmp_path, INITIAL.replace(line, f'{key} = " "\n')))


def test_research_only_weights_to_start_from_forbid_a_validated_pack(tiny_recipe: Path, tmp_path: Path) -> None:
    """A student that begins with non-commercial weights is no free one, however it is trained then."""
    given, free = tiny_recipe.read_text(), INITIAL.replace("only = true", "only = false")
    with pytest.raises(SettingsError, match=r"w/timm\.safetensors are for research only \(CC BY-NC 4\.0\)"):
        recipe_from_toml(with_initial(given, tmp_path, claim="validated"))
    assert recipe_from_toml(with_initial(given, tmp_path, free, "validated")).pack.claim == "validated"


def test_teachers_that_do_not_fit_together_are_refused(tiny_recipe: Path, tmp_path: Path) -> None:
    """Teachers come with the section on how to learn from them, by different names, at least one with a weight."""
    path, given = tmp_path / "recipe.toml", tiny_recipe.read_text()
    plain = given.replace("starts_from_second_teacher = true", "starts_from_second_teacher = false")
    one = TEACHER.format(kind="timm", research="false", weight=1.0)
    unheard = plain.replace("soft_label_weight = 1.0", "soft_label_weight = 0.0")
    for text, said in (
        (given + AGGLOMERATION + one, "from the second teacher and from foundation teachers"),
        (plain + one, "only one of"),
        (plain + AGGLOMERATION, "only one of"),
        (plain + AGGLOMERATION + one + one, "the same name"),
        (plain + AGGLOMERATION + one.replace('name = "one"', 'name = "../one"'), "no plain name"),
        (plain + AGGLOMERATION + one.replace("weight = 1.0", "weight = 0"), "weight above 0"),
        (plain + AGGLOMERATION.replace("views = 2", "views = 0") + one, "agglomeration.views"),
        (plain + AGGLOMERATION + one + "surprise = 1\n", "surprise"),
        (plain + AGGLOMERATION + one.replace('name = "one"\n', ""), "name"),
        (plain + AGGLOMERATION + one + "members = [1]\n", "must hold texts"),
        (plain + AGGLOMERATION + one + '[foundation.digests]\n"a" = 1\n', "must hold texts"),
        (plain + AGGLOMERATION + one + 'members = { a = "b" }\n', "must hold texts, in a list"),
        (plain + AGGLOMERATION + one + 'digests = ["a"]\n', "must hold texts, in a table"),
        (plain + AGGLOMERATION + one + "answers = { adult-triage = true }\n", "must hold whole numbers"),
        (plain + AGGLOMERATION + one + "answers = { adult-triage = -1 }\n", "count from 0"),
        (plain + AGGLOMERATION + one + "answers = { lungs = 0 }\n", "is to answer 'lungs'"),
        (plain + AGGLOMERATION + one.replace("timm", "medsam") + "answers = { adult-triage = 0 }\n", "has no classes"),
        (unheard + AGGLOMERATION + one + "answers = { adult-triage = 0 }\n", "student learns nothing"),
        ("foundation = 1\n" + plain, "no list of tables"),
    ):
        path.write_text(text)
        with pytest.raises(SettingsError, match=said):
            recipe_from_toml(path)


def test_a_recipe_without_foundation_teachers_has_the_digest_that_it_had(tiny_recipe: Path) -> None:
    """What a recipe leaves out does not change the card's digest of it."""
    values = as_json(recipe_from_toml(tiny_recipe))
    assert not {"foundation", "agglomeration"} & set(values)
    assert [values[name].get("trainings") for name in ("teacher", "second_teacher", "student")] == [None, 2, None]


def test_a_required_precision_is_one_that_is_made(tiny_recipe: Path, tmp_path: Path) -> None:
    """Another name is refused; keys of quantisation and gate that are left out change no digest."""
    values = as_json(recipe_from_toml(tiny_recipe))
    assert "keep" not in values["quantise"]
    assert not {"required_precisions", "adult_auc_aim", "adult_auc_low_aim", "sex_gap_aim"} & set(values["gate"])
    path = tmp_path / "recipe.toml"
    path.write_text(tiny_recipe.read_text().replace("[gate]\n", '[gate]\nrequired_precisions = ["int8", "fp16"]\n', 1))
    assert as_json(recipe_from_toml(path))["gate"]["required_precisions"] == ("int8", "fp16")
    path.write_text(path.read_text().replace('"fp16"]', '"fp8"]', 1))
    with pytest.raises(SettingsError, match=r"gate\.required_precisions of the recipe names 'fp8'"):
        recipe_from_toml(path)


def test_fewer_than_no_steps_of_fine_tuning_are_refused(tiny_recipe: Path, tmp_path: Path) -> None:
    """The key may be left out, which changes no digest; below 0 it is refused by its name."""
    assert "aware_steps" not in as_json(recipe_from_toml(tiny_recipe))["quantise"]
    path = tmp_path / "recipe.toml"
    path.write_text(tiny_recipe.read_text().replace("[quantise]\n", "[quantise]\naware_steps = 24\n", 1))
    assert as_json(recipe_from_toml(path))["quantise"]["aware_steps"] == 24
    path.write_text(path.read_text().replace("aware_steps = 24", "aware_steps = -1", 1))
    with pytest.raises(SettingsError, match=r"quantise\.aware_steps of the recipe is -1"):
        recipe_from_toml(path)
