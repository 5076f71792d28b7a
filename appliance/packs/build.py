"""Completes a pack folder on the export side: binds tasks to their base, hashes every file, writes the manifests."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from appliance.domain.errors import ManifestError
from appliance.domain.manifest import PackManifest
from appliance.packs.files import SIGNATURE, file_sha256, may_be_unlisted, pack_files, stands_outside
from appliance.packs.manifest_json import (
    GATE_REPORT,
    MANIFEST,
    base_digest,
    manifest_to_json,
    pack_digest,
    task_manifest_path,
    task_manifest_to_json,
)
from appliance.packs.rules import check_manifest


def write_manifests(folder: Path, draft: PackManifest) -> PackManifest:
    """Write `manifest.json` and each task's manifest into a folder that holds every other file of the pack.

    Args:
        folder: The pack; an old signature in it is removed, because it fits no longer.
        draft: Every field but the computed ones: `files`, `gate_report_id`, `base_digest`, `digest`, and the tasks'
            `base_digest` are worked out here, whatever they hold.

    Returns:
        The complete manifest, equal to what `open_pack` will read.

    Raises:
        ManifestError: A named file is missing, or the manifest contradicts itself.
    """
    (folder / SIGNATURE).unlink(missing_ok=True)
    encoders = {variant.file: _sha256(folder, variant.file) for variant in draft.variants}
    base = base_digest(draft.name, draft.input, draft.encoder_outputs, draft.variants, encoders)
    tasks = tuple(dataclasses.replace(task, base_digest=base) for task in draft.tasks)
    for task in tasks:
        _write_json(folder / task_manifest_path(task.name), task_manifest_to_json(task))
    files = {
        path: file_sha256(folder / path)
        for path in pack_files(folder)
        if path not in {MANIFEST, SIGNATURE} and not stands_outside(path) and not may_be_unlisted(path)
    }
    complete = dataclasses.replace(
        draft, tasks=tasks, files=files, gate_report_id=_sha256(folder, GATE_REPORT), base_digest=base, digest=""
    )
    check_manifest(complete)
    values = manifest_to_json(complete)
    _write_json(folder / MANIFEST, values)
    return dataclasses.replace(complete, digest=pack_digest(values))


def _sha256(folder: Path, path: str) -> str:
    try:
        return file_sha256(folder / path)
    except OSError as error:
        raise ManifestError(
            f"{path} can't be read in {folder}: {error.strerror}.", "Run the step that makes it."
        ) from error


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
