"""Joins a task to its base: the base's files stay as they are, the whole gets a new release and a new signature.

The joined pack has the base's name, digest of the base and older tasks, byte for byte, and the next release: installed
beside the base it is what serves, and taking it away is the way back.
"""

import dataclasses
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save

from appliance.domain.errors import BaseMismatchError, GateError, InputError, PackContentError
from appliance.domain.manifest import PackManifest, TaskKind, TaskManifest, Validation, VerifiedPack
from appliance.packs.build import write_manifests
from appliance.packs.json_values import values_from_json
from appliance.packs.manifest_json import GATE_REPORT, MANIFEST, task_manifest_path, task_manifest_to_json
from appliance.packs.manifest_parsing import task_manifest_from_json
from appliance.packs.signing import sign_pack
from export.artefacts import file_sha256, read_json, replace_folder, write_json
from export.disk import save_whole
from export.golden import ARRAYS, stored
from export.runner import Runner
from export.sbom import extended_bill
from export.schema import check_against_schema
from export.sources import Source, credit, notice, refuse_claim

REPORT, SHORTCUTS = "report.json", "shortcuts"
PASSED = "pass"
NOT_MEASURED = (
    "Not measured: other scanners, hospitals and age groups than those of its labels; shortcuts that the labels may "
    "hold{}; agreement with readers. Not known: whether the base learned from these patients, too, which would flatter "
    "the figures."
)
BUT_AUDITED = ", beyond the numbers of its audit"


@dataclass(frozen=True, slots=True)
class TrainedTask:
    """A task's folder: its manifest, `head.onnx`, `report.json`; bound to a base, and no pack by itself."""

    manifest: TaskManifest
    report: Mapping[str, Any]
    folder: Path

    @property
    def source(self) -> Source:
        """The data that it was trained on."""
        return Source(**self.report["source"])


def write_task(folder: Path, manifest: TaskManifest, report: Mapping[str, Any]) -> TrainedTask:
    """Put manifest and report beside the graphs in a task's folder."""
    write_json(folder / MANIFEST, task_manifest_to_json(manifest))
    write_json(folder / REPORT, report)
    return TrainedTask(manifest, report, folder)


def trained_task(folder: Path) -> TrainedTask:
    """Read a task's folder.

    Raises:
        ManifestError: Its manifest is malformed.
    """
    manifest = task_manifest_from_json((folder / MANIFEST).read_bytes(), str(folder / MANIFEST))
    return TrainedTask(manifest, values_from_json((folder / REPORT).read_bytes(), REPORT), folder)


def joined(base: VerifiedPack, task: TrainedTask, private_key: Path, out: Path) -> PackManifest:
    """Write the joined pack to `out`, whole or not at all.

    Raises:
        BaseMismatchError: The task was trained on another base.
        PackContentError: A file of the base is not the one that was verified when it was opened.
        GateError: The task's gate refuses it; or it scores images, claims to be validated, and nobody audited it.
        SettingsError: The licence of the task's data forbids what the joined pack would claim.
        InputError: The base has a task of this name, or there is something else than a pack under `out`.
    """
    name = task.manifest.name
    _refuse_other_base(task.manifest, base.manifest, base.folder)
    if task.report["verdict"] != PASSED:
        raise GateError(
            f"The gate refuses the task {name}: {'; '.join(task.report['refused_by'])}.",
            f"Read {task.folder / REPORT}; more or better labels are the usual way.",
        )
    _refuse_unaudited(task)
    draft = _draft(base.manifest, task)
    refuse_claim(draft.validation, [task.source], "task")
    if base.manifest.task(name) is not None:
        raise InputError(f"The base has a task {name} already.", "Give the new task another name.")
    if out.resolve() == base.folder.resolve():
        raise InputError(f"{out} is the base itself.", "Name another output folder: the base stays as it is.")
    if out.exists() and not (out / MANIFEST).is_file():
        raise InputError(f"{out} exists and is no pack.", "Name another output folder, or move it away.")
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    _copy_base(base, partial)
    own = partial / "tasks" / name
    shutil.copytree(task.folder, own)
    (own / MANIFEST).unlink()
    _extend_golden(base.manifest, task.manifest, partial)
    _extend_report(task, partial)
    _extend_card(task, partial)
    _extend_credits(task.source, draft.version, partial)
    manifest = write_manifests(partial, draft)
    _refuse_other_base(task.manifest, manifest, partial)
    check_against_schema(partial)
    sign_pack(partial, private_key)
    replace_folder(partial, out)
    return manifest


def refuse_changed(base: VerifiedPack) -> None:
    """Refuse a base whose files are no longer those that were verified when it was opened.

    Raises:
        PackContentError: The first such file.
    """
    for path, digest in {**base.manifest.files, **base.unlisted}.items():
        _refuse_changed_file(base, path, base.folder / path, digest)


