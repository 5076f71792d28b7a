"""What was trained is known by what it was made of, and is not taken for something else."""

import shutil
import sys
from pathlib import Path

import pytest
from pydicom.data import get_testdata_file
from typer.testing import CliRunner

from appliance.domain.errors import InputError
from appliance.packs.signing import PRIVATE_KEY
from export.artefacts import DONE, read_json, write_json
from export.bench_training import RESULT, Comparison, compare_training, last_result, made_of
from export.cli import app
from export.layout import ENGINE_RECORD
from export.line import STEP_VERSIONS, Line
from export.negatives import UNREAD
from export.progress import Silent
from export.recipe import recipe_from_toml
from export.to_engine import library_versions
from tests.export.conftest import write_dicom_index


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("seed = 5", "seed = 7"),
        ("tune_percent = 40", "tune_percent = 41"),
        ("soft_mask_weight = 0.5", "soft_mask_weight = 0.25"),
        ("trainings = 2", "trainings = 1"),
    ],
)
def test_nets_of_another_recipe_are_not_asked(
    built: Path, tiny: tuple[Path, Path], tmp_path: Path, old: str, new: str
) -> None:
    """Other splits would ask about patients that were learned from: what was trained before is left, and not asked."""
    data, recipe = tiny
    edited = tmp_path / "recipe.toml"
    edited.write_text(recipe.read_text().replace(old, new))
    before = (built / "tiny.steps" / "data").stat().st_ino
    refused = CliRunner().invoke(app, ["attribution", str(edited), "--data", str(data), "--out", str(built)])
    assert refused.exit_code == 2
    assert "Train it first: `insite-export run`" in " ".join(refused.stderr.split())
    assert (built / "tiny.steps" / "data").stat().st_ino == before


def test_nets_of_other_labels_are_not_asked(built: Path, tiny: tuple[Path, Path], tmp_path: Path) -> None:
    """A changed `labels.csv` may have moved a patient; the data of the training itself is found wherever it lies."""
    data, recipe = tiny
    shutil.copytree(data, tmp_path / "data")
    line = Line(recipe, tmp_path / "data", built, Silent())
    assert line.taught() == Line(recipe, data, built, Silent()).taught()
    labels = tmp_path / "data" / "labels.csv"
    labels.write_text(labels.read_text().replace(",PA,", ",AP,", 1))
    with pytest.raises(InputError, match=r"tiny\.steps/data is not there, or was made with .* other data"):
        Line(recipe, tmp_path / "data", built, Silent()).taught()


def test_a_comparison_needs_the_teachers_of_the_packs_recipe(
    built: Path, tiny: tuple[Path, Path], tmp_path: Path
) -> None:
    """Before anything is measured: the data must be named, and pictures and teachers must be of this recipe."""
    shutil.copytree(built / "tiny", tmp_path / "tiny")
    recipe = tmp_path / "tiny" / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("seed = 5", "seed = 7"))
    command = ["bench", "--pack", str(tmp_path / "tiny"), "--out", str(built), "--distillation-steps", "1"]
    for more, said in (([], "Give its folder: --data"), (["--data", str(tiny[0])], "Train it first")):
        refused = CliRunner().invoke(app, [*command, *more])
        assert refused.exit_code == 2
        assert said in " ".join(refused.stderr.split())


class Heard(Silent):
    """Keeps what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        """One line."""
        self.said.append(text)


def test_negatives_are_gathered_anew_when_a_download_is_complete(
    built: Path, tiny: tuple[Path, Path], tmp_path: Path
) -> None:
    """The index alone does not tell: what it lists and is not there is said, and read once it is there."""
    (data, recipe), site, heard = tiny, tmp_path / "site", Heard()
    shutil.copytree(built / "tiny.steps" / "data", tmp_path / "tiny.steps" / "data")
    shutil.copytree(data, site / "data")
    (site / "dicom").mkdir()
    write_dicom_index(site / "dicom", ["slice.dcm"])
    line = Line(recipe, site / "data", tmp_path, heard)
    first = line._gathered(line.prepared())
    negatives = tmp_path / "tiny.steps" / "negatives"
    assert heard.said[-1].startswith("1 of 1 DICOM files can't be read")
    assert read_json(negatives / UNREAD)["files"][0]["file"] == "slice.dcm"
    shutil.copy(str(get_testdata_file("CT_small.dcm")), site / "dicom" / "slice.dcm")
    assert line._gathered(line.prepared()) != first
    assert "DICOM CT" in {each["kind"] for each in read_json(negatives / "negatives.json")}
    assert "can't be read" not in heard.said[-1]


def test_engines_are_built_anew_when_the_library_comes_or_goes(
    built: Path, tiny: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step's record says what the library that is here now made of the graphs, not what another one did."""
    shutil.copytree(built / "tiny.steps", tmp_path / "tiny.steps")
    record = tmp_path / "tiny.steps" / "to_engine" / ENGINE_RECORD
    assert "tensorrt-rtx-missing" not in read_json(record)
    assert library_versions()[0]
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", None)
    assert not library_versions()[0]
    data, recipe = tiny
    Line(recipe, data, tmp_path, Silent()).run(built / "keys" / PRIVATE_KEY)
    assert "tensorrt-rtx-missing" in read_json(record)


@pytest.mark.parametrize(
    ("step", "file"), [("data", "images.npy"), ("teachers", "teacher.safetensors"), ("second_teacher", "")]
)
def test_a_comparison_of_other_pictures_or_teachers_is_not_shown(
    built: Path, tiny_recipe: Path, tmp_path: Path, step: str, file: str
) -> None:
    """What was found with other contents under the same names is not this recipe's, nor is it without them."""
    recipe, steps = recipe_from_toml(tiny_recipe), tmp_path / "tiny.steps"
    for name in ("data", "teachers", "second_teacher"):
        shutil.copytree(built / "tiny.steps" / name, steps / name)
    write_json(tmp_path / RESULT, {"gain": 1.0, "made_of": made_of(recipe, steps)})
    assert last_result(tmp_path, recipe, steps) == read_json(tmp_path / RESULT)
    done = steps / step / DONE
    record = read_json(done)
    if file:
        assert record["files"][file]
        write_json(done, record | {"files": record["files"] | {file: "0" * 64}})
    else:
        done.unlink()
    assert last_result(tmp_path, recipe, steps) is None


def test_a_comparison_is_trained_anew_when_the_way_of_distilling_changed(
    built: Path, tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another version of the step trained is neither shown nor taken for a training of this one."""
    recipe, steps, plan = recipe_from_toml(tiny_recipe), built / "tiny.steps", Comparison(1, (1,))
    inputs = []
    for version in (1, 2):
        monkeypatch.setitem(STEP_VERSIONS, "distil", version)
        assert last_result(tmp_path, recipe, steps) is None
        compare_training(recipe, steps, plan=plan, out=tmp_path, say=lambda _: None)
        inputs.append([read_json(tmp_path / name / DONE)["inputs"] for name in ("distilled-1", "direct-1")])
    assert not set(inputs[0]) & set(inputs[1])
