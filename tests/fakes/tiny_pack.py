"""A real, signed pack of a few kilobytes, made on the fly: its constants look at brightness, not at medicine.

It passes a bright picture with a dark border (`bright_picture`) and refuses a black one. Use it wherever a test needs
a pack: `tiny_pack(folder)` gives the folder and its keys; `tiny_verified(folder)` opens it.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from appliance.domain.manifest import (
    Code,
    EligibilityRules,
    EncoderVariant,
    InputSpec,
    OperatingPoint,
    PackManifest,
    TaskKind,
    TaskManifest,
    TensorSpec,
    UnknownAge,
    Validation,
    VerifiedPack,
)
from appliance.packs.build import write_manifests
from appliance.packs.open import open_pack
from appliance.packs.signing import KeyPair, generate_keys, sign_pack

SIDE = 512
FEATURES = (4, 16, 16)
EMBEDDING = 8
OPSET = 21
IR_VERSION = 10


@dataclass(frozen=True, slots=True)
class TinyPack:
    """The folder of a pack and the keys that it was signed with."""

    folder: Path
    keys: KeyPair
    manifest: PackManifest


def bright_picture() -> NDArray[np.uint8]:
    """uint8 [1, 1, 512, 512], a bright centre on black: the guard accepts it and both triage tasks are positive."""
    picture = np.zeros((1, 1, SIDE, SIDE), np.uint8)
    picture[:, :, SIDE // 8 : -SIDE // 8, SIDE // 8 : -SIDE // 8] = 230
    return picture


def black_picture() -> NDArray[np.uint8]:
    """uint8 [1, 1, 512, 512] of zeros: the guard calls it out of distribution."""
    return np.zeros((1, 1, SIDE, SIDE), np.uint8)


def tiny_pack(
    folder: Path,
    *,
    name: str = "chest-xray",
    release: int = 1,
    validation: Validation = Validation.SYNTHETIC,
    keys: KeyPair | None = None,
) -> TinyPack:
    """Make and sign a pack in `folder`/`name`; keys lie in `folder`/.keys unless given."""
    keys = keys or generate_keys(folder / ".keys")
    pack = folder / name
    pack.mkdir(parents=True)
    (pack / "encoder.onnx").write_bytes(encoder_graph().SerializeToString())
    for task in _tasks():
        head = pack / task.head
        head.parent.mkdir(parents=True)
        head.write_bytes(head_graph(task.kind).SerializeToString())
    _write_golden(pack / "golden")
    (pack / "gate-report.json").write_text(json.dumps({"verdict": "pass", "checks": []}))
    (pack / "MODEL_CARD.md").write_text("Synthetic: constants that look at brightness. For tests.\n")
    draft = PackManifest(
        name=name,
        title="Tiny synthetic chest radiograph",
        release=release,
        version=f"{release}.0.0",
        licence="Apache-2.0",
        validation=validation,
        intended_use="Tests of the software.",
        not_for="Patients.",
        udi="",
        input=InputSpec("image", SIDE, SIDE, 0.5, 99.5),
        encoder_outputs=(
            TensorSpec("embedding", "FP32", (-1, EMBEDDING)),
            TensorSpec("features", "FP32", (-1, *FEATURES)),
        ),
        variants=(EncoderVariant("fp32", "encoder.onnx", ("onnxruntime-cpu",)),),
        guard="guard",
        tasks=_tasks(),
        files={},
        gate_report_id="",
        base_digest="",
        digest="",
    )
    manifest = write_manifests(pack, draft)
    sign_pack(pack, keys.private)
    return TinyPack(pack, keys, manifest)


def tiny_verified(folder: Path, *, name: str = "chest-xray", release: int = 1) -> VerifiedPack:
    """Make, sign and open a pack."""
    made = tiny_pack(folder, name=name, release=release)
    return open_pack(made.folder, [made.keys.public], allow_unvalidated=True)


def rewritten(pack: TinyPack, **changes: object) -> TinyPack:
    """The pack with another manifest (or after its files were changed), hashed and signed again."""
    draft = dataclasses.replace(pack.manifest, **changes)  # type: ignore[arg-type]
    manifest = write_manifests(pack.folder, draft)
    sign_pack(pack.folder, pack.keys.private)
    return TinyPack(pack.folder, pack.keys, manifest)


def encoder_graph() -> onnx.ModelProto:
    """`image` UINT8 [N,1,512,512] -> `features` (brightness of 16x16 cells, in [0,1]) and `embedding` (their mean)."""
    cell = SIDE // FEATURES[1]
    nodes = [
        helper.make_node("Cast", ["image"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["real", "white"], ["unit"]),
        helper.make_node("AveragePool", ["unit"], ["cells"], kernel_shape=[cell, cell], strides=[cell, cell]),
        helper.make_node("Conv", ["cells", "spread"], ["features"]),
        helper.make_node("GlobalAveragePool", ["cells"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("MatMul", ["flat", "ramp"], ["embedding"]),
    ]
    constants = {
        "white": np.float32(255),
        "spread": np.ones((FEATURES[0], 1, 1, 1), np.float32),
        "ramp": np.linspace(1, 2, EMBEDDING, dtype=np.float32).reshape(1, EMBEDDING),
    }
    return _model(
        nodes,
        constants,
        [_value("image", TensorProto.UINT8, (1, SIDE, SIDE))],
        [_value("embedding", TensorProto.FLOAT, (EMBEDDING,)), _value("features", TensorProto.FLOAT, FEATURES)],
    )


def head_graph(kind: TaskKind) -> onnx.ModelProto:
    """The head of one kind; every score rises with the mean brightness."""
    if kind is TaskKind.SEGMENTATION:
        nodes = [
            helper.make_node("ReduceMean", ["features", "axes"], ["grey"], keepdims=1),
            helper.make_node("Clip", ["grey", "zero", "one"], ["mask"]),
        ]
        constants = {"axes": np.array([1], np.int64), "zero": np.float32(0), "one": np.float32(1)}
        mask = _value("mask", TensorProto.FLOAT, (1, *FEATURES[1:]))
        return _model(nodes, constants, [_value("features", TensorProto.FLOAT, FEATURES)], [mask])
    nodes = [
        helper.make_node("ReduceMean", ["embedding", "axes"], ["level"], keepdims=1),
        helper.make_node("Sub", ["level", "middle"], ["above"]),
        helper.make_node("Mul", ["above", "slope"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["score"]),
    ]
    constants = {"axes": np.array([1], np.int64), "middle": np.float32(0.3), "slope": np.float32(20)}
    outputs = [_value("score", TensorProto.FLOAT, (1,))]
    if kind is TaskKind.GUARD:
        nodes += [helper.make_node("Abs", ["above"], ["off"]), helper.make_node("Mul", ["off", "slope"], ["distance"])]
        outputs.append(_value("distance", TensorProto.FLOAT, (1,)))
    return _model(nodes, constants, [_value("embedding", TensorProto.FLOAT, (EMBEDDING,))], outputs)


def _tasks() -> tuple[TaskManifest, ...]:
    adult = EligibilityRules(("DX", "CR"), ("CHEST",), ("PA", "AP"), 18, None, UnknownAge.RUN_AND_SAY)
    child = EligibilityRules(("DX", "CR"), ("CHEST",), ("PA", "AP"), None, 18, UnknownAge.REFUSE)
    anyone = EligibilityRules(("DX", "CR"), ("CHEST",), ("PA", "AP"), None, None, UnknownAge.RUN_AND_SAY)
    lung = Code("39607008", "SCT", "Lung")
    look = Code("404684003", "SCT", "Clinical finding")
    pneumonia = Code("233604007", "SCT", "Pneumonia")
    return (
        _task("lungs", TaskKind.SEGMENTATION, lung, adult),
        _task("adult-triage", TaskKind.CLASSIFICATION, look, adult),
        _task("paediatric-pneumonia", TaskKind.CLASSIFICATION, pneumonia, child),
        _task("guard", TaskKind.GUARD, Code("399208008", "SCT", "Plain X-ray of chest"), anyone),
    )


def _task(name: str, kind: TaskKind, finding: Code, rules: EligibilityRules) -> TaskManifest:
    outputs = {
        TaskKind.SEGMENTATION: (TensorSpec("mask", "FP32", (-1, 1, *FEATURES[1:])),),
        TaskKind.CLASSIFICATION: (TensorSpec("score", "FP32", (-1, 1)),),
        TaskKind.GUARD: (TensorSpec("score", "FP32", (-1, 1)), TensorSpec("distance", "FP32", (-1, 1))),
    }[kind]
    limit = 1000.0 if kind is TaskKind.GUARD else None
    return TaskManifest(
        name=name,
        title=f"Synthetic {name}",
        kind=kind,
        release=1,
        base_digest="",
        head=f"tasks/{name}/head.onnx",
        inputs=("features",) if kind is TaskKind.SEGMENTATION else ("embedding",),
        outputs=outputs,
        finding=finding,
        operating_points=(OperatingPoint("fp32", 0.5, limit, "Synthetic; nothing was measured."),),
        eligibility=rules,
        intended_use="Tests of the software.",
        not_for="Patients.",
    )


def _write_golden(folder: Path) -> None:
    """Golden cases as the graphs compute them: the bright picture's cells and means, worked out by hand."""
    folder.mkdir()
    picture = bright_picture()[0].astype(np.float32) / 255
    cell = SIDE // FEATURES[1]
    cells = picture.reshape(1, FEATURES[1], cell, FEATURES[2], cell).mean(axis=(2, 4))
    level = float(cells.mean()) * 1.5
    score = np.array([[1 / (1 + np.exp(-20 * (level - 0.3)))]], np.float32)
    arrays = {
        "inputs": bright_picture(),
        "fp32/lungs/mask": np.clip(cells, 0, 1)[None].astype(np.float32),
        "fp32/adult-triage/score": score,
        "fp32/paediatric-pneumonia/score": score,
        "fp32/guard/score": score,
        "fp32/guard/distance": np.array([[abs(level - 0.3) * 20]], np.float32),
    }
    save_file(arrays, folder / "cases.safetensors")
    cases = {
        "cases": [{"name": "bright centre", "synthetic": True}],
        "tolerance": {"score_abs": 0.05, "mask_dice": 0.98},
    }
    (folder / "cases.json").write_text(json.dumps(cases))


def _value(name: str, datatype: int, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, datatype, ("N", *shape))


def _model(
    nodes: list[onnx.NodeProto],
    constants: dict[str, NDArray[np.float32]],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
) -> onnx.ModelProto:
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
