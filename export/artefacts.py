"""Artefacts of steps: a folder each, finished or absent, skipped when its inputs are unchanged.

A step's folder counts as done when its `done.json` names the digest of everything that went in and of every file that
came out, and the files are still those. What hangs on a step hangs on its inputs and on what came out; files from
outside that a step turns into its own (`read`) make it run anew, and what follows only where something else came out.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from export.disk import save_whole

DONE = "done.json"
STAMP = "inputs.txt"
WORKED = "worked.txt"
"""The stamp's name as soon as a step's work is finished: what is left is to hash, to describe and to rename."""
BOOKKEEPING = (DONE, STAMP, WORKED, "done.partial")
"""Files of a step's folder that are none of its own."""


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_of_values(*values: object) -> str:
    """Hex SHA-256 of JSON values; key order does not matter."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()


def write_json(path: Path, value: object) -> None:
    """Write a JSON file that reads well and is the same for the same value."""
    path.write_text(_as_text(value))


def _as_text(value: object) -> str:
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text())


def run_step(root: Path, name: str, inputs: str, work: Callable[[Path], None], read: str = "") -> str:
    """Do a step unless its artefact is there and fits; return the digest of the artefact.

    The step works in `<root>/<name>.partial`, which is kept when it fails, so that a step with checkpoints resumes;
    a partial folder of other inputs is thrown away. Work that was finished is not done again, whenever the process was
    killed after it and whatever was missing on the disk.

    Args:
        root: Folder of all artefacts.
        name: The step, and its folder.
        inputs: Digest of all else that the step reads.
        work: Writes the step's files into the folder that it is given.
        read: Digest of the files from outside that the step turns into its own.
    """
    present = present_step(root, name, inputs, read)
    if present is not None:
        return present
    partial = begun_step(root, name, inputs, read)
    if partial is not None:
        work(partial)
    return finished_step(root, name, inputs, read)


def present_step(root: Path, name: str, inputs: str, read: str = "") -> str | None:
    """The digest of a step's finished artefact, or None; what a kill left in it and beside it is removed."""
    present = artefact_digest(root / name, inputs, read)
    if present is not None:
        (root / name / WORKED).unlink(missing_ok=True)
        shutil.rmtree(_old(root / name), ignore_errors=True)
    return present


def begun_step(root: Path, name: str, inputs: str, read: str = "") -> Path | None:
    """The folder in which a step works, with what an earlier try left there if it had the same before it.

    None where that try had finished the work.
    """
    partial = root / f"{name}.partial"
    stamp, worked = partial / STAMP, partial / WORKED
    if _holds(worked, inputs + read):
        return None
    if not _holds(stamp, inputs + read):
        for each in (stamp, worked):
            each.unlink(missing_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        stamp.write_text(inputs + read)
    return partial


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text() == text


def finished_step(root: Path, name: str, inputs: str, read: str = "") -> str:
    """Put what a step made under its final name, and return the artefact's digest.

    Raises:
        StorageFullError: There is no room for the description; the step's files stay.
    """
    partial, final = root / f"{name}.partial", root / name
    if (partial / STAMP).exists():
        _sync_all(partial)
        (partial / STAMP).rename(partial / WORKED)
    paths = [path for path in sorted(partial.rglob("*")) if path.is_file()]
    names = [str(path.relative_to(partial)) for path in paths]
    files = {file: file_sha256(path) for file, path in zip(names, paths, strict=True) if file not in BOOKKEEPING}
    record = {"step": name, "inputs": inputs, "read": read, "files": files}
    save_whole(partial / DONE, _as_text(record).encode())
    replace_folder(partial, final)
    (final / WORKED).unlink(missing_ok=True)
    return digest_of_values(inputs, files)


def artefact_digest(folder: Path, inputs: str, read: str = "") -> str | None:
    """The digest of a finished artefact made from these inputs and files, or None."""
    done = folder / DONE
    if not done.is_file():
        return None
    record = read_json(done)
    if record["inputs"] != inputs or record.get("read", "") != read:
        return None
    for name, digest in record["files"].items():
        path = folder / name
        if not path.is_file() or file_sha256(path) != digest:
            return None
    return digest_of_values(inputs, record["files"])


def replace_folder(source: Path, target: Path) -> None:
    """Put a finished folder under its final name: everything is on disk first, the old one goes last."""
    _sync_all(source)
    old = _old(target)
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    source.rename(target)
    _sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _old(target: Path) -> Path:
    return target.with_name(f"{target.name}.old")


def _sync_all(folder: Path) -> None:
    for path in (*sorted(folder.rglob("*")), folder):
        _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
