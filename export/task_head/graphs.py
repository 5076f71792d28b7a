"""Writes a trained head as ONNX: `head.onnx`, which the appliance serves, and `volume.onnx` for whole volumes."""

from pathlib import Path

import torch

from appliance.domain.manifest import PackManifest
from export.task_head.heads import EachAlone, Masked, MaskHead, Scored, VolumeHead
from export.task_head.train import Head
from export.to_onnx import export_module

HEAD, VOLUME = "head.onnx", "volume.onnx"
EXAMPLES = 2


def write_graphs(head: Head, base: PackManifest, inputs: tuple[str, ...], out: Path) -> str:
    """Write the graphs of a head and return the name of its output.

    Args:
        head: In evaluation mode.
        base: For the shapes of its outputs.
        inputs: The base's outputs that the head reads.
        out: Folder to write to.
    """
    shapes = {spec.name: spec.shape[1:] for spec in base.encoder_outputs}
    examples = tuple(torch.zeros(EXAMPLES, *shapes[name]) for name in inputs)
    if isinstance(head, MaskHead):
        export_module(Masked(head).eval(), examples, inputs, ("mask",), out / HEAD)
        return "mask"
    served = EachAlone(head) if isinstance(head, VolumeHead) else head
    export_module(Scored(served).eval(), examples, inputs, ("score",), out / HEAD)
    if isinstance(head, VolumeHead):
        export_module(Scored(head).eval(), examples, inputs, ("score",), out / VOLUME)
    return "score"
