"""The list of packs is shown as far as it can be read, and what is not validated is never silent."""

import json
from pathlib import Path

import pytest

from appliance.admin.packs_list import read_engines, read_packs
from appliance.domain.findings import ModelProvenance
from appliance.domain.manifest import Validation
from tests.fakes.scene import DIGEST, PACKS, PROVENANCE


@pytest.mark.parametrize("validation", [*(each.value for each in Validation), "certified", None])
def test_all_but_validated_is_labelled(tmp_path: Path, validation: str | None) -> None:
    """Untrained, synthetic, research-only and unknown packs carry a caution; a validated one does not."""
    file = tmp_path / "packs.json"
    file.write_text(json.dumps([{**PACKS[0], "validation": validation}]))
    caution = read_packs(file).caution_of(PROVENANCE)
    assert (caution is None) == (validation == "validated")


def test_a_result_of_a_pack_that_is_gone_has_an_unknown_validation(tmp_path: Path) -> None:
    """A result of another digest than the installed pack's is not vouched for."""
    file = tmp_path / "packs.json"
    file.write_text(json.dumps([{**PACKS[0], "validation": "validated"}]))
    other = ModelProvenance("chest-xray", 1, DIGEST[::-1], "b" * 64, "int8")
    caution = read_packs(file).caution_of(other)
    assert caution is not None
    assert "no longer installed" in caution.sentence


@pytest.mark.parametrize(
    ("text", "problem"),
    [(None, "not said yet"), ("{", "can't be read"), ("{}", "not of the expected form"), ("[1]", "expected form")],
)
def test_a_missing_or_broken_list_is_said(tmp_path: Path, text: str | None, problem: str) -> None:
    """Without a readable list the page says so instead of showing no pack."""
    file = tmp_path / "packs.json"
    if text is not None:
        file.write_text(text)
    listed = read_packs(file)
    assert problem in listed.problem
    assert not listed.packs


def test_engines_that_are_being_built_say_how_far_they_are(tmp_path: Path) -> None:
    """The daemon's other list lies beside the packs'; without it, or with a broken one, nothing is in the way."""
    file = tmp_path / "packs.json"
    assert read_engines(file) == []
    entry = {"pack": "chest-xray", "engine": "e.trtrtx.engine", "state": "building", "phase": "Tactics", "step": 3}
    (tmp_path / "engines.json").write_text(json.dumps([{**entry, "steps": 10, "reason": ""}]))
    (line,) = read_engines(file)
    assert (line.pack, line.state, line.far) == ("chest-xray", "building", "Tactics: 3 of 10")
    for broken in ("{", "[1]", '[{"step": 1}]'):
        (tmp_path / "engines.json").write_text(broken)
        assert read_engines(file) == []
