"""`insite-export bench` measures the shipped pack and says which figures are met."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from export import bench as bench_module
from export.bench import InTurn, bench
from export.cli import app
from export.recipe import recipe_from_toml
from export.runner import Grey

REPORTED = {
    "adult_auc": 0.93, "adult_auc_low": 0.87, "teacher_adult_auc": 0.95, "paediatric_auc": 0.98, "dice": 0.95,
    "teacher_dice": 0.955, "dice_p5": 0.9,
    "int8_lost": {"adult-triage": 0.006, "paediatric-pneumonia": -0.001, "dice": 0.001},
    "subgroups": [
        {"name": "sex F", "images": 60, "auc": 0.94, "teacher_auc": 0.95},
        {"name": "sex M", "images": 60, "auc": 0.90, "teacher_auc": 0.95},
        {"name": "view AP", "images": 49, "auc": 0.80, "teacher_auc": 0.95},
    ],
}  # fmt: skip
EXPECTED = {
    "int8_auc_lost_adult": (0.006, False), "int8_auc_lost_paediatric": (-0.001, True), "int8_dice_lost": (0.001, True),
    "auc_share_of_teachers": (0.93 / 0.95, False), "dice_share_of_teachers": (0.95 / 0.955, True),
    "worst_subgroup_share": (0.90 / 0.95, False), "auc_nih_adults": (0.93, True), "auc_nih_adults_low": (0.87, False),
    "auc_nih_ap": (0.80, False), "auc_kermany": (0.98, False), "auc_gap_sexes": (0.04, True), "dice_mean": (0.95, True),
    "dice_p5": (0.9, True),
}  # fmt: skip
"""What the report above comes to, and whether it is good enough; losses and gaps are better when small."""
FASTER_BY = {
    "int8_vs_fp32_batch_1": 1.4, "int8_vs_fp32_batch_8": 2.0, "int8_vs_teachers_batch_1": 3.0,
    "int8_vs_teachers_batch_8": 4.0,
}  # fmt: skip


def test_every_figure_is_measured_in_one_run(repository: Path, tmp_path: Path) -> None:
    """A speed is the reference's time over the candidate's, an accuracy the gate report's; each has its bound."""
    shipped = repository / "engines" / "chest-xray"
    for name in ("encoder.onnx", "encoder.int8.onnx"):
        shutil.copy(shipped / name, tmp_path)
    (tmp_path / "gate-report.json").write_text(json.dumps({"figures": REPORTED}))
    result = bench(recipe_from_toml(shipped / "recipe.toml"), tmp_path, lambda _: None, rounds=1)
    rows = {row["name"]: row for row in result["rows"]}
    for name, (value, met) in EXPECTED.items():
        assert (rows[name]["measured"], rows[name]["met"]) == (pytest.approx(value, abs=5e-5), met), name
    for name, bound in FASTER_BY.items():
        what, batch = name.split("_batch_")
        times = result["raw"][what][f"batch_{batch}"]
        assert times["reference_ms"] > 0 < times["candidate_ms"]
        assert times["median"] == times["low"] == times["high"]
        assert times["median"] == pytest.approx(times["reference_ms"] / times["candidate_ms"])
        assert rows[name]["measured"] == round(times["median"], 4)
        assert rows[name]["met"] == (times["median"] >= bound), name
    for batch in ("batch_1", "batch_8"):
        alone = [result["raw"][f"int8_vs_{name}"] for name in ("teacher", "second_teacher")]
        assert [each["architecture"] for each in alone] == ["efficientnet_lite2", "efficientnet_lite0"]
        note = rows[f"int8_vs_teachers_{batch}"]["note"]
        assert "against one net of each teacher in turn (3 answer together)" in note
        assert all(f"{each['architecture']} alone {each[batch]['median']:.2f}" in note for each in alone)
    for name in ("engine_fp16_seconds", "engine_fp16_megabytes"):
        assert (rows[name]["measured"], rows[name]["met"]) == (None, False)
    assert set(rows) == {*EXPECTED, *FASTER_BY, "engine_fp16_seconds", "engine_fp16_megabytes"}


class Noting:
    """An encoder that notes what it is shown."""

    def __init__(self) -> None:
        self.seen: list[Grey] = []

    def features(self, images: Grey) -> None:
        """Note the images."""
        self.seen.append(images)


def test_teachers_in_turn_all_look_at_every_image() -> None:
    """The time of the ensemble is that of each encoder on the whole batch, one after the other."""
    encoders = (Noting(), Noting())
    images = np.zeros((8, 1, 4, 4), np.uint8)
    InTurn(encoders).features(images)
    assert [len(each.seen) for each in encoders] == [1, 1]
    assert all(each.seen[0] is images for each in encoders)


def test_the_command_prints_json_or_a_table(
    repository: Path, tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--json` is for machines; without it a line a figure, and what was not measured is said."""
    monkeypatch.setattr(bench_module.bench, "__defaults__", (1,))
    where = ["bench", "--pack", str(repository / "engines" / "chest-xray"), "--out", str(tmp_path)]
    printed = CliRunner().invoke(app, [*where, "--json"])
    assert printed.exit_code == 0, printed.output
    found = json.loads(printed.stdout)
    assert set(found) == {"rows", "ratios", "raw", "distillation", "features", "not_measured"}
    assert (found["distillation"], found["features"]) == (None, None)
    assert "--distillation-steps N" in found["not_measured"]["distillation"]
    assert "--features N" in found["not_measured"]["features"]
    table = CliRunner().invoke(app, [*where, "--features", "33", "--recipe", str(tiny_recipe)])
    assert "distilled against direct: not measured here" in table.stdout
    assert "features cached" not in table.stdout
    assert "features of 3 teachers for 33 pictures, killed once: 99 computed of 99" in table.stdout
    assert "killed once" in table.stderr


def test_a_pack_that_is_not_there_is_named(tmp_path: Path) -> None:
    """A folder without a recipe gives a sentence and exit status 2."""
    result = CliRunner().invoke(app, ["bench", "--pack", str(tmp_path)])
    assert result.exit_code == 2
    assert "recipe.toml" in "".join(result.output.split())
