"""What a pack is made of decides what it may claim."""

import dataclasses
from pathlib import Path

import pytest

from appliance.domain.errors import SettingsError
from appliance.domain.manifest import Validation
from export.card import model_card
from export.gate import INTEGRITY_ONLY
from export.recipe import DataSource, recipe_from_toml
from export.sbom import bill_of_materials
from export.sources import SOURCES, Source, notice, recipe_sources, refuse_claim
from tests.export.test_recipe import with_initial

RESEARCH = Source("Some teacher", "CC BY-NC 4.0", "Somebody", "Teacher.", research_only=True)


def test_a_research_only_source_forbids_the_claim_to_be_validated() -> None:
    """A teacher or data set for research only is named when the recipe claims more than research."""
    with pytest.raises(SettingsError, match="Some teacher is for research only"):
        refuse_claim(Validation.VALIDATED, (*SOURCES, RESEARCH))
    refuse_claim(Validation.RESEARCH_ONLY, (*SOURCES, RESEARCH))


def test_the_default_pack_may_claim_what_it_claims() -> None:
    """Nothing that the default pack is made of bars its use."""
    refuse_claim(Validation.VALIDATED, SOURCES)


def test_the_notice_credits_every_source() -> None:
    """Name, maker and licence of each source stand in NOTICE."""
    text = notice((*SOURCES, RESEARCH))
    for source in (*SOURCES, RESEARCH):
        assert source.name in text
        assert source.origin in text
        assert source.licence in text
    assert text.count("For research only.") == 1


def test_a_data_set_of_ones_own_is_credited_everywhere(tiny_recipe: Path) -> None:
    """Licence and origin of what the recipe names stand in NOTICE, bill of materials and card, and bind the claim."""
    own = DataSource("ours", "Our hospital, 2015 to 2020", "Own data", "Our hospital", research_only=True)
    recipe = dataclasses.replace(recipe_from_toml(tiny_recipe), source=(own,))
    sources = (*SOURCES, *recipe_sources(recipe))
    assert "Our hospital, 2015 to 2020\n    Our hospital\n    Licence: Own data. For research only." in notice(sources)
    component = next(
        each
        for each in bill_of_materials(recipe, sources)["components"]
        if each["name"] == "Our hospital, 2015 to 2020"
    )
    assert (component["type"], component["licenses"]) == ("data", [{"license": {"name": "Own data"}}])
    report = {"summary": "", "tables": [], "rules": [], "verdict": "pass", "judged": INTEGRITY_ONLY}
    card = model_card(recipe, report, "untrained", "0" * 64)
    assert "- Our hospital, 2015 to 2020. Own data. Our hospital." in card
    assert "- Triage on Our hospital, 2015 to 2020: its radiographs carry no label here." in card
    with pytest.raises(SettingsError, match="Our hospital, 2015 to 2020 is for research only"):
        refuse_claim(Validation.VALIDATED, sources)


def test_weights_that_a_student_starts_from_are_a_source(tiny_recipe: Path, tmp_path: Path) -> None:
    """They stand in NOTICE, card and bill of materials, with licence and digest, and limit the pack's claim."""
    recipe = recipe_from_toml(with_initial(tiny_recipe.read_text(), tmp_path))
    sources = (*SOURCES, *recipe_sources(recipe))
    assert [each.name for each in sources[len(SOURCES) :]] == ["one (timm)", "timm.safetensors (narrow)"]
    assert sources[-1].use.endswith("SHA-256 00")
    with pytest.raises(SettingsError, match=r"timm\.safetensors \(narrow\) is for research only"):
        refuse_claim(Validation.VALIDATED, sources)
    report = {"summary": "", "tables": [], "rules": [], "verdict": "pass", "judged": INTEGRITY_ONLY}
    for text in (notice(sources), model_card(recipe, report, "research-only", "0" * 64)):
        assert "Hugging Face, timm" in text
        assert "CC BY-NC 4.0" in text
    (part,) = (each for each in bill_of_materials(recipe, sources)["components"] if each["name"] == sources[-1].name)
    assert part["type"] == "machine-learning-model"
    assert part["licenses"] == [{"license": {"name": "CC BY-NC 4.0"}}]
