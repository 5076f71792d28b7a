"""`insite-export bench`: the figures that the pack promises, as ratios of one run on one machine.

Speeds are measured here, reference and candidate in turns, so that noise shows as quartiles and cancels in the median.
Accuracies are those of the pack's own signed gate report: the validation patients were asked once, when it was made.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from appliance.domain.errors import EngineFileError
from appliance.domain.manifest import InputSpec
from appliance.inference.engine_build import SUFFIX, BuildPlan
from export.artefacts import read_json
from export.latency import Encoder, Ratio, compare
from export.phantoms import phantom
from export.recipe import Recipe
from export.runner import Grey, Runner
from export.student import ARCHITECTURES, MultiTaskNet
from export.to_engine import GPUS, SOURCES, build_rtx
from export.to_onnx import export_features

BATCHES = (1, 8)
TEACHERS = ("teacher", "second_teacher")
NOT_MEASURED = {
    "distillation": "distilled against direct: not measured here; --distillation-steps N trains both, from the "
    "artefacts of `run` in --out, and the result is kept there",
    "features": "features cached, killed and resumed: not measured here; --features N measures it",
}
"""What one run of the command leaves out unless it is asked for, and how to ask."""
ROUNDS = 25
FP32, INT8 = "encoder.onnx", "encoder.int8.onnx"
SECONDS_MAX, BYTES_MAX = 5.0, 10_000_000
Row = dict[str, Any]


def bench(recipe: Recipe, pack: Path, say: Callable[[str], None], rounds: int = ROUNDS) -> dict[str, Any]:
    """Measure a pack; `rows` for reading, `ratios` by name, `raw` with quartiles and milliseconds.

    Args:
        recipe: The pack's recipe: its architectures and its seed.
        pack: A pack folder.
        say: Told about progress.
        rounds: Pairs of runs for each ratio.
    """
    pictures = np.stack([phantom(recipe.input, seed) for seed in range(max(BATCHES))])[:, None]
    raw: dict[str, Any] = {}
    say("INT8 against FP32")
    raw["int8_vs_fp32"] = _against(Runner(pack, FP32, (), threads=1), pack, pictures, rounds)
    say("INT8 against the teachers")
    teachers = {name: getattr(recipe, name).architecture for name in TEACHERS}
    encoders = {name: _encoder_of(architecture, recipe.input) for name, architecture in teachers.items()}
    for name, architecture in teachers.items():
        alone = _against(encoders[name], pack, pictures, rounds)
        raw[f"int8_vs_{name}"] = alone | {"architecture": architecture}
    raw["int8_vs_teachers"] = _against(InTurn(tuple(encoders.values())), pack, pictures, rounds)
    raw["nets_that_teach"] = sum(getattr(recipe, name).trainings for name in TEACHERS)
    say("TensorRT for RTX")
    raw["engine"] = _engine(pack)
    report = read_json(pack / "gate-report.json")
    raw["report"] = report.get("figures", {})
    rows = [*_speed_rows(raw), *_accuracy_rows(raw["report"]), *_engine_rows(raw["engine"])]
    ratios = {row["name"]: row["measured"] for row in rows if isinstance(row["measured"], float)}
    return {"rows": rows, "ratios": ratios, "raw": raw}


@dataclass(frozen=True, slots=True)
class InTurn:
    """Encoders that look at the same images one after the other."""

    encoders: Sequence[Encoder]

    def features(self, images: Grey) -> None:
        """Let each look at images, uint8 [N, 1, rows, columns]."""
        for encoder in self.encoders:
            encoder.features(images)


def as_text(result: dict[str, Any]) -> str:
    """The bench's result as lines of text."""
    lines = [
        f"{row['name']:28} {'-' if row['measured'] is None else row['measured']!s:>9} {row['bound']:>8} "
        f"{'met' if row['met'] else 'NOT MET':8} {row['note']}"
        for row in result["rows"]
    ]
    if result["features"] is not None:
        lines.append(_features_line(result["features"]))
    if result["distillation"] is not None:
        lines.append(_distillation_line(result["distillation"]))
    return "\n".join([*lines, *not_measured(result).values()])


def not_measured(result: Mapping[str, Any]) -> dict[str, str]:
    """What a result lacks, by name, and how it is measured."""
    return {name: how for name, how in NOT_MEASURED.items() if result[name] is None}


def _distillation_line(found: Mapping[str, Any]) -> str:
    low, high = found["gain_95"]
    return (
        f"distilled against direct, {len(found['seeds'])} seeds of {found['steps']} steps on the same pictures: AUC "
        f"{found['gain']:+.3f} [{low:+.3f}, {high:+.3f}], n {found['images']}, {found['dataset']}"
    )


def _features_line(found: Mapping[str, Any]) -> str:
    return (
        f"features of {len(found['teachers'])} teachers for {found['images']} pictures, killed once: "
        f"{found['computed']} computed of {found['wanted']}, {found['kept']} of them before the kill, {found['lost']} "
        f"more lost with the shard under way; {found['bytes'] / 1e6:.1f} MB, {found['seconds']:.1f} s: "
        f"{'met' if found['met'] else 'NOT MET'}"
    )


def _against(reference: Encoder, pack: Path, pictures: Grey, rounds: int) -> dict[str, Any]:
    candidate = Runner(pack, INT8, (), threads=1)
    return {f"batch_{batch}": asdict(compare(reference, candidate, pictures[:batch], rounds)) for batch in BATCHES}


