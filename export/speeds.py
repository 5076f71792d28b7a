"""What came off a clock, and what engines weigh: `speed.json`, which no two makings have alike.

Each table comes in two forms: with times for `speed.json` and for the report's page, and without for `gate-report.json`
and the card, which are part of the pack's digest. Both have one title.
"""

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from appliance.inference.engine_build import SUFFIX
from export.fp8 import CAPABILITIES as FP8_GPUS
from export.gate import PASS, SEE_SPEEDS, Rule, verdict
from export.gate_rules import Quantised
from export.latency import Ratio
from export.tables import Table
from export.tasks import ADULT, PAEDIATRIC
from export.to_engine import FP8_ENGINE, GPUS, SOURCES

SCHEMA = "insite-speeds/1"
THREADS = 1
ENGINES = "Engines of TensorRT for RTX"
NAMED_LAYERS = 3
"""So many layers are named where they stay in FP32; more are counted."""


def speeds(tables: Sequence[Table], rules: Sequence[Rule]) -> dict[str, Any]:
    """The file's content.

    Args:
        tables: Those with times.
        rules: Of the lower precisions; those that were timed are kept with what was measured.
    """
    return {
        "schema": SCHEMA,
        "machine": platform.machine(),
        "cpu": cpu_name(),
        "cpus": os.cpu_count(),
        "threads": THREADS,
        "rules": [rule.row(timed=True) for rule in rules if rule.timed],
        "tables": list(tables),
    }


def cpu_name(described: Path = Path("/proc/cpuinfo")) -> str:
    """What the first processor of this machine calls itself."""
    lines = described.read_text().splitlines() if described.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or "unknown")


def search_table(record: Mapping[str, Any], *, timed: bool = True) -> Table:
    """The INT8 search, as `quantise_search.py` recorded it."""
    worst = sorted(record["sensitivities"].items(), key=lambda item: (-item[1], item[0]))[:8]
    layers = ", ".join(f"`{name}` {shift:.3f}" for name, shift in worst)
    aware = (
        f" No setting of the student's own weights was inside the bounds: the INT8 encoder was fine-tuned for "
        f"{record['aware_steps']} steps with its rounding switched on, FP32 and FP16 were not."
        if record["aware_steps"]
        else ""
    )
    speed = (
        "Speed is FP32's time over the setting's, one thread, interleaved, median [quartiles]."
        if timed
        else f"Speed of each setting: {SEE_SPEEDS}."
    )
    return {
        "title": "INT8 search on the tuning patients",
        "columns": [
            "setting",
            "size",
            *(["speed, batch 1", "speed, batch 8"] if timed else []),
            "lost adult AUC",
            "lost paediatric AUC",
            "lost Dice",
            "score shift",
            "verdict",
        ],
        "rows": [
            _trial_row(trial, timed=timed, kept=number == record["chosen"])
            for number, trial in enumerate(record["trials"])
        ],
        "note": f"{record['images']} images. {speed} The layers whose quantisation alone moves the scores most: "
        f"{layers}.{aware}",
    }


def _trial_row(trial: Mapping[str, Any], *, timed: bool, kept: bool) -> list[str]:
    loss, words = trial["loss"], "kept" if kept else "inside"
    times = (f"{ratio['median']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]" for ratio in trial["speed"])
    return [
        f"{trial['method']}, {_full_in_words(trial['full_layers'])}{', fine-tuned' if trial['aware'] else ''}",
        f"{trial['size_bytes'] / 1e6:.1f} MB",
        *(times if timed else ()),
        f"{loss['adult_auc']:.4f}",
        f"{loss['paediatric_auc']:.4f}",
        f"{loss['dice']:.4f}",
        f"{loss['shift']:.3f}",
        f"outside: {trial['broken']}" if trial["broken"] else words,
    ]


def _full_in_words(layers: Sequence[str]) -> str:
    if not layers:
        return "every layer"
    return f"but for {', '.join(layers)}" if len(layers) <= NAMED_LAYERS else f"but for {len(layers)} layers"


