"""Three foundation teachers in their published layouts teach one student, to a signed pack that says what it is."""

import dataclasses
import tomllib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from appliance.domain.errors import InputError, SettingsError, UnvalidatedPackError
from appliance.domain.manifest import Validation
from appliance.packs.open import open_pack
from appliance.packs.signing import PUBLIC_KEY
from export.artefacts import file_sha256
from export.cli import app
from export.foundation import started
from export.line import Line
from export.progress import Silent
from export.recipe import recipe_from_toml
from export.student import ARCHITECTURES, MultiTaskNet
from export.teachers.published import PUBLICATIONS
from export.teachers.shelf import teacher_from_recipe
from tests.export.foundations import three_teachers, write_checkpoints


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny random RAD-DINO, MedSAM and BiomedCLIP."""
    return write_checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="module")
def recipe(tiny_recipe: Path, checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny recipe with three teachers."""
    path = tmp_path_factory.mktemp("three") / "recipe.toml"
    path.write_text(three_teachers(tiny_recipe.read_text(), checkpoints))
    return path


def with_own_classifier(checkpoints: Path) -> str:
    """The table of a classifier that answers and whose features nobody learns, with its file among the checkpoints."""
    folder = checkpoints / "own"
    folder.mkdir()
    torch.manual_seed(0)
    save_file(MultiTaskNet(ARCHITECTURES["narrow"]).state_dict(), folder / "teacher.safetensors")
    return f"""
[[foundation]]
name = "own"
kind = "classifier"
licence = "random weights of a test"
research_only = false
weight = 0.0
checkpoint = "own"
model = "narrow"
answers = {{ adult-triage = 0 }}
digests = {{ "teacher.safetensors" = "{file_sha256(folder / "teacher.safetensors")}" }}
"""


@pytest.mark.slow
def test_three_teachers_become_a_signed_pack_that_says_it_is_untrained(
    tiny_data: Path, recipe: Path, checkpoints: Path, tmp_path: Path
) -> None:
    """From three checkpoints to a pack in one command.

    The appliance refuses it unless unvalidated ones are allowed. A classifier of the site's own gives soft labels
    beside them.
    """
    path = tmp_path / "recipe.toml"
    path.write_text(recipe.read_text() + with_own_classifier(checkpoints))
    arguments = ["run", str(path), "--data", str(tiny_data), "--out", str(tmp_path)]
    result = CliRunner().invoke(app, [*arguments, "--checkpoints", str(checkpoints)])
    assert result.exit_code == 0, result.output
    steps = tmp_path / "tiny.steps"
    assert {f"foundation.{name}" for name in ("rad-dino", "medsam", "biomedclip")} <= {
        path.name for path in steps.iterdir()
    }
    assert (steps / "agglomerate" / "encoder.safetensors").is_file()
    key = tmp_path / "keys" / PUBLIC_KEY
    assert open_pack(tmp_path / "tiny", [key], allow_unvalidated=True).manifest.validation is Validation.UNTRAINED
    for name in ("MODEL_CARD.md", "NOTICE", "sbom.cdx.json"):
        text = (tmp_path / "tiny" / name).read_text()
        assert "microsoft/rad-dino" in text
        assert "Soft labels of adult-triage" in text
    assert (
        "Soft labels beside those of the two teachers: own of adult-triage."
        in (tmp_path / "tiny" / "MODEL_CARD.md").read_text()
    )
    assert not (steps / "foundation.own").exists()
    with pytest.raises(UnvalidatedPackError, match="untrained"):
        open_pack(tmp_path / "tiny", [key], allow_unvalidated=False)
    line = Line(path, tiny_data, tmp_path, Silent())
    assert line._student() == steps / "distil" / "student.safetensors"  # found without the checkpoints
    (steps / "agglomerate" / "encoder.safetensors").unlink()
    with pytest.raises(InputError, match="agglomerate is not there, or was made with another recipe"):
        line._student()


def test_the_recipe_of_the_published_teachers_fits(repository: Path, tmp_path: Path) -> None:
    """`three-teachers.toml`, appended to the shipped recipe as the manual says, fits, and may not claim too much."""
    shipped = (repository / "engines" / "chest-xray" / "recipe.toml").read_text()
    shipped = shipped.replace("starts_from_second_teacher = true", "starts_from_second_teacher = false")
    appended = (repository / "export" / "recipes" / "three-teachers.toml").read_text()
    path = tmp_path / "recipe.toml"
    path.write_text(shipped + "\n" + appended)
    with pytest.raises(SettingsError, match="for research only"):
        recipe_from_toml(path)
    path.write_text(shipped.replace('claim = "validated"', 'claim = "research-only"') + "\n" + appended)
    recipe = recipe_from_toml(path)
    assert [teacher.kind for teacher in recipe.foundation] == ["rad-dino", "medsam", "biomedclip"]
    for teacher in recipe.foundation:
        assert set(teacher.digests) == set(PUBLICATIONS[teacher.kind].files)
    checkpoints = tmp_path / "checkpoints"
    write_checkpoints(checkpoints)
    with pytest.raises(SettingsError, match="insite-export pin"):
        teacher_from_recipe(recipe.foundation[0], recipe.foundation, checkpoints)