def _encoder_of(architecture: str, spec: InputSpec) -> Runner:
    """An encoder of the teacher's shape; its weights are random, which does not change its speed."""
    torch.manual_seed(0)
    net = MultiTaskNet(ARCHITECTURES[architecture]).eval()
    with tempfile.TemporaryDirectory() as scratch:
        export_features(net.encoder.fused(), spec, Path(scratch) / FP32)
        return Runner(Path(scratch), FP32, (), threads=1)


def _engine(pack: Path) -> dict[str, Any]:
    source = pack / SOURCES["fp16"]
    if not source.is_file():
        return {"missing": f"the pack has no {source.name}"}
    with tempfile.TemporaryDirectory() as scratch:
        plan = BuildPlan("fp16", GPUS[""])
        try:
            built = build_rtx(source.read_bytes(), Path(scratch) / f"encoder{SUFFIX}", plan)
        except EngineFileError as error:
            return {"missing": str(error)}
    return {"seconds": built.build_seconds, "bytes": built.size_bytes}


def _speed_rows(raw: Mapping[str, Any]) -> list[Row]:
    bounds = {
        ("int8_vs_fp32", "batch_8"): 2.0,
        ("int8_vs_fp32", "batch_1"): 1.4,
        ("int8_vs_teachers", "batch_1"): 3.0,
        ("int8_vs_teachers", "batch_8"): 4.0,
    }
    rows = []
    for (what, batch), bound in bounds.items():
        ratio = Ratio(**raw[what][batch])
        note = f"times as fast, one thread, quartiles [{ratio.low:.2f}, {ratio.high:.2f}]"
        if what == "int8_vs_teachers":
            nets = raw["nets_that_teach"]
            note = f"{note}; against one net of each teacher in turn ({nets} answer together){_alone(raw, batch)}"
        rows.append(_row(f"{what}_{batch}", ratio.median, bound, note=note))
    return rows


def _alone(raw: Mapping[str, Any], batch: str) -> str:
    each = (raw[f"int8_vs_{name}"] for name in TEACHERS)
    return "".join(f", {found['architecture']} alone {found[batch]['median']:.2f}" for found in each)


def _accuracy_rows(figures: Mapping[str, Any]) -> list[Row]:
    """The gate report's figures against the aims; a figure that the report lacks is said to be missing."""
    groups = {each["name"]: each for each in figures.get("subgroups", [])}
    shares = [each["auc"] / each["teacher_auc"] for each in groups.values() if each["images"] >= 50]  # noqa: PLR2004
    sexes = [each["auc"] for name, each in groups.items() if name.startswith("sex ")]
    note = "validation split, gate report"
    lost = figures.get("int8_lost", {})
    return [
        _row("int8_auc_lost_adult", lost.get("adult-triage"), 0.005, at_most=True, note=note),
        _row("int8_auc_lost_paediatric", lost.get("paediatric-pneumonia"), 0.005, at_most=True, note=note),
        _row("int8_dice_lost", lost.get("dice"), 0.002, at_most=True, note=note),
        _row("auc_share_of_teachers", _ratio(figures, "adult_auc", "teacher_adult_auc"), 0.99, note=note),
        _row("dice_share_of_teachers", _ratio(figures, "dice", "teacher_dice"), 0.99, note=note),
        _row("worst_subgroup_share", min(shares, default=None), 0.97, note=f"{note}, groups of 50 images and more"),
        _row("auc_nih_adults", figures.get("adult_auc"), 0.92, note=note),
        _row("auc_nih_adults_low", figures.get("adult_auc_low"), 0.88, note=f"{note}, lower end of the 95 % interval"),
        _row("auc_nih_ap", groups.get("view AP", {}).get("auc"), 0.88, note=note),
        _row("auc_kermany", figures.get("paediatric_auc"), 0.99, note=note),
        _row("auc_gap_sexes", max(sexes) - min(sexes) if len(sexes) > 1 else None, 0.06, at_most=True, note=note),
        _row("dice_mean", figures.get("dice"), 0.945, note=note),
        _row("dice_p5", figures.get("dice_p5"), 0.89, note=note),
    ]


def _engine_rows(engine: Mapping[str, Any]) -> list[Row]:
    note = engine.get("missing", "TensorRT for RTX, FP16, built here without a GPU")
    return [
        _row("engine_fp16_seconds", engine.get("seconds"), SECONDS_MAX, at_most=True, note=note),
        _row("engine_fp16_megabytes", _megabytes(engine), BYTES_MAX / 1e6, at_most=True, note=note),
    ]


def _megabytes(engine: Mapping[str, Any]) -> float | None:
    return engine["bytes"] / 1e6 if "bytes" in engine else None


def _ratio(figures: Mapping[str, Any], above: str, below: str) -> float | None:
    return figures[above] / figures[below] if above in figures and below in figures else None


def _row(name: str, measured: float | None, bound: float, *, at_most: bool = False, note: str = "") -> Row:
    met = measured is not None and (measured <= bound if at_most else measured >= bound)
    return {
        "name": name,
        "bound": f"{'≤' if at_most else '≥'} {bound:g}",
        "measured": None if measured is None else round(float(measured), 4),
        "met": met,
        "note": note,
    }
