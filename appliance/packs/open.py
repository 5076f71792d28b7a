"""Opens installed packs: everything that must hold before an engine may read a file of a pack is checked here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from appliance.domain.errors import (
    BaseMismatchError,
    GateError,
    ManifestError,
    PackContentError,
    PackError,
    UnvalidatedPackError,
)
from appliance.domain.manifest import PackManifest, Validation, VerifiedPack
from appliance.packs.files import (
    REINSTALL,
    SIGNATURE,
    file_sha256,
    is_allowed_kind,
    may_be_unlisted,
    pack_files,
    stands_outside,
)
from appliance.packs.graphs import check_graph
from appliance.packs.json_values import values_from_json
from appliance.packs.manifest_json import GATE_REPORT, MANIFEST
from appliance.packs.manifest_parsing import pack_manifest_from_json
from appliance.packs.signing import verify_signature

KEYS_FOLDER = "keys"
"""The folder of public keys beside the shipped packs: no pack."""


@dataclass(frozen=True, slots=True)
class PackProblem:
    """A folder among the installed packs that must not be used, and why."""

    name: str
    error: PackError


def open_pack(folder: Path, trusted_keys: Sequence[Path], *, allow_unvalidated: bool) -> VerifiedPack:
    """Check a pack from signature to gate report, and return it as the only thing that engines accept.

    Args:
        folder: The pack; a link to a pack folder is followed, a link within it is refused.
        trusted_keys: PEM files of public keys.
        allow_unvalidated: Whether a pack that says it is untrained, synthetic or for research only is accepted.

    Raises:
        SignatureError: Unsigned, signed by a stranger, or changed since.
        ManifestError: The manifest is missing, malformed or contradicts itself.
        PackContentError: A file is missing, altered, not listed, a link, of a forbidden kind, or no safe graph.
        BaseMismatchError: A task was made for another base.
        UnvalidatedPackError: Not validated, and not allowed.
        GateError: The gate report is missing or refuses the pack.
    """
    if not folder.is_dir():
        raise PackContentError(f"There is no pack folder {folder}.", "Install the pack, or correct packs.folder.")
    try:
        return _checked(folder.resolve(), trusted_keys, allow_unvalidated=allow_unvalidated)
    except OSError as error:
        raise PackContentError(f"The pack {folder.name} can't be read: {error}.", REINSTALL) from error


def installed_packs(
    folder: Path, trusted_keys: Sequence[Path], *, allow_unvalidated: bool
) -> tuple[VerifiedPack | PackProblem, ...]:
    """Open every pack in a folder; what can't be used is named beside what can.

    Args:
        folder: Its subfolders are packs, but `keys` and those whose names begin with a dot.

    Returns:
        In order of folder names; empty when there is no such folder.
    """
    if not folder.is_dir():
        return ()
    found: list[VerifiedPack | PackProblem] = []
    for each in sorted(folder.iterdir()):
        if not each.is_dir() or each.name == KEYS_FOLDER or each.name.startswith("."):
            continue
        try:
            found.append(open_pack(each, trusted_keys, allow_unvalidated=allow_unvalidated))
        except PackError as error:
            found.append(PackProblem(each.name, error))
    return tuple(found)


def _checked(folder: Path, trusted_keys: Sequence[Path], *, allow_unvalidated: bool) -> VerifiedPack:
    present = pack_files(folder)
    if MANIFEST not in present:
        raise ManifestError(f"The pack {folder.name} has no {MANIFEST}.", "Build or install the pack first.")
    verify_signature(folder, trusted_keys)
    manifest = _manifest(folder, present)
    _check_files(folder, manifest, present)
    _check_bases(manifest)
    _check_validation(manifest, allowed=allow_unvalidated)
    _check_gate(folder, manifest)
    _check_graphs(folder, manifest)
    unlisted = [path for path in present if may_be_unlisted(path) and path not in manifest.files]
    return VerifiedPack(manifest, folder, {path: file_sha256(folder / path) for path in unlisted})


def _manifest(folder: Path, present: Sequence[str]) -> PackManifest:
    tasks = {
        PurePosixPath(path).parts[1]: (folder / path).read_bytes()
        for path in present
        if PurePosixPath(path).match(f"tasks/*/{MANIFEST}") and len(PurePosixPath(path).parts) == 3  # noqa: PLR2004
    }
    return pack_manifest_from_json((folder / MANIFEST).read_bytes(), tasks)


def _check_files(folder: Path, manifest: PackManifest, present: Sequence[str]) -> None:
    expected = set(manifest.files)
    found = {path for path in present if path not in {MANIFEST, SIGNATURE} and not stands_outside(path)}
    for path in sorted(expected - found):
        raise PackContentError(f"{path} of the pack {manifest.name} is missing.", REINSTALL)
    for path in sorted(each for each in found - expected if not may_be_unlisted(each)):
        raise PackContentError(f"{path} in the pack {manifest.name} is not listed in its manifest.", "Remove the file.")
    for path, digest in manifest.files.items():
        if not is_allowed_kind(path):
            raise PackContentError(
                f"{path} of the pack {manifest.name} is of a kind that packs may not hold.",
                "A pack holds ONNX, safetensors and text only.",
            )
        if file_sha256(folder / path) != digest:
            raise PackContentError(f"{path} of the pack {manifest.name} differs from its digest.", REINSTALL)


def _check_bases(manifest: PackManifest) -> None:
    for task in manifest.tasks:
        if task.base_digest != manifest.base_digest:
            raise BaseMismatchError(
                f"The task {task.name} was made for the base {task.base_digest[:12]}, "
                f"but the pack {manifest.name} has the base {manifest.base_digest[:12]}.",
                "Train the task again on this base, or install the base that it was made for.",
            )


def _check_validation(manifest: PackManifest, *, allowed: bool) -> None:
    if manifest.validation is not Validation.VALIDATED and not allowed:
        raise UnvalidatedPackError(
            f"The pack {manifest.name} is marked {manifest.validation.value}.",
            "Install a validated pack; for a trial without patients set packs.allow_unvalidated.",
        )


def _check_gate(folder: Path, manifest: PackManifest) -> None:
    if manifest.files.get(GATE_REPORT) != manifest.gate_report_id:
        raise GateError(
            f"The gate report of the pack {manifest.name} is missing or is not the one that its manifest names.",
            "Build the pack again.",
        )
    report = values_from_json((folder / GATE_REPORT).read_bytes(), GATE_REPORT)
    verdict = report.get("verdict") if isinstance(report, Mapping) else None
    if verdict != "pass":
        raise GateError(
            f"The gate report of the pack {manifest.name} says {verdict!r}, not 'pass'.",
            "Read gate-report.json for what fell short; the pack must be improved by its maker.",
        )


def _check_graphs(folder: Path, manifest: PackManifest) -> None:
    for path in manifest.files:
        if path.endswith(".onnx"):
            check_graph((folder / path).read_bytes(), f"{path} of the pack {manifest.name}")
