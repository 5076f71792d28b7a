"""The files of a pack folder: found without following links, hashed, and of a kind that a pack may hold."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from appliance.domain.errors import PackContentError

SIGNATURE = "model.sig"
ENGINE_SUFFIXES = (".engine", ".engine.json", ".engine.sig")
"""An engine, its description and that one's signature: made after the pack, often on the machine that runs it."""
UNLISTED = frozenset({"speed.json", "gate-report.html"})
"""Files at a pack's root that its signature covers and its manifest does not list: they hold measured times, which no
two makings have alike, and so stay out of the pack's digest. Nothing that runs reads them."""

ALLOWED_SUFFIXES = frozenset({".onnx", ".safetensors", ".json", ".toml", ".md", ".txt", ".csv", ".html"})
"""Graphs, arrays and text: nothing that runs when it is read, as a pickle does."""
ALLOWED_NAMES = frozenset({"LICENSE", "NOTICE"})

REINSTALL = "Install the pack again from its original."


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def pack_files(folder: Path) -> tuple[str, ...]:
    """Paths of all files under a pack folder, relative, sorted.

    Raises:
        PackContentError: Something in it is neither a folder nor a plain file (a symbolic link, a device), or it
            can't be read.
    """
    try:
        return tuple(sorted(_walk(folder, "")))
    except OSError as error:
        raise PackContentError(f"The pack folder {folder} can't be read: {error.strerror}.", REINSTALL) from error


def is_allowed_kind(path: str) -> bool:
    """Whether a pack may hold a file of this name."""
    return Path(path).suffix in ALLOWED_SUFFIXES or Path(path).name in ALLOWED_NAMES


def stands_outside(path: str) -> bool:
    """Whether a file belongs to an engine, which manifest and signature of a pack do not cover."""
    return path.endswith(ENGINE_SUFFIXES)


def may_be_unlisted(path: str) -> bool:
    """Whether a file of a pack is signed without being listed in the manifest."""
    return path in UNLISTED


def _walk(folder: Path, prefix: str) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            path = f"{prefix}{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(Path(entry.path), f"{path}/")
            elif entry.is_file(follow_symlinks=False):
                yield path
            else:
                raise PackContentError(
                    f"{path} in the pack {folder.name} is a symbolic link or a special file.",
                    "A pack holds plain files only; install it again from its original.",
                )
