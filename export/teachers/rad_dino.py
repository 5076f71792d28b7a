"""RAD-DINO: a DINOv2 encoder of chest radiographs, in the layout of transformers' `Dinov2Model`.

Pérez-García et al., Exploring scalable medical image encoders beyond text supervision, Nature Machine Intelligence
2025. The published one is a ViT-B/14 at 518 pixels, 37 x 37 patches.
"""

import re

import torch
from torch import Tensor

from appliance.domain.errors import InputError
from export.teachers.checkpoints import Checkpoint
from export.teachers.contract import Preparation, Seen, Teacher, grid_of_tokens, prepared
from export.teachers.vit import Vit, VitShape

WEIGHTS, CONFIG, PREPROCESSOR = "model.safetensors", "config.json", "preprocessor_config.json"
_PILLOW_BILINEAR = 2
_RULES = (
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^encoder\.layer\.(\d+)\.norm(\d)\.", r"blocks.\1.norm\2."),
    (r"^encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"blocks.\1.attn.proj."),
    (r"^encoder\.layer\.(\d+)\.layer_scale(\d)\.lambda1$", r"blocks.\1.ls\2.gamma"),
    (r"^encoder\.layer\.(\d+)\.mlp\.fc(\d)\.", r"blocks.\1.mlp.fc\2."),
    (r"^layernorm\.", "norm."),
)
_UNUSED = ("embeddings.mask_token",)
"""Only masked training reads it."""
_QUERY = re.compile(r"^encoder\.layer\.(\d+)\.attention\.attention\.query\.(weight|bias)$")
_FUSED = re.compile(r"^encoder\.layer\.\d+\.attention\.attention\.(query|key|value)\.(weight|bias)$")


class RadDino(Teacher):
    """The published folder as a teacher: pooled is the class token, dense the patch tokens, both normalised.

    Raises:
        InputError: A file is missing, altered, or not of this layout.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        config = checkpoint.values(CONFIG)
        if config.get("model_type") != "dinov2" or config.get("use_swiglu_ffn"):
            raise InputError(f"{checkpoint.folder / CONFIG} describes no plain DINOv2 encoder.", checkpoint.where())
        try:
            shape = VitShape(
                side=int(config["image_size"]),
                patch=int(config["patch_size"]),
                width=int(config["hidden_size"]),
                depth=int(config["num_hidden_layers"]),
                heads=int(config["num_attention_heads"]),
                hidden=int(config["hidden_size"]) * int(config["mlp_ratio"]),
                epsilon=float(config["layer_norm_eps"]),
                scaled=True,
            )
            self.preparation = preparation_of(checkpoint, shape.side)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"The configuration in {checkpoint.folder} lacks {error}.", checkpoint.where()) from error
        self.trunk = Vit(shape)
        checkpoint.fill(self.trunk, vit_state_from_dinov2(checkpoint.state(WEIGHTS)), WEIGHTS)

    def see(self, images: Tensor) -> Seen:
        """Features of pictures, uint8 [N, 1, rows, columns]."""
        tokens = self.trunk(prepared(images, self.preparation))
        return Seen(grid_of_tokens(tokens[:, 1:]), tokens[:, 0])


def preparation_of(checkpoint: Checkpoint, side: int) -> Preparation:
    """Mean, deviation and interpolation out of transformers' `preprocessor_config.json`.

    The whole picture is brought to the model's side: what a processor would cut off its edges is lung here.
    """
    values = checkpoint.values(PREPROCESSOR)
    mean, deviation = ([float(value) for value in values[name]] for name in ("image_mean", "image_std"))
    mode = "bilinear" if values.get("resample") == _PILLOW_BILINEAR else "bicubic"
    return Preparation(side, (mean[0], mean[1], mean[2]), (deviation[0], deviation[1], deviation[2]), mode)


def vit_state_from_dinov2(published: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our trunk's state: keys renamed, query, key and value of each block joined; unknown keys stay to be refused."""
    state: dict[str, Tensor] = {}
    for key, tensor in published.items():
        if key in _UNUSED:
            continue
        if query := _QUERY.match(key):
            names = [key.replace("query", part) for part in ("query", "key", "value")]
            if all(name in published for name in names):
                state[f"blocks.{query[1]}.attn.qkv.{query[2]}"] = torch.cat([published[name] for name in names])
            continue
        if _FUSED.match(key):
            continue
        renamed = key
        for pattern, replacement in _RULES:
            renamed, count = re.subn(pattern, replacement, key)
            if count:
                break
        state[renamed] = tensor
    return state