def precision_table(
    figures: Sequence[Quantised], rules: Mapping[str, Sequence[Rule]], sizes: Mapping[str, int], *, timed: bool = True
) -> Table:
    """Each precision: how large, what it loses, how fast, whether it serves.

    Args:
        figures: The lower precisions against FP32.
        rules: Their rules.
        sizes: Bytes of each precision's encoder.
        timed: Whether with times.
    """
    batches = sorted({batch for each in figures for batch in each.speed})
    rows = [["FP32", f"{sizes['fp32'] / 1e6:.1f} MB", "", "", "", *([""] * len(batches) if timed else []), "serves"]]
    for each in figures:
        broken = "; ".join(rule.name for rule in rules[each.precision] if not rule.passed)
        times = [f"{each.speed[batch]:.2f}" if batch in each.speed else "not timed" for batch in batches]
        rows.append(
            [
                each.precision.upper(),
                f"{sizes[each.precision] / 1e6:.1f} MB",
                *(f"{each.auc_losses[task]:.4f}" for task in (ADULT, PAEDIATRIC)),
                f"{each.dice_loss:.4f}",
                *(times if timed else []),
                "serves" if verdict(rules[each.precision]) == PASS else f"does not serve: {broken}",
            ]
        )
    return {
        "title": "Precisions: what each costs",
        "columns": [
            "precision",
            "size",
            "lost adult AUC",
            "lost paediatric AUC",
            "lost Dice",
            *([f"speed, batch {batch}" for batch in batches] if timed else []),
            "verdict",
        ],
        "rows": rows,
        "note": "Lost against FP32 on the validation patients; less than nothing is a gain. "
        + ("Speed is FP32's time over its own." if timed else f"Latency: {SEE_SPEEDS}."),
    }


def latency_table(ratios: Mapping[int, Ratio], sizes: Mapping[str, int], bound: float, *, timed: bool = True) -> Table:
    """INT8 against FP32 in ONNX Runtime on the CPU that made the pack.

    Args:
        ratios: By batch.
        sizes: Bytes of each precision's encoder.
        bound: The least ratio at which INT8 serves.
        timed: Whether with times.
    """
    rows = []
    for batch, each in ratios.items():
        times = [f"{each.median:.2f} [{each.low:.2f}, {each.high:.2f}]"]
        times += [f"{each.reference_ms:.1f}", f"{each.candidate_ms:.1f}"]
        judged = [f"≥ {bound:g}", "yes" if each.median >= bound else "no"]
        rows.append([batch, *(times if timed else []), *judged])
    files = ", ".join(f"{name.upper()} {size / 1e6:.1f} MB" for name, size in sizes.items())
    how = "ONNX Runtime CPU, one thread, interleaved runs, medians."
    return {
        "title": "Encoder latency: FP32 divided by INT8",
        "columns": ["batch", *(["ratio [quartiles]", "FP32 ms", "INT8 ms"] if timed else []), "bound", "met"],
        "rows": rows,
        "note": f"{how} {'Milliseconds are of one machine' if timed else f'Ratios and times: {SEE_SPEEDS}'}. {files}.",
    }


def engine_table(record: Mapping[str, Any]) -> Table:
    """Engines that were built ahead of time, and what became of TensorRT."""
    rows = [
        [
            each["file"],
            ", ".join(each["compute_capabilities"]),
            f"{each['size_bytes'] / 1e6:.1f} MB",
            f"{each['build_seconds']:.1f} s",
            "beside the pack" if each["kept"] else f"left out: {each['left_out']}",
        ]
        for each in record["tensorrt-rtx"]
    ]
    missing = record.get("tensorrt-rtx-missing", "Built without a GPU, so neither run nor timed here.")
    missing += f" FP8: {record['fp8-missing']}" if "fp8-missing" in record else ""
    return {
        "title": ENGINES,
        "columns": ["file", "compute capabilities", "size", "build time", "verdict"],
        "rows": rows,
        "note": f"{missing} TensorRT: {record['tensorrt']}",
    }


def planned_engines_table() -> Table:
    """Engines that this exporter tries to build: the same on every machine, whatever is installed there."""
    planned = [(f"encoder.{name}{part}{SUFFIX}", gpus) for part, gpus in GPUS.items() for name in SOURCES]
    return {
        "title": ENGINES,
        "columns": ["file", "compute capabilities"],
        "rows": [[file, ", ".join(gpus)] for file, gpus in (*planned, (FP8_ENGINE, FP8_GPUS))],
        "note": "Engines lie beside the pack, outside its digest and signature, and no two builds are alike. Which "
        f"were built, their sizes, times and verdicts: {SEE_SPEEDS}.",
    }