def test_digests_are_printed_as_the_recipe_pins_them(checkpoints: Path, tmp_path: Path) -> None:
    """`insite-export pin` prints a table that can be pasted; an empty folder is a sentence."""
    result = CliRunner().invoke(app, ["pin", str(checkpoints / "medsam")])
    assert tomllib.loads(result.output)["foundation"]["digests"] == {
        "medsam_vit_b.pth": file_sha256(checkpoints / "medsam" / "medsam_vit_b.pth")
    }
    assert CliRunner().invoke(app, ["pin", str(tmp_path / "absent")]).exit_code == 2


def test_checkpoints_are_looked_for_before_any_is_read(tiny_data: Path, recipe: Path, tmp_path: Path) -> None:
    """Without the folder, or with a missing file in it, the run ends with exit status 2 and says what to do."""
    arguments = ["run", str(recipe), "--data", str(tiny_data), "--out", str(tmp_path)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "--checkpoints" in result.output
    result = CliRunner().invoke(app, [*arguments, "--checkpoints", str(tmp_path / "empty")])
    assert result.exit_code == 2
    assert "microsoft/rad-dino" in " ".join(result.output.split())


def test_a_recipe_without_teachers_has_nothing_to_agglomerate(
    tiny_data: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    """`insite-export agglomerate` asks for foundation teachers."""
    arguments = [str(tiny_recipe), "--data", str(tiny_data), "--out", str(tmp_path), "--checkpoints", str(tmp_path)]
    result = CliRunner().invoke(app, ["agglomerate", *arguments])
    assert result.exit_code == 2
    assert "no foundation teachers" in " ".join(result.output.split())


@pytest.mark.parametrize("name", ["mobilenetv4_conv_small", "repvit_m0_9", "efficientvit_b0"])
def test_a_student_starts_from_timms_weights(tiny_recipe: Path, checkpoints: Path, tmp_path: Path, name: str) -> None:
    """`initial` names pinned weights; a student that does not read timm's refuses them."""
    text = three_teachers(tiny_recipe.read_text(), checkpoints)
    state = {"unknown.weight": torch.zeros(1)}
    save_file(state, tmp_path / "weights.safetensors")
    initial = f'initial = "weights.safetensors"\ninitial_sha256 = "{file_sha256(tmp_path / "weights.safetensors")}"\n'
    initial += 'initial_licence = "Apache-2.0"\ninitial_origin = "a test"\ninitial_research_only = false\n'
    path = tmp_path / "recipe.toml"
    path.write_text(text.replace("checkpoint_steps = 2\n", f"checkpoint_steps = 2\n{initial}"))
    recipe = recipe_from_toml(path)
    assert recipe.agglomeration is not None
    with pytest.raises(SettingsError, match="narrow does not read"):
        started(recipe, recipe.agglomeration, tmp_path)
    student = dataclasses.replace(recipe.student, architecture=name)
    recipe = dataclasses.replace(recipe, student=student)
    assert recipe.agglomeration is not None
    with pytest.raises(InputError, match="not of the published layout"):
        started(recipe, recipe.agglomeration, tmp_path)


def test_what_the_pinned_weights_hold_is_where_the_student_starts(
    tiny_recipe: Path, checkpoints: Path, tmp_path: Path
) -> None:
    """Every weight is the file's, but for the colour stem, which is folded to grey; the classifier is left out."""
    name, stem = "repvit_m0_9", "stem.conv1.c.weight"
    torch.manual_seed(8)
    published = ARCHITECTURES[name].encoder().state_dict()
    published[stem] = torch.randn(published[stem].shape[0], 3, 3, 3)
    save_file(published | {"head.head.l.weight": torch.zeros(3, 384)}, tmp_path / "weights.safetensors")
    path = tmp_path / "recipe.toml"
    path.write_text(three_teachers(tiny_recipe.read_text(), checkpoints))
    recipe = recipe_from_toml(path)
    assert recipe.agglomeration is not None
    recipe = dataclasses.replace(recipe, student=dataclasses.replace(recipe.student, architecture=name))
    digest = file_sha256(tmp_path / "weights.safetensors")
    section = dataclasses.replace(recipe.agglomeration, initial="weights.safetensors", initial_sha256=digest)
    state = started(recipe, section, tmp_path).state_dict()
    assert state[stem].shape[1] == 1
    changed = {key for key, value in state.items() if not torch.equal(value, published[key])}
    assert changed == {stem, "stem.conv1.bn.running_mean"}


def test_afresh_throws_away_what_was_done(tiny_data: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    """`--afresh` begins with nothing; `--resume`, the default, goes on."""
    line = Line(tiny_recipe, tiny_data, tmp_path, Silent())
    line.prepared()
    assert (line.root / "data").is_dir()
    line.forget()
    assert not list(line.root.iterdir())
