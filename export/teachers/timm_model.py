"""Any vision model of timm by its name, with a safetensors checkpoint from a local folder."""

from typing import Any

from torch import Tensor

from appliance.domain.errors import InputError
from export.teachers.checkpoints import Checkpoint
from export.teachers.contract import Preparation, Seen, Teacher, prepared
from export.teachers.libraries import library

WEIGHTS = "model.safetensors"
_MAP = 4


class TimmModel(Teacher):
    """A timm model: dense is the last map or the patch tokens, pooled what its classifier reads, logits if it has one.

    It sees the whole picture: timm's crop of the middle would cut lung off.

    Args:
        checkpoint: A folder with `model.safetensors`, as timm publishes it.
        model: timm's name, for instance `vit_base_patch16_224`.

    Raises:
        InputError: timm can't be loaded or knows no such model; the checkpoint is missing, altered, or another's.
    """

    def __init__(self, checkpoint: Checkpoint, model: str) -> None:
        super().__init__()
        timm = library("timm")
        if not timm.is_model(model):
            raise InputError(f"timm {timm.__version__} has no model {model!r}.", "Correct `model` in the recipe.")
        state = checkpoint.state(WEIGHTS)
        plain = timm.create_model(model, pretrained=False, num_classes=0)
        classifier = plain.pretrained_cfg.get("classifier")
        bias = state.get(f"{classifier}.weight") if isinstance(classifier, str) else None
        self.classifies = bias is not None
        self.net: Any = plain if bias is None else timm.create_model(model, pretrained=False, num_classes=len(bias))
        checkpoint.fill(self.net, state, WEIGHTS)
        config = library("timm.data").resolve_model_data_config(self.net)
        mode = "bilinear" if config["interpolation"] == "bilinear" else "bicubic"
        self.preparation = Preparation(config["input_size"][1], config["mean"], config["std"], mode)

    def see(self, images: Tensor) -> Seen:
        """Features of pictures, uint8 [N, 1, rows, columns]."""
        features = self.net.forward_features(prepared(images, self.preparation))
        pooled = self.net.forward_head(features, pre_logits=True)
        logits = self.net.forward_head(features) if self.classifies else None
        return Seen(map_of(features, self.net.num_features, getattr(self.net, "num_prefix_tokens", 0)), pooled, logits)


def map_of(features: Tensor, width: int, prefix: int) -> Tensor:
    """Features as [N, C, h, w], out of tokens [N, prefix + h x w, C], or of a map with its channels first or last."""
    if features.ndim == _MAP:
        return features if features.shape[1] == width else features.permute(0, 3, 1, 2)
    patches = features[:, prefix:]
    side = round(patches.shape[1] ** 0.5)
    if side * side != patches.shape[1]:
        raise InputError(
            f"{patches.shape[1]} patch tokens are no square grid.", "Use a model with square pictures and plain tokens."
        )
    return patches.transpose(1, 2).reshape(len(patches), -1, side, side)
