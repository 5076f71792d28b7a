"""Checkpoints from a local folder: every file pinned by its digest, and nothing in it is ever executed."""

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from appliance.domain.errors import InputError, SettingsError
from export.artefacts import file_sha256
from export.teachers.published import PUBLICATIONS

_SAFE, _PICKLED = (".safetensors",), (".pth", ".pt", ".bin")


class Checkpoint:
    """The files of one teacher.

    Args:
        name: The teacher's name in the recipe.
        kind: Its kind, which says where the files are published.
        folder: Where the files lie.
        digests: File name to hex SHA-256; other files are never read.
        licence: As the recipe states it; said of a kind whose publisher is not known.
    """

    def __init__(self, name: str, kind: str, folder: Path, digests: Mapping[str, str], licence: str = "") -> None:
        self.name = name
        self.kind = kind
        self.folder = folder
        self.digests = digests
        self.licence = licence

    def path(self, file: str) -> Path:
        """A pinned file, checked.

        Raises:
            InputError: It is missing or differs from its digest; `where` it comes from is said.
            SettingsError: The recipe does not pin it.
        """
        pinned = self.digests.get(file, "")
        if not pinned:
            raise SettingsError(
                f"The recipe pins no digest of {file} of the teacher {self.name}.",
                f"Check the file against its publisher, then paste what `insite-export pin {self.folder}` prints.",
            )
        path = self.folder / file
        if not path.is_file():
            raise InputError(f"The teacher {self.name} lacks {path}.", self.where())
        if file_sha256(path) != pinned:
            raise InputError(
                f"{path} of the teacher {self.name} is not the file that the recipe pins (SHA-256 {pinned[:12]}…).",
                f"{self.where()} Or pin the file that you have, if you trust it.",
            )
        return path

    def check(self) -> None:
        """Check every pinned file, and that all files of a known kind are pinned."""
        known = PUBLICATIONS.get(self.kind)
        for file in dict.fromkeys((*(known.files if known else ()), *self.digests)):
            self.path(file)

    def where(self) -> str:
        """The sentence that says under which licence the files are, and where they are published, if that is known."""
        known = PUBLICATIONS.get(self.kind)
        if known is None:
            licence = f"Licence, as the recipe states it: {self.licence}. " if self.licence else ""
            return f"{licence}Put the file there, or correct `checkpoint` and its digests in the recipe."
        return f"Published by {known.origin}; licence: {known.licence}. Put its files into {self.folder}."

    def values(self, file: str) -> dict[str, Any]:
        """A JSON object out of a pinned file."""
        try:
            values = json.loads(self.path(file).read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{self.folder / file} is no JSON: {error}.", self.where()) from error
        if not isinstance(values, dict):
            raise InputError(f"{self.folder / file} holds no JSON object.", self.where())
        return values

    def state(self, file: str) -> dict[str, Tensor]:
        """Tensors by name, out of safetensors or of a pickle that holds nothing but tensors.

        Raises:
            InputError: The pickle holds code or objects, or the file is damaged.
        """
        path = self.path(file)
        try:
            if path.suffix in _SAFE:
                return load(path.read_bytes())
            if path.suffix not in _PICKLED:
                raise InputError(f"{path} is no checkpoint that can be read.", f"Known: {_SAFE + _PICKLED}.")
            state = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise InputError(
                f"{path} holds more than tensors, or is damaged: a pickle that may run code is never opened.",
                f"Get the weights alone. {self.where()}",
            ) from error
        except (SafetensorError, RuntimeError, EOFError, ValueError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise InputError(f"{path} is damaged: {reason}", self.where()) from error
        if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
            raise InputError(f"{path} is no table of tensors.", self.where())
        return state

    def fill(self, net: nn.Module, state: Mapping[str, Tensor], file: str) -> None:
        """Fill a net with a state, strictly.

        Raises:
            InputError: A key or a shape does not fit; the first is named.
        """
        try:
            net.load_state_dict(dict(state), strict=True)
        except RuntimeError as error:
            lines = [line.strip() for line in str(error).splitlines()[1:]]
            raise InputError(
                f"{self.folder / file} is not of the published layout: {lines[0] if lines else error}", self.where()
            ) from error
