"""BiomedCLIP: image and text towers in one space, in the layout of its open_clip folder.

Zhang et al., BiomedCLIP, NEJM AI 2025: ViT-B/16 at 224 pixels with a linear projection, PubMedBERT with its class token
and a projection of two layers. The folder holds open_clip's configuration and weights, the tokenizer, and the text
tower's own `config.json`, which open_clip would otherwise fetch by `hf_model_name`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from appliance.domain.errors import InputError
from export.teachers.bert import Bert, BertShape
from export.teachers.checkpoints import Checkpoint
from export.teachers.contract import Preparation, Seen, Teacher, grid_of_tokens, prepared
from export.teachers.vit import Vit, VitShape

CONFIG, WEIGHTS, TEXT_CONFIG, TOKENIZER = (
    "open_clip_config.json",
    "open_clip_pytorch_model.bin",
    "config.json",
    "tokenizer.json",
)
HEAD_WIDTH = 64
"""Channels of an attention head in timm's plain ViT of every size."""
EPSILON = 1e-6
_UNUSED = ("logit_scale", "text.transformer.embeddings.position_ids")


class _Image(nn.Module):
    def __init__(self, shape: VitShape, joint: int) -> None:
        super().__init__()
        self.trunk = Vit(shape)
        self.head = nn.ModuleDict({"proj": nn.Linear(shape.width, joint, bias=False)})


class _Text(nn.Module):
    def __init__(self, shape: BertShape, joint: int) -> None:
        super().__init__()
        self.transformer = Bert(shape)
        middle = (shape.width + joint) // 2
        self.proj = nn.Sequential(
            nn.Linear(shape.width, middle, bias=False), nn.GELU(), nn.Linear(middle, joint, bias=False)
        )


class BiomedClip(Teacher):
    """The published folder as a teacher: pooled is the image's place in the joint space, dense the patch tokens.

    Raises:
        InputError: A file is missing, altered, or not of this layout.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        state = {key: value for key, value in checkpoint.state(WEIGHTS).items() if key not in _UNUSED}
        try:
            model = checkpoint.values(CONFIG)["model_cfg"]
            joint, side = int(model["embed_dim"]), int(model["vision_cfg"]["image_size"])
            self.context = int(model["text_cfg"]["context_length"])
            self.preparation = _preparation(checkpoint.values(CONFIG)["preprocess_cfg"], side)
            self.visual = _Image(_vit_shape(state, side), joint)
            self.text = _Text(_bert_shape(checkpoint.values(TEXT_CONFIG)), joint)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{checkpoint.folder} is not of the published layout: {error}.", checkpoint.where()
            ) from error
        checkpoint.fill(self, state, WEIGHTS)
        self.tokenizer = _tokenizer(checkpoint, self.context, self.text.transformer.shape.padding)

    def see(self, images: Tensor) -> Seen:
        """Features of pictures, uint8 [N, 1, rows, columns]."""
        tokens = self.visual.trunk(prepared(images, self.preparation))
        return Seen(grid_of_tokens(tokens[:, 1:]), self.visual.head["proj"](tokens[:, 0]))

    def read(self, texts: Sequence[str]) -> Tensor:
        """Where texts lie in the space of `pooled`, [len(texts), D]; neither is scaled to length 1."""
        numbers = torch.tensor([encoding.ids for encoding in self.tokenizer.encode_batch(list(texts))])
        words = self.text.transformer(numbers.to(self.visual.trunk.cls_token.device))
        result: Tensor = self.text.proj(words[:, 0])
        return result


def _preparation(values: dict[str, Any], side: int) -> Preparation:
    mean, deviation = ([float(value) for value in values[name]] for name in ("mean", "std"))
    return Preparation(side, (mean[0], mean[1], mean[2]), (deviation[0], deviation[1], deviation[2]))


def _vit_shape(state: dict[str, Tensor], side: int) -> VitShape:
    prefix = "visual.trunk."
    width, _, patch, _ = state[f"{prefix}patch_embed.proj.weight"].shape
    depth = 1 + max(int(key.split(".")[3]) for key in state if key.startswith(f"{prefix}blocks."))
    hidden = state[f"{prefix}blocks.0.mlp.fc1.weight"].shape[0]
    return VitShape(side, patch, width, depth, width // HEAD_WIDTH, hidden, EPSILON, scaled=False)


def _bert_shape(config: dict[str, Any]) -> BertShape:
    return BertShape(
        words=int(config["vocab_size"]),
        width=int(config["hidden_size"]),
        depth=int(config["num_hidden_layers"]),
        heads=int(config["num_attention_heads"]),
        hidden=int(config["intermediate_size"]),
        positions=int(config["max_position_embeddings"]),
        kinds=int(config["type_vocab_size"]),
        epsilon=float(config["layer_norm_eps"]),
        padding=int(config["pad_token_id"]),
    )


def _tokenizer(checkpoint: Checkpoint, length: int, padding: int) -> Tokenizer:
    path = checkpoint.path(TOKENIZER)
    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises nothing narrower
        raise InputError(f"{path} is no tokenizer: {error}.", checkpoint.where()) from error
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=padding)
    return tokenizer
