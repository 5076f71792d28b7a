"""Turns manifests into JSON, and computes the digests that packs are known by; `manifest_parsing.py` goes back.

`manifest.json` at the root lists the pack's files and names its tasks; each task's own manifest lies in
`tasks/<task>/manifest.json` and is one of the listed files.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import rfc8785

from appliance.domain.errors import ManifestError
from appliance.domain.manifest import (
    PACK_SCHEMA,
    TASK_SCHEMA,
    EncoderVariant,
    InputSpec,
    PackManifest,
    TaskManifest,
    TensorSpec,
)

MANIFEST = "manifest.json"
GATE_REPORT = "gate-report.json"


def canonical_json(value: Any) -> bytes:
    """The one byte sequence of a JSON value (RFC 8785), the same on every machine.

    Raises:
        ManifestError: The value holds what JSON can't: NaN, an integer beyond 2^53, a key that is no text.
    """
    try:
        return rfc8785.dumps(value)
    except rfc8785.CanonicalizationError as error:
        raise ManifestError(
            f"The value has no canonical JSON form: {error}.", "Remove what JSON can't hold."
        ) from error


def pack_digest(values: Mapping[str, Any]) -> str:
    """Hex SHA-256 of a base manifest's canonical form: the name of exactly this pack."""
    return hashlib.sha256(canonical_json(values)).hexdigest()


def base_digest(
    name: str,
    spec: InputSpec,
    encoder_outputs: Sequence[TensorSpec],
    variants: Sequence[EncoderVariant],
    files: Mapping[str, str],
) -> str:
    """Hex SHA-256 of what a task is bound to: name, input, encoder outputs, and the encoder files' contents.

    Args:
        files: Path in the pack to hex SHA-256; must hold every variant's file.

    Raises:
        ManifestError: A variant's file is not in `files`.
    """
    for variant in variants:
        if variant.file not in files:
            raise ManifestError(
                f"The encoder file {variant.file} is not among the pack's files.", "Build the pack again."
            )
    return hashlib.sha256(
        canonical_json(
            {
                "name": name,
                "input": _input_to_json(spec),
                "encoder_outputs": [_tensor_to_json(tensor) for tensor in encoder_outputs],
                "variants": [_variant_to_json(variant) | {"sha256": files[variant.file]} for variant in variants],
            }
        )
    ).hexdigest()


def task_manifest_path(task: str) -> str:
    """Where a task's manifest lies in its pack."""
    return str(PurePosixPath("tasks", task, MANIFEST))


def manifest_to_json(manifest: PackManifest) -> dict[str, Any]:
    """The values of `manifest.json`; digests that follow from the rest are left out."""
    return {
        "schema": PACK_SCHEMA,
        "name": manifest.name,
        "title": manifest.title,
        "release": manifest.release,
        "version": manifest.version,
        "licence": manifest.licence,
        "validation": manifest.validation.value,
        "intended_use": manifest.intended_use,
        "not_for": manifest.not_for,
        "udi": manifest.udi,
        "input": _input_to_json(manifest.input),
        "encoder_outputs": [_tensor_to_json(tensor) for tensor in manifest.encoder_outputs],
        "variants": [_variant_to_json(variant) for variant in manifest.variants],
        "guard": manifest.guard,
        "tasks": [task.name for task in manifest.tasks],
        "files": dict(manifest.files),
        "gate_report_id": manifest.gate_report_id,
    }


def task_manifest_to_json(manifest: TaskManifest) -> dict[str, Any]:
    """The values of a task's `manifest.json`."""
    rules = manifest.eligibility
    return {
        "schema": TASK_SCHEMA,
        "name": manifest.name,
        "title": manifest.title,
        "kind": manifest.kind.value,
        "release": manifest.release,
        "base_digest": manifest.base_digest,
        "head": manifest.head,
        "inputs": list(manifest.inputs),
        "outputs": [_tensor_to_json(tensor) for tensor in manifest.outputs],
        "finding": {
            "value": manifest.finding.value,
            "scheme": manifest.finding.scheme,
            "meaning": manifest.finding.meaning,
        },
        "operating_points": [
            {
                "precision": point.precision,
                "threshold": point.threshold,
                "max_distance": point.max_distance,
                "meaning": point.meaning,
            }
            for point in manifest.operating_points
        ],
        "eligibility": {
            "modalities": list(rules.modalities),
            "body_parts": list(rules.body_parts),
            "views": list(rules.views),
            "min_age_years": rules.min_age_years,
            "max_age_years": rules.max_age_years,
            "unknown_age": rules.unknown_age.value,
        },
        "intended_use": manifest.intended_use,
        "not_for": manifest.not_for,
    }


def _input_to_json(spec: InputSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "rows": spec.rows,
        "columns": spec.columns,
        "low_percentile": spec.low_percentile,
        "high_percentile": spec.high_percentile,
    }


def _tensor_to_json(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


def _variant_to_json(variant: EncoderVariant) -> dict[str, Any]:
    return {"precision": variant.precision, "file": variant.file, "runtimes": list(variant.runtimes)}
