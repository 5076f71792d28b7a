"""RepViT: what learns in branches is served as single convolutions that say the same."""

from pathlib import Path

import onnx
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from appliance.domain.manifest import InputSpec
from export.quantise import layers
from export.repvit import DESIGNS
from export.student import ARCHITECTURES
from export.to_onnx import ENCODER, export_encoder
from tests.export.students import SMALL, seasoned

SPEC = InputSpec("image", 512, 512, 0.5, 99.5)
MIXER = "token_mixer"


@pytest.mark.parametrize("name", sorted(DESIGNS))
@torch.no_grad()
def test_the_fused_encoder_says_what_the_branches_say(name: str) -> None:
    """Every output agrees to 1e-4; the encoder that learns stays as it was, and fusing twice changes nothing."""
    encoder = seasoned(DESIGNS[name]).encoder
    image = torch.randint(0, 256, (2, 1, 512, 512), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    before = encoder(image)
    fused = encoder.fused()
    for ours, theirs in zip(fused(image), before, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(encoder(image), before, strict=True):
        assert torch.equal(ours, theirs)
    assert list(fused.fused().state_dict()) == list(fused.state_dict())


def test_an_encoder_that_learns_goes_on_in_branches() -> None:
    """Fusing takes the running statistics into a copy, in evaluation mode; the original is still in training mode."""
    encoder = seasoned(SMALL["repvit"]).encoder.train()
    assert not encoder.fused().training
    assert encoder.training
    assert f"stages.0.blocks.0.{MIXER}.conv1.weight" in encoder.state_dict()


def test_each_token_mixer_is_exported_as_one_convolution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the graph no branch is left and no normalisation, and a layer has the mixer's name."""
    monkeypatch.setitem(ARCHITECTURES, "small", SMALL["repvit"])
    net = seasoned(SMALL["repvit"])
    mixers = {name for name, _ in net.encoder.named_modules() if name.endswith(MIXER)}
    convolutions = sum(isinstance(module, nn.Conv2d) for module in net.encoder.modules())
    save_file(net.state_dict(), tmp_path / "student.safetensors")
    export_encoder("small", SPEC, tmp_path / "student.safetensors", tmp_path)
    graph = onnx.load(tmp_path / ENCODER)
    operators = [node.op_type for node in graph.graph.node]
    assert operators.count("Conv") == convolutions - len(mixers)
    assert "BatchNormalization" not in operators
    assert mixers <= set(layers(graph))
