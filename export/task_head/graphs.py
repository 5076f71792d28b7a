"""Writes a trained head as ONNX: `head.onnx`, which the appliance serves, and `volume.onnx` for whole volumes."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from export.onnx_parity import refuse_other_answers
from export.task_head.features import Half
from export.task_head.heads import EachAlone, Masked, MaskHead, Scored, VolumeHead
from export.task_head.train import Head
from export.to_onnx import export_module

HEAD, VOLUME = "head.onnx", "volume.onnx"
EXAMPLES, HELD = 2, 7
"""Pictures that a graph is exported with, and those on which it is held against torch."""


def write_graphs(head: Head, said: Mapping[str, Half], out: Path) -> str:
    """Write the graphs of a head, each held against the head in torch, and return the name of its output.

    Args:
        head: In evaluation mode.
        said: The base's outputs that the head reads, of all pictures; the first are what a graph is held against.
        out: Folder to write to.

    Raises:
        EngineFileError: A head can't be exported, or its graph says something else than torch does.
    """
    seen = {name: torch.from_numpy(values[:HELD]).float() for name, values in said.items()}
    if isinstance(head, MaskHead):
        _write(Masked(head), seen, "mask", out / HEAD)
        return "mask"
    _write(Scored(EachAlone(head) if isinstance(head, VolumeHead) else head), seen, "score", out / HEAD)
    if isinstance(head, VolumeHead):
        _write(Scored(head), seen, "score", out / VOLUME)
    return "score"


def _write(served: nn.Module, seen: Mapping[str, Tensor], output: str, path: Path) -> None:
    examples = tuple(values[:EXAMPLES] for values in seen.values())
    export_module(served.eval(), examples, tuple(seen), (output,), path)
    refuse_other_answers(served, tuple(seen.values()), (output,), path)
