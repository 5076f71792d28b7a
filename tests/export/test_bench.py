"""`insite-export bench` measures the shipped pack and says which figures are met."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from export import bench as bench_module
from export.bench import bench
from export.cli import app
from export.recipe import recipe_from_toml

NAMES = {
    "int8_vs_fp32_batch_1", "int8_vs_fp32_batch_8", "int8_vs_teacher_batch_1", "int8_vs_teacher_batch_8",
    "auc_nih_adults", "dice_mean", "engine_fp16_seconds", "engine_fp16_megabytes",
}  # fmt: skip


def test_every_figure_is_measured_in_one_run(repository: Path) -> None:
    """Speeds come with their quartiles, accuracies out of the signed gate report, each beside its bound."""
    pack = repository / "engines" / "chest-xray"
    result = bench(recipe_from_toml(pack / "recipe.toml"), pack, lambda _: None, rounds=1)
    assert set(result["ratios"]) >= NAMES
    assert all(row["met"] in (True, False) for row in result["rows"])
    assert set(result["raw"]["int8_vs_fp32"]["batch_8"]) == {
        "median", "low", "high", "reference_ms", "candidate_ms",
    }  # fmt: skip


def test_the_command_prints_json_or_a_table(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--json` is for machines; without it a line a figure, and what was not measured is said."""
    monkeypatch.setattr(bench_module.bench, "__defaults__", (1,))
    where = ["bench", "--pack", str(repository / "engines" / "chest-xray"), "--out", str(tmp_path)]
    printed = CliRunner().invoke(app, [*where, "--json"])
    assert printed.exit_code == 0, printed.output
    assert set(json.loads(printed.stdout)) == {"rows", "ratios", "raw", "distillation"}
    table = CliRunner().invoke(app, where)
    assert "distilled against direct: not measured here" in table.stdout


def test_a_pack_that_is_not_there_is_named(tmp_path: Path) -> None:
    """A folder without a recipe gives a sentence and exit status 2."""
    result = CliRunner().invoke(app, ["bench", "--pack", str(tmp_path)])
    assert result.exit_code == 2
    assert "recipe.toml" in " ".join(result.output.split())
