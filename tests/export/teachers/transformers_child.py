"""Writes tiny checkpoints of transformers that lack weights, and what our adapter makes of them; a child process."""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.export.teachers.reference_child import load_torchvision

PREPROCESSOR = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def main() -> None:
    """Write `<folder>/seen.safetensors`, and `<folder>/said.txt` with what is said of a checkpoint that is cut."""
    folder = Path(sys.argv[1])
    kept = load_torchvision()
    from transformers import ViTConfig, ViTModel  # noqa: PLC0415

    from appliance.domain.errors import InputError  # noqa: PLC0415
    from export.artefacts import file_sha256  # noqa: PLC0415
    from export.teachers.checkpoints import Checkpoint  # noqa: PLC0415
    from export.teachers.contract import prepared  # noqa: PLC0415
    from export.teachers.transformers_model import TransformersModel  # noqa: PLC0415

    def teacher(place: Path) -> TransformersModel:
        pinned = {path.name: file_sha256(path) for path in place.iterdir()}
        return TransformersModel(Checkpoint("vit", "transformers", place, pinned)).eval()

    torch.manual_seed(6)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    net = ViTModel(ViTConfig(image_size=32, patch_size=8, **sizes), add_pooling_layer=False).eval()
    whole, cut = folder / "whole", folder / "cut"
    for place in (whole, cut):
        net.save_pretrained(place)
        (place / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    state = load_file(cut / "model.safetensors")
    del state["layernorm.weight"]
    save_file(state, cut / "model.safetensors", metadata={"format": "pt"})
    images = torch.randint(0, 256, (2, 1, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        ours = teacher(whole)
        seen = ours.see(images)
        theirs = net(prepared(images, ours.preparation)).last_hidden_state
    save_file(
        {"pooled": seen.pooled.contiguous(), "dense": seen.dense.contiguous(), "tokens": theirs.contiguous()},
        folder / "seen.safetensors",
    )
    try:
        teacher(cut)
    except InputError as error:
        (folder / "said.txt").write_text(error.message)
    del kept


if __name__ == "__main__":
    main()
