"""Features of several teachers survive kill -9 of the process that asks them, and are counted."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from appliance.domain.errors import InputError
from export.bench_features import Count, Question, bench_features, killed_when
from tests.export.foundations import write_question

PICTURES = 72
"""Two whole shards and a part of one, for each teacher."""
WELL = Count(wanted=6000, kept=3000, lost=8, resumed=3000, rewritten=0, there=6000)


def test_three_teachers_are_asked_once_although_the_process_is_killed(tmp_path: Path) -> None:
    """Every picture is computed once for each teacher, but for the shard that was under way; nothing else is left."""
    recipe, checkpoints = write_question(tmp_path)
    told: list[str] = []
    out = tmp_path / "out"
    found = bench_features(Question(recipe, checkpoints, PICTURES), out, told.append)
    assert found["teachers"] == ["rad-dino", "medsam", "biomedclip"]
    assert found["computed"] == found["wanted"] == found["there"] == 3 * PICTURES
    assert 0 < found["kept"] < found["wanted"]
    assert found["resumed"] == found["wanted"] - found["kept"]
    assert (found["rewritten"], found["met"]) == (0, True)
    dense_and_pooled = 2 * PICTURES * (16 + 1) * (32 + 32 + 192)
    assert found["bytes"] > 0.9 * dense_and_pooled
    assert found["seconds"] > 0
    assert told == ["features of rad-dino, medsam, biomedclip, killed once"]
    assert not list(out.iterdir())
    json.dumps(found)


def test_without_foundation_teachers_nets_of_the_recipe_stand_in(tiny_recipe: Path, tmp_path: Path) -> None:
    """No checkpoint is needed: the recipe's three architectures are asked, with random weights."""
    found = bench_features(Question(tiny_recipe, None, 40), tmp_path, lambda _: None)
    assert (found["teachers"], found["computed"], found["met"]) == (["teacher", "second_teacher", "student"], 120, True)


def test_what_is_done_twice_is_not_met() -> None:
    """A picture too many or too few, a shard made again, and more lost than a shard, each fail."""
    assert WELL.met
    for changes in ({"resumed": 3001}, {"resumed": 2999}, {"rewritten": 1}, {"there": 5999}, {"lost": 33}):
        assert not dataclasses.replace(WELL, **changes).met


def test_a_process_that_ends_by_itself_is_said(tmp_path: Path) -> None:
    """What is over before it can be killed shows nothing; its last words are kept."""
    command = [sys.executable, "-c", "import sys; sys.exit('no such teacher')"]
    with pytest.raises(InputError, match=r"ended before it was killed\. no such teacher$"):
        killed_when(1, command, tmp_path)
    with pytest.raises(InputError, match="Take more pictures"):
        killed_when(1, [sys.executable, "-c", "pass"], tmp_path)


def test_checkpoints_are_asked_for(tmp_path: Path) -> None:
    """A recipe with foundation teachers needs the folder of their files, and files that fit."""
    recipe, checkpoints = write_question(tmp_path)
    with pytest.raises(InputError, match="names foundation teachers"):
        bench_features(Question(recipe, None, PICTURES), tmp_path, lambda _: None)
    (checkpoints / "medsam" / "medsam_vit_b.pth").write_bytes(b"other")
    with pytest.raises(InputError, match="ended before it was killed"):
        bench_features(Question(recipe, checkpoints, PICTURES), tmp_path, lambda _: None)
