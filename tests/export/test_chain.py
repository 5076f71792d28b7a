"""The whole line of steps on a tiny data folder, to a signed pack that says it is untrained."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from appliance.domain.errors import GateError, UnvalidatedPackError
from appliance.domain.manifest import Validation
from appliance.packs.open import open_pack
from appliance.packs.signing import PRIVATE_KEY, PUBLIC_KEY
from export.artefacts import read_json, write_json
from export.cli import app
from export.pack import Parts, pack
from export.recipe import recipe_from_toml


@pytest.fixture(scope="module")
def built(tiny_data: Path, tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of one run of `insite-export run`."""
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("out")
    result = CliRunner().invoke(app, ["run", str(tiny_recipe), "--data", str(tiny_data), "--out", str(out)])
    assert result.exit_code == 0, result.output
    return out


def test_images_become_a_signed_pack_that_says_it_is_untrained(built: Path) -> None:
    """A pack that claims nothing opens only where unvalidated packs are allowed, and with the key that signed it."""
    key = built / "keys" / PUBLIC_KEY
    opened = open_pack(built / "tiny", [key], allow_unvalidated=True)
    assert opened.manifest.validation is Validation.UNTRAINED
    assert next(task.name for task in opened.manifest.tasks) == opened.manifest.guard == "guard"
    with pytest.raises(UnvalidatedPackError):
        open_pack(built / "tiny", [key], allow_unvalidated=False)


def test_finished_steps_are_not_done_again(built: Path, tiny_data: Path, tiny_recipe: Path) -> None:
    """A second run of the same recipe trains nothing and gives the same digest."""
    weights = built / "tiny.steps" / "distil" / "student.safetensors"
    before = weights.stat().st_mtime_ns
    digest = json.dumps(read_json(built / "tiny" / "manifest.json"))
    result = CliRunner().invoke(app, ["run", str(tiny_recipe), "--data", str(tiny_data), "--out", str(built)])
    assert result.exit_code == 0, result.output
    assert weights.stat().st_mtime_ns == before
    assert json.dumps(read_json(built / "tiny" / "manifest.json")) == digest


def test_the_same_parts_make_the_same_pack(built: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    """Packing twice gives one digest: no time, path or random number is in the manifest."""
    steps, key = built / "tiny.steps", built / "keys" / PRIVATE_KEY
    digests = {
        pack(
            recipe_from_toml(tiny_recipe),
            tiny_recipe,
            Parts(*(steps / step for step in ("quantise", "golden", "to_engine", "verify"))),
            private_key=key,
            out=out,
        ).digest
        for out in (tmp_path / "a", tmp_path / "b")
    }
    assert len(digests) == 1


def test_a_failing_gate_makes_no_pack(built: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    """A gate report that does not pass leaves nothing under the pack's name, and the broken rule is named."""
    verified = tmp_path / "verify"
    shutil.copytree(built / "tiny.steps" / "verify", verified)
    report = read_json(verified / "gate-report.json")
    report["verdict"] = "fail"
    report["rules"] = [["mean lung Dice", ">= 0.93", "0.4", "no"]]
    write_json(verified / "gate-report.json", report)
    steps = built / "tiny.steps"
    with pytest.raises(GateError, match="mean lung Dice"):
        pack(
            recipe_from_toml(tiny_recipe),
            tiny_recipe,
            Parts(steps / "quantise", steps / "golden", steps / "to_engine", verified),
            private_key=built / "keys" / PRIVATE_KEY,
            out=tmp_path / "pack",
        )
    assert not (tmp_path / "pack").exists()


def test_a_claim_that_the_figures_do_not_carry_is_refused(
    built: Path, tiny_data: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    """Three steps on noise do not make a validated pack: the run ends with the rules that were broken."""
    steps = tmp_path / "tiny.steps"
    shutil.copytree(built / "tiny.steps", steps)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(tiny_recipe.read_text().replace('claim = "untrained"', 'claim = "validated"'))
    result = CliRunner().invoke(app, ["run", str(recipe), "--data", str(tiny_data), "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "within-NIH AUC of adults" in " ".join(result.output.split())
    assert not (tmp_path / "tiny").exists()


def test_nothing_of_the_building_machine_is_in_the_graphs(built: Path) -> None:
    """Exported graphs hold no stack trace and no path."""
    for graph in (built / "tiny").rglob("*.onnx"):
        data = graph.read_bytes()
        assert b".py" not in data
        assert b"site-packages" not in data


def test_data_without_labels_is_refused(tiny_recipe: Path, tmp_path: Path) -> None:
    """A folder without labels.csv gives a sentence and exit status 2, not a traceback."""
    result = CliRunner().invoke(app, ["run", str(tiny_recipe), "--data", str(tmp_path), "--out", str(tmp_path / "o")])
    assert result.exit_code == 2
    assert "labels.csv" in result.output


def test_keys_are_made_once(tmp_path: Path) -> None:
    """`keygen` makes a pair and never replaces a private key."""
    runner = CliRunner()
    assert runner.invoke(app, ["keygen", "--out", str(tmp_path)]).exit_code == 0
    assert runner.invoke(app, ["keygen", "--out", str(tmp_path)]).exit_code == 2
