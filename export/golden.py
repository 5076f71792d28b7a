"""Step `golden`: synthetic inputs with the outputs of every precision, replayed on the target before activation."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save

from appliance.domain.manifest import InputSpec
from export.artefacts import write_json
from export.disk import save_whole
from export.ensemble import Member, ensemble_from_files
from export.phantoms import phantom
from export.runner import Runner

CASES, ARRAYS = "cases.json", "cases.safetensors"
SEEDS = (0, 1, 2, 3)
TOLERANCE = {"score_abs": 0.05, "mask_dice": 0.98}
MASK_THRESHOLD = 0.5


def make_golden(
    spec: InputSpec,
    encoders: dict[str, str],
    tasks: Sequence[str],
    graphs: Path,
    *,
    teachers: Sequence[Member],
    out: Path,
) -> None:
    """Write `cases.safetensors` and `cases.json`.

    `inputs` is uint8 [K, 1, rows, columns]; `<precision>/<task>/<output>` holds what that precision said, masks as
    uint8 of 0 and 1 at the threshold 0.5; `teacher/<task>/score` what the teachers said.

    Args:
        spec: The pack's input.
        encoders: Precision to the encoder's file in `graphs`.
        tasks: The tasks with a head in `graphs`.
        graphs: Folder laid out as a pack.
        teachers: Asked together.
        out: Folder to write to.
    """
    inputs = np.stack([phantom(spec, seed) for seed in SEEDS])[:, None]
    arrays: dict[str, NDArray[np.generic]] = {"inputs": inputs}
    for precision, encoder in encoders.items():
        results = Runner(graphs, encoder, tasks).run(inputs)
        for task, outputs in results.items():
            for name, values in outputs.items():
                arrays[f"{precision}/{task}/{name}"] = stored(name, values)
    for task, scores in _teacher_scores(inputs, teachers).items():
        arrays[f"teacher/{task}/score"] = scores
    save_whole(out / ARRAYS, save({name: np.ascontiguousarray(values) for name, values in arrays.items()}))
    cases = [{"name": f"synthetic chest-like phantom {seed}", "synthetic": True} for seed in SEEDS]
    write_json(out / CASES, {"cases": cases, "tolerance": TOLERANCE})


def stored(name: str, values: NDArray[np.float32]) -> NDArray[np.generic]:
    """How an output is kept: masks thresholded to uint8, everything else as it is."""
    return (values >= MASK_THRESHOLD).astype(np.uint8) if name == "mask" else values


def _teacher_scores(inputs: NDArray[np.uint8], teachers: Sequence[Member]) -> dict[str, NDArray[np.float32]]:
    with torch.no_grad():
        outputs = ensemble_from_files(teachers)(torch.from_numpy(inputs))
    return {
        "adult-triage": torch.sigmoid(outputs.adult).numpy(),
        "paediatric-pneumonia": torch.sigmoid(outputs.paediatric).numpy(),
    }
