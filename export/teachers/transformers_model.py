"""Any vision encoder that transformers' `AutoModel` reads, from a local folder of its own layout."""

import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor

from appliance.domain.errors import InputError
from export.teachers.checkpoints import Checkpoint
from export.teachers.contract import Seen, Teacher, prepared
from export.teachers.libraries import library
from export.teachers.rad_dino import CONFIG, PREPROCESSOR, WEIGHTS, preparation_of
from export.teachers.timm_model import map_of

POOLER = "pooler."


class TransformersModel(Teacher):
    """A vision encoder: dense is its last map or patch tokens, pooled its pooled output or its class token.

    A pooler that the checkpoint has no weights for is not asked: the library fills it with random numbers.

    Raises:
        InputError: transformers can't be loaded or can't read the folder; a file is missing or altered; the checkpoint
            lacks weights of another part; the model asks for code of its own, which is never run.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        transformers = library("transformers")
        for file in (CONFIG, WEIGHTS, PREPROCESSOR):
            checkpoint.path(file)
        try:
            with tempfile.TemporaryDirectory() as folder:  # of the pinned files alone: the library reads what it finds
                for file in checkpoint.digests:
                    (Path(folder) / file).symlink_to(checkpoint.path(file).resolve())
                self.net: Any
                self.net, report = transformers.AutoModel.from_pretrained(
                    folder,
                    local_files_only=True,
                    trust_remote_code=False,
                    use_safetensors=True,
                    output_loading_info=True,
                )
            side = int(self.net.config.image_size)
            self.preparation = preparation_of(checkpoint, side)
        except (OSError, ValueError, KeyError, AttributeError, TypeError, RuntimeError) as error:
            raise InputError(
                f"transformers can't read {checkpoint.folder} as a vision encoder: {str(error).splitlines()[0]}",
                checkpoint.where(),
            ) from error
        missing = sorted(report["missing_keys"])
        lacking = [key for key in missing if not key.startswith(POOLER)]
        if lacking:
            raise InputError(
                f"{checkpoint.folder / WEIGHTS} lacks {len(lacking)} weights of the model, {lacking[0]} first.",
                checkpoint.where(),
            )
        self.pools = not missing
        self.patches = (side // int(getattr(self.net.config, "patch_size", side))) ** 2

    def see(self, images: Tensor) -> Seen:
        """Features of pictures, uint8 [N, 1, rows, columns]."""
        outputs = self.net(pixel_values=prepared(images, self.preparation))
        features = outputs.last_hidden_state
        prefix = max(0, features.shape[1] - self.patches) if features.ndim == 3 else 0  # noqa: PLR2004 - tokens
        dense = map_of(features, features.shape[1], prefix)
        pooled = outputs.get("pooler_output") if self.pools else None
        if pooled is None:
            pooled = features[:, 0] if prefix else dense.mean(dim=(2, 3))
        return Seen(dense, pooled.flatten(1))
