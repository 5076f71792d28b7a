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

DONE = "done.json"
STAMP = "inputs.txt"


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_of_values(*values: object) -> str:
    """Hex SHA-256 of JSON values; key order does not matter."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()


def write_json(path: Path, value: object) -> None:
    """Write a JSON file that reads well and is the same for the same value."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text())


def run_step(root: Path, name: str, inputs: str, work: Callable[[Path], None], read: str = "") -> str:
    """Do a step unless its artefact is there and fits; return the digest of the artefact.

    The step works in `<root>/<name>.partial`, which is kept when it fails, so that a step with checkpoints resumes;
    a partial folder of other inputs is thrown away.

    Args:
        root: Folder of all artefacts.
        name: The step, and its folder.
        inputs: Digest of all else that the step reads.
        work: Writes the step's files into the folder that it is given.
        read: Digest of the files from outside that the step turns into its own.
    """
    present = artefact_digest(root / name, inputs, read)
    if present is not None:
        return present
    work(begun_step(root, name, inputs, read))
    return finished_step(root, name, inputs, read)


def begun_step(root: Path, name: str, inputs: str, read: str = "") -> Path:
    """The folder in which a step works, with what an earlier try left there if it had the same before it."""
    partial = root / f"{name}.partial"
    stamp = partial / STAMP
    if not stamp.exists() or stamp.read_text() != inputs + read:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        stamp.write_text(inputs + read)
    return partial


def finished_step(root: Path, name: str, inputs: str, read: str = "") -> str:
    """Put what a step made under its final name, and return the artefact's digest."""
    partial = root / f"{name}.partial"
    (partial / STAMP).unlink()
    files = {str(p.relative_to(partial)): file_sha256(p) for p in sorted(partial.rglob("*")) if p.is_file()}
    write_json(partial / DONE, {"step": name, "inputs": inputs, "read": read, "files": files})
    replace_folder(partial, root / name)
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
    for path in sorted(source.rglob("*")):
        _sync(path)
    _sync(source)
    old = target.with_name(f"{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    source.rename(target)
    _sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
