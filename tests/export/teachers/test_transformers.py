"""What a checkpoint of transformers lacks is never made up."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file


@pytest.mark.slow
def test_weights_that_a_checkpoint_lacks_are_not_random_ones(tmp_path: Path, repository: Path) -> None:
    """Without a trained pooler the class token teaches; a checkpoint that lacks anything else is refused by its key."""
    child = Path(__file__).with_name("transformers_child.py")
    result = subprocess.run(
        [sys.executable, "-W", "ignore", str(child), str(tmp_path)],
        env={"PYTHONPATH": str(repository), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    seen = load_file(tmp_path / "seen.safetensors")
    torch.testing.assert_close(seen["pooled"], seen["tokens"][:, 0], rtol=1e-4, atol=1e-4)
    assert seen["dense"].shape == (2, 16, 4, 4)
    assert "lacks 1 weights of the model, layernorm.weight first" in (tmp_path / "said.txt").read_text()
