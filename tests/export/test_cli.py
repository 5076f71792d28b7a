"""Whatever is wrong with keys, files and disks, a command ends with a sentence, and does so early."""

import errno
from pathlib import Path

import pytest
from typer.testing import CliRunner

from appliance.packs.signing import generate_keys
from export.cli import app


@pytest.mark.parametrize("command", ["run", "agglomerate", "task", "keygen"])
def test_a_folder_that_can_not_be_written_is_a_sentence(tiny_recipe: Path, tmp_path: Path, command: str) -> None:
    """What the system says of it ends each command with exit status 2, and no traceback."""
    (tmp_path / "file").write_text("no folder")
    out, here = ["--out", str(tmp_path / "file" / "out")], str(tmp_path)
    others = {
        "run": [str(tiny_recipe), "--data", here],
        "agglomerate": [str(tiny_recipe), "--data", here, "--checkpoints", here],
        "task": [str(tiny_recipe), "--labels", here, "--data", here, "--base", here, "--trust", here],
        "keygen": [],
    }
    result = CliRunner().invoke(app, [command, *others[command], *out])
    assert result.exit_code == 2, result.output
    assert "insite-export: " in result.output
    assert "Not a directory" in " ".join(result.output.split())


def test_a_file_that_can_not_be_read_is_not_pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failing disk gives no digest at all, and a sentence."""

    def broken(_: Path) -> str:
        raise OSError(errno.EIO, "Input/output error")

    (tmp_path / "weights.safetensors").write_bytes(b"weights")
    monkeypatch.setattr("export.cli.file_sha256", broken)
    result = CliRunner().invoke(app, ["pin", str(tmp_path)])
    assert result.exit_code == 2
    assert "Input/output error" in result.output
    assert "[foundation.digests]" not in result.output


def test_a_key_that_can_not_sign_is_refused_before_anything_is_done(
    tiny_recipe: Path, tiny_data: Path, tmp_path: Path
) -> None:
    """Hours of training are not lost for a path that was mistyped, or for the public half of the key."""
    public = generate_keys(tmp_path / "keys").public
    for key in (tmp_path / "absent.pem", public):
        arguments = ["run", str(tiny_recipe), "--data", str(tiny_data), "--out", str(tmp_path / "out")]
        result = CliRunner().invoke(app, [*arguments, "--key", str(key)])
        assert result.exit_code == 2
        assert key.name in result.output.replace("\n", "")
    assert not (tmp_path / "out").exists()
