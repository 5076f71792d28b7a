"""Step `pack`: graphs, golden cases, reports and manifests become one signed folder, whole or not at all."""

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from appliance.domain.errors import GateError, InputError
from appliance.domain.manifest import (
    EncoderVariant,
    OperatingPoint,
    PackManifest,
    TaskManifest,
    TensorSpec,
    Validation,
)
from appliance.packs.build import write_manifests
from appliance.packs.manifest_json import MANIFEST
from appliance.packs.signing import sign_pack
from export.artefacts import DONE, read_json, replace_folder, write_json
from export.card import model_card, task_card
from export.layout import SPEEDS
from export.recipe import Recipe
from export.sbom import bill_of_materials
from export.schema import check_against_schema
from export.sources import SOURCES, notice, recipe_sources, refuse_claim
from export.tasks import GUARD, NOT_FOR_DIAGNOSIS, TaskText, task_texts

ENCODER_FILES = {"fp32": "encoder.onnx", "int8": "encoder.int8.onnx", "fp16": "encoder.fp16.onnx"}
RUNTIMES = {
    "fp32": ("onnxruntime-cuda", "onnxruntime-cpu"),
    "int8": ("onnxruntime-cpu",),
    "fp16": ("tensorrt-rtx", "tensorrt", "onnxruntime-cuda"),
}
"""Half precision is for GPUs: engines are built from it; a CPU would compute it in FP32 after all."""
PASSED = "pass"
REPORTS = ("gate-report.json", "gate-report.html", SPEEDS)
INTENDED_USE = "Triage and lung outlines on frontal chest radiographs, for a qualified reader, as a second look."
_DATATYPES = {onnx.TensorProto.FLOAT: "FP32", onnx.TensorProto.UINT8: "UINT8"}


@dataclass(frozen=True, slots=True)
class Parts:
    """Artefacts of the steps `quantise`, `golden`, `to_engine` and `verify`.

    Engines lie beside the pack, outside its digest and signature: no two builds of one are alike.
    """

    graphs: Path
    golden: Path
    engines: Path
    verified: Path


def pack(recipe: Recipe, recipe_text: bytes, parts: Parts, *, private_key: Path, out: Path) -> PackManifest:
    """Write a complete, signed pack to `out`; nothing appears under that name before it is whole.

    Args:
        recipe, recipe_text: The recipe, and the file's content from which it was read, which is a part of the pack.
        parts: The artefacts that go in.
        private_key: Signs the pack.
        out: The pack's folder; replaced if it is there.

    Raises:
        GateError: The gate report does not pass.
        InputError: There is something else than a pack under that name.
        SettingsError: The licences of the sources forbid what the recipe claims.
    """
    graphs, golden, engines, verified = parts.graphs, parts.golden, parts.engines, parts.verified
    report = read_json(verified / "gate-report.json")
    if report["verdict"] != PASSED:
        failed = [rule[0] for rule in report["rules"] if rule[3] == "no"]
        raise GateError(
            f"The gate refuses the pack {recipe.pack.name}: {'; '.join(failed)}.",
            f"Read {verified / 'gate-report.json'}; improve the recipe or the data.",
        )
    if out.exists() and not (out / MANIFEST).is_file():
        raise InputError(f"{out} exists and is no pack.", "Name another output folder, or move it away.")
    validation = Validation(report["validation"])
    sources = (*SOURCES, *recipe_sources(recipe))
    refuse_claim(validation, sources)
    precisions: list[str] = read_json(verified / "precisions.json")
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    _copy_graphs(graphs, partial, precisions)
    shutil.copytree(golden, partial / "golden", ignore=shutil.ignore_patterns(DONE))
    for name in REPORTS:
        shutil.copy(verified / name, partial)
    (partial / "recipe.toml").write_bytes(recipe_text)
    write_json(partial / "sbom.cdx.json", bill_of_materials(recipe, sources))
    recipe_id = hashlib.sha256(recipe_text).hexdigest()
    (partial / "MODEL_CARD.md").write_text(model_card(recipe, report, validation.value, recipe_id))
    (partial / "NOTICE").write_text(notice(sources))
    points = read_json(verified / "operating-points.json")
    for task in task_texts():
        card = task_card(recipe, report, task, points[task.name])
        (partial / "tasks" / task.name / "MODEL_CARD.md").write_text(card)
    manifest = write_manifests(partial, _draft(recipe, partial, precisions, points, validation))
    check_against_schema(partial)
    sign_pack(partial, private_key)
    for engine in sorted(engines.glob("*.engine*")) if "fp16" in precisions else []:
        shutil.copy(engine, partial)
    replace_folder(partial, out)
    return manifest


def _copy_graphs(graphs: Path, target: Path, precisions: list[str]) -> None:
    target.mkdir(parents=True)
    for precision in precisions:
        shutil.copy(graphs / ENCODER_FILES[precision], target)
    for task in task_texts():
        folder = target / "tasks" / task.name
        folder.mkdir(parents=True)
        shutil.copy(graphs / "tasks" / task.name / "head.onnx", folder)


def _draft(
    recipe: Recipe, folder: Path, precisions: list[str], points: dict[str, Any], validation: Validation
) -> PackManifest:
    return PackManifest(
        name=recipe.pack.name,
        title=recipe.pack.title,
        release=recipe.pack.release,
        version=recipe.pack.version,
        licence=recipe.pack.licence,
        validation=validation,
        intended_use=INTENDED_USE,
        not_for=NOT_FOR_DIAGNOSIS,
        udi="",
        input=recipe.input,
        encoder_outputs=graph_outputs(folder / ENCODER_FILES[precisions[0]]),
        variants=tuple(EncoderVariant(p, ENCODER_FILES[p], RUNTIMES[p]) for p in precisions),
        guard=GUARD,
        tasks=tuple(_task(recipe, folder, task, precisions, points[task.name]) for task in task_texts()),
        files={},
        gate_report_id="",
        base_digest="",
        digest="",
    )


def _task(
    recipe: Recipe, folder: Path, task: TaskText, precisions: list[str], points: dict[str, dict[str, Any]]
) -> TaskManifest:
    head = f"tasks/{task.name}/head.onnx"
    graph = onnx.load(folder / head).graph
    return TaskManifest(
        name=task.name,
        title=task.title,
        kind=task.kind,
        release=recipe.pack.release,
        base_digest="",
        head=head,
        inputs=tuple(each.name for each in graph.input),
        outputs=graph_outputs(folder / head),
        finding=task.finding,
        operating_points=tuple(OperatingPoint(precision=p, **points[p]) for p in precisions),
        eligibility=task.eligibility,
        intended_use=task.intended_use,
        not_for=task.not_for,
    )


def graph_outputs(path: Path) -> tuple[TensorSpec, ...]:
    """The outputs of an ONNX file with a free batch dimension."""
    specs = []
    for output in onnx.load(path).graph.output:
        kind = output.type.tensor_type
        shape = (-1, *(dimension.dim_value for dimension in kind.shape.dim[1:]))
        specs.append(TensorSpec(output.name, _DATATYPES[kind.elem_type], shape))
    return tuple(specs)
