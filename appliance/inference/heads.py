"""Runs a head on the features of images that several runs of the encoder gave."""

from collections.abc import Sequence

import numpy as np

from appliance.inference.engine import Engine
from appliance.inference.features import FeatureRow
from appliance.inference.tensors import Array, Tensor


def head_outputs(head: Engine, rows: Sequence[FeatureRow]) -> dict[str, Array]:
    """Run a head on feature rows: its outputs [N, …], in the order of the rows."""
    parts = [_outputs_of_run(head, run) for run in _runs_of(rows)]
    return {name: joined([part[name] for part in parts]) for name in parts[0]}


def joined(parts: Sequence[Array]) -> Array:
    """Arrays one after the other; one alone is itself."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _outputs_of_run(head: Engine, rows: Sequence[FeatureRow]) -> dict[str, Array]:
    """Run a head on rows that one run of the encoder gave, in the order of the rows.

    On a CPU the head sees these rows only; on a GPU it sees the whole batch, which never leaves the device.
    """
    names = [spec.name for spec in head.inputs]
    tensors = rows[0].tensors
    positions = [row.row for row in rows]
    low, high = min(positions), max(positions) + 1
    inputs: dict[str, Tensor] = {}
    for name in names:
        tensor = tensors[name]
        inputs[name] = tensor[low:high] if isinstance(tensor, np.ndarray) else tensor
    outputs = head.run(inputs)
    first = low if all(isinstance(tensors[name], np.ndarray) for name in names) else 0
    wanted = [position - first for position in positions]
    if wanted == list(range(len(outputs[next(iter(outputs))]))):
        return dict(outputs)
    return {name: array[wanted] for name, array in outputs.items()}


def _runs_of(rows: Sequence[FeatureRow]) -> list[list[FeatureRow]]:
    """Neighbouring rows that came from one run of the encoder."""
    runs: list[list[FeatureRow]] = []
    for row in rows:
        if runs and runs[-1][0].tensors is row.tensors:
            runs[-1].append(row)
        else:
            runs.append([row])
    return runs
