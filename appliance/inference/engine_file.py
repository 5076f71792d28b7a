"""Engine files on disk: their description in JSON beside them, what their first bytes say, and whether they fit here.

Nothing here needs a driver or a runtime: whatever can be refused is refused before a runtime opens the file.
"""

import hashlib
import json
import os
import re
import struct
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from appliance.domain.engine_file import ENGINE_SCHEMA, EngineHost, EngineMetadata, EngineRefusal
from appliance.domain.errors import EngineFileError

DESCRIPTION_SUFFIX = ".json"
"""Of the description's name, after the engine's whole name: `encoder.trtrtx.engine.json`."""

_MAGIC = b"vtrt"
_HEADER = struct.Struct("<4s4xQQ4B4s")
"""As engines of TensorRT for RTX 1.7 begin: magic, format, the file's whole size, four parts of the version, magic."""

_DRAFT = re.compile(r"\..+\.engine(?:\.json)?\.(\d+)")
"""As `_replace` names what it writes, with the process that does."""

_REBUILD = "Build the engine again on this machine."


def engine_metadata(engine: Path) -> EngineMetadata:
    """Read the description beside an engine file.

    Raises:
        EngineFileError: There is none (NO_DESCRIPTION), or it is not one.
    """
    file = description_of(engine)
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if values.pop("schema") != ENGINE_SCHEMA:
            raise ValueError(f"it is not of the schema {ENGINE_SCHEMA}")  # noqa: TRY301 - one answer to all malformations
        return _metadata(values)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EngineFileError(
            f"The engine {engine.name} has no usable description {file.name}: {error}.",
            _REBUILD,
            refusal=EngineRefusal.NO_DESCRIPTION,
        ) from error


def write_engine(engine: Path, data: memoryview, metadata: EngineMetadata) -> None:
    """Put an engine and its description in place, each whole or not at all.

    The description comes last and the old one goes first: an engine without it is never opened.
    """
    values = {"schema": ENGINE_SCHEMA, **asdict(metadata)}
    description_of(engine).unlink(missing_ok=True)
    _replace(engine, data)
    _replace(description_of(engine), (json.dumps(values, indent=2) + "\n").encode())


def clear_drafts(folder: Path, process: int | None = None) -> None:
    """Remove what killed builders left half-written in a folder: all of it, or that of one process."""
    for draft in folder.glob(".*"):
        match = _DRAFT.fullmatch(draft.name)
        if match and (process is None or int(match[1]) == process):
            with suppress(OSError):  # it is never read; it only takes room
                draft.unlink()


def description_of(engine: Path) -> Path:
    """Where the description of an engine file lies."""
    return engine.with_name(engine.name + DESCRIPTION_SUFFIX)


def header_version(header: bytes, name: str, size: int) -> str:
    """The version of the runtime that wrote an engine of TensorRT for RTX.

    Args:
        header: At least the first 32 bytes.
        name: How to name the file.
        size: Of the whole file, in bytes.

    Raises:
        EngineFileError: It is no engine (NOT_AN_ENGINE), or shorter or longer than it says itself (TRUNCATED).
    """
    if len(header) >= _HEADER.size and header.startswith(_MAGIC):
        _, _, whole, *version, magic = _HEADER.unpack_from(header)
        if magic == _MAGIC:
            if whole != size:
                raise EngineFileError(
                    f"The engine {name} has {size} bytes, but says that it has {whole}.",
                    _REBUILD,
                    refusal=EngineRefusal.TRUNCATED,
                )
            return ".".join(map(str, version))
    refusal = EngineRefusal.TRUNCATED if size < _HEADER.size else EngineRefusal.NOT_AN_ENGINE
    raise EngineFileError(f"{name} is no engine of TensorRT for RTX.", _REBUILD, refusal=refusal)


def checked_engine(engine: Path, source_sha256: str, host: EngineHost) -> tuple[EngineMetadata, bytes]:
    """Read an engine file that fits its source and this machine.

    Args:
        source_sha256: Hex SHA-256 of the verified ONNX file that it must have been built from.

    Returns:
        Its description, and the bytes that were checked: a runtime is given these, never the path.

    Raises:
        EngineFileError: With the first reason against it, in the order of `EngineRefusal` from NO_DESCRIPTION.
    """
    metadata = engine_metadata(engine)
    try:
        data = engine.read_bytes()
    except OSError as error:
        raise EngineFileError(
            f"The engine {engine.name} can't be read: {error.strerror}.", _REBUILD, refusal=EngineRefusal.TRUNCATED
        ) from error
    version = header_version(data[:64], engine.name, len(data)) if metadata.runtime == "tensorrt-rtx" else None
    if len(data) != metadata.size_bytes:
        raise EngineFileError(
            f"The engine {engine.name} has {len(data)} bytes, its description says {metadata.size_bytes}.",
            _REBUILD,
            refusal=EngineRefusal.TRUNCATED,
        )
    if hashlib.sha256(data).hexdigest() != metadata.sha256 or version not in {None, metadata.runtime_version}:
        raise EngineFileError(
            f"The engine {engine.name} is not the one that its description describes.",
            _REBUILD,
            refusal=EngineRefusal.ALTERED,
        )
    if metadata.source_sha256 != source_sha256:
        raise EngineFileError(
            f"The engine {engine.name} was built from the graph {metadata.source_sha256[:12]}, "
            f"not from {source_sha256[:12]}.",
            _REBUILD,
            refusal=EngineRefusal.OTHER_SOURCE,
        )
    _check_host(engine.name, metadata, host)
    return metadata, data


def _check_host(name: str, metadata: EngineMetadata, host: EngineHost) -> None:
    installed = host.version(metadata.runtime)
    if installed is None:
        raise EngineFileError(
            f"The engine {name} needs {metadata.runtime} {metadata.runtime_version}, which is not installed.",
            "Install insite[gpu].",
            refusal=EngineRefusal.NO_RUNTIME,
        )
    if installed != metadata.runtime_version:
        raise EngineFileError(
            f"The engine {name} was built for {metadata.runtime} {metadata.runtime_version}; installed is {installed}.",
            _REBUILD,
            refusal=EngineRefusal.OTHER_RUNTIME,
        )
    if host.compute_capability is None:
        raise EngineFileError(
            f"The engine {name} needs an NVIDIA GPU of compute capability "
            f"{' or '.join(metadata.compute_capabilities)}, but this machine has none, or no driver for it.",
            "ONNX Runtime serves on the CPU.",
            refusal=EngineRefusal.NO_GPU,
        )
    if host.compute_capability not in metadata.compute_capabilities:
        raise EngineFileError(
            f"The engine {name} was built for GPUs of compute capability "
            f"{' and '.join(metadata.compute_capabilities)}; this one has {host.compute_capability}.",
            _REBUILD,
            refusal=EngineRefusal.OTHER_GPU,
        )


def _metadata(values: dict[str, Any]) -> EngineMetadata:
    capabilities = values.pop("compute_capabilities")
    if not isinstance(capabilities, list) or not all(isinstance(each, str) for each in capabilities):
        raise TypeError("compute_capabilities is no list of texts")
    metadata = EngineMetadata(compute_capabilities=tuple(capabilities), **values)
    texts = (metadata.runtime, metadata.runtime_version, metadata.precision, metadata.source_sha256, metadata.sha256)
    numbers = (metadata.max_batch, metadata.size_bytes)
    if not all(isinstance(text, str) for text in texts) or not all(type(number) is int for number in numbers):
        raise TypeError("a value is of another type than it should be")
    return metadata


def _replace(file: Path, data: bytes | memoryview) -> None:
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    with draft.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    draft.replace(file)
