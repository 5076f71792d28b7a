"""Three foundation teachers in their published layouts teach one student, to a signed pack that says what it is."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from appliance.domain.errors import UnvalidatedPackError
from appliance.domain.manifest import Validation
from appliance.packs.open import open_pack
from appliance.packs.signing import PUBLIC_KEY
from export.cli import app
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


@pytest.mark.slow
def test_three_teachers_become_a_signed_pack_that_says_it_is_untrained(
    tiny_data: Path, recipe: Path, checkpoints: Path, tmp_path: Path
) -> None:
    """From three checkpoints to a pack in one command; the appliance refuses it unless unvalidated ones are allowed."""
    arguments = ["run", str(recipe), "--data", str(tiny_data), "--out", str(tmp_path)]
    result = CliRunner().invoke(app, [*arguments, "--checkpoints", str(checkpoints)])
    assert result.exit_code == 0, result.output
    steps = tmp_path / "tiny.steps"
    assert {path.name for path in (steps / "foundation").iterdir()} >= {"rad-dino", "medsam", "biomedclip"}
    assert (steps / "agglomerate" / "encoder.safetensors").is_file()
    key = tmp_path / "keys" / PUBLIC_KEY
    assert open_pack(tmp_path / "tiny", [key], allow_unvalidated=True).manifest.validation is Validation.UNTRAINED
    with pytest.raises(UnvalidatedPackError, match="untrained"):
        open_pack(tmp_path / "tiny", [key], allow_unvalidated=False)