def _refuse_changed_file(base: VerifiedPack, path: str, file: Path, digest: str) -> None:
    if not file.is_file() or file_sha256(file) != digest:
        raise PackContentError(
            f"{path} of the base {base.manifest.name} changed after the base was verified.",
            "Run the same command again, and leave the base as it is meanwhile.",
        )


def _refuse_other_base(task: TaskManifest, base: PackManifest, folder: Path) -> None:
    if task.base_digest != base.base_digest:
        raise BaseMismatchError(
            f"The task {task.name} was made for the base {task.base_digest[:12]}, but {folder.name} has the base "
            f"{base.base_digest[:12]}.",
            "Train the task again on this base, or join it to the base that it was made for.",
        )


def _refuse_unaudited(task: TrainedTask) -> None:
    validated = task.report["validation"] == Validation.VALIDATED.value
    if validated and task.manifest.kind is TaskKind.CLASSIFICATION and not task.report.get(SHORTCUTS):
        raise GateError(
            f"The task {task.manifest.name} claims to be validated, but its report has no shortcut audit.",
            f"Remove {task.folder.parent} and run the same command again, or claim research-only.",
        )


def weaker_claim(base: Validation, task: Validation) -> Validation:
    """What both together may claim: the base's word where it is no validated pack, else the task's."""
    return task if base is Validation.VALIDATED else base


def _copy_base(base: VerifiedPack, target: Path) -> None:
    """Copy the files that were verified, and hold each copy against its digest: training took minutes."""
    written_anew = {task_manifest_path(task.name) for task in base.manifest.tasks}
    for path, digest in {**base.manifest.files, **base.unlisted}.items():
        if path in written_anew:
            continue
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        if (base.folder / path).is_file():
            shutil.copyfile(base.folder / path, target / path)
        _refuse_changed_file(base, path, target / path, digest)


def _draft(base: PackManifest, task: TrainedTask) -> PackManifest:
    return dataclasses.replace(
        base,
        release=base.release + 1,
        version=f"{base.version}+{task.manifest.name}.{task.manifest.release}",
        validation=weaker_claim(base.validation, Validation(task.report["validation"])),
        tasks=(*base.tasks, task.manifest),
    )


def _extend_golden(base: PackManifest, task: TaskManifest, folder: Path) -> None:
    """Add what the new head says of the base's golden inputs, at every precision that has any."""
    path = folder / "golden" / ARRAYS
    arrays = load_file(path)
    for variant in base.variants:
        if not any(key.startswith(f"{variant.precision}/") for key in arrays):
            continue
        outputs = Runner(folder, variant.file, [task.name]).run(arrays["inputs"])[task.name]
        for output, values in outputs.items():
            arrays[f"{variant.precision}/{task.name}/{output}"] = stored(output, values)
    save_whole(path, save({name: np.ascontiguousarray(values) for name, values in arrays.items()}))


def _extend_report(task: TrainedTask, folder: Path) -> None:
    report = read_json(folder / GATE_REPORT)
    added = {**report.get("added_tasks", {}), task.manifest.name: dict(task.report)}
    report["summary"] = f"{report.get('summary', '')} Added on the frozen base: {task.report['summary']}".strip()
    write_json(folder / GATE_REPORT, report | {"added_tasks": added})


def _extend_credits(source: Source, version: str, folder: Path) -> None:
    """Name the task's data in NOTICE and in the bill of materials, where the base has one."""
    credited, bill = folder / "NOTICE", folder / "sbom.cdx.json"
    if credited.is_file():
        credited.write_text(f"{credited.read_text()}\n{credit(source)}")
    else:
        credited.write_text(notice([source]))
    if bill.is_file():
        write_json(bill, extended_bill(read_json(bill), version, source))


def _extend_card(task: TrainedTask, folder: Path) -> None:
    path = folder / "MODEL_CARD.md"
    text = path.read_text() if path.is_file() else ""
    manifest = task.manifest
    source = task.source
    limit = " For research only." if source.research_only else ""
    made = f"Trained on the frozen base {manifest.base_digest[:12]}; no weight of the base was changed."
    lines = [
        "",
        f"## Added task: `{manifest.name}`",
        "",
        f"**{manifest.title}.** {manifest.intended_use} {manifest.not_for}",
        "",
        f"{made} {task.report['summary']}",
        "",
        f"Data: {source.name}. {source.licence}. {source.origin}.{limit}",
        "",
        NOT_MEASURED.format(BUT_AUDITED if task.report.get(SHORTCUTS) else ""),
    ]
    if unreadable := task.report.get("unreadable_images"):
        lines[-1:-1] = [f"{unreadable} of its images could not be read and were left out.", ""]
    added = "\n".join(lines) + "\n"
    path.write_text(text + added)
    (folder / "tasks" / manifest.name / path.name).write_text(added.lstrip().replace("## Added task", "# Task", 1))
