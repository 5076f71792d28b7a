"""What a checkpoint of transformers lacks is never made up."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.export.teachers.conftest import run_child


@pytest.mark.slow
def test_weights_that_a_checkpoint_lacks_are_not_random_ones(tmp_path: Path) -> None:
    """Without a trained pooler the class token teaches; a checkpoint that lacks anything else is refused by its key."""
    run_child("transformers_child.py", tmp_path)
    seen = load_file(tmp_path / "seen.safetensors")
    torch.testing.assert_close(seen["pooled"], seen["tokens"][:, 0], rtol=1e-4, atol=1e-4)
    assert seen["dense"].shape == (2, 16, 4, 4)
    assert "lacks 1 weights of the model, layernorm.weight first" in (tmp_path / "said.txt").read_text()
