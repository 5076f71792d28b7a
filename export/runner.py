"""Runs graphs laid out as a pack, on the appliance's own engine: what is measured here is what runs there."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from appliance.inference.engine import Engine
from appliance.inference.onnxruntime_cpu import OnnxRuntimeCpu

Grey = NDArray[np.uint8]
Floats = NDArray[np.float32]
Outputs = dict[str, dict[str, Floats]]
"""Task to output name to values [N, …]."""
BATCH = 16


class Runner:
    """An encoder with its heads on the CPU.

    Args:
        folder: Graphs laid out as in a pack.
        encoder: The encoder's file in it.
        tasks: The heads to load.
        threads: Threads within an operator; 1 for timings that compare.
    """

    def __init__(self, folder: Path, encoder: str, tasks: Iterable[str], threads: int = 2) -> None:
        runtime = OnnxRuntimeCpu(threads)
        self.encoder = _loaded(runtime, folder / encoder)
        self._heads = {task: _loaded(runtime, folder / "tasks" / task / "head.onnx") for task in tasks}

    def features(self, images: Grey) -> Mapping[str, NDArray[np.generic]]:
        """The encoder's outputs by name, of images uint8 [N, 1, rows, columns]."""
        return self.encoder.run({self.encoder.inputs[0].name: images})

    def run(self, images: Grey) -> Outputs:
        """All heads on images, uint8 [N, 1, rows, columns]."""
        return self.heads(self.features(images))

    def heads(self, features: Mapping[str, NDArray[np.generic]]) -> Outputs:
        """All heads on what `features` gave."""
        return {
            task: {
                name: np.asarray(values, np.float32)
                for name, values in head.run({spec.name: features[spec.name] for spec in head.inputs}).items()
            }
            for task, head in self._heads.items()
        }

    def each(self, images: Iterable[Grey]) -> Iterator[Outputs]:
        """All heads on images, uint8 [rows, columns] each; one batch's outputs at a time."""
        for batch in batched(images, BATCH):
            yield self.run(np.stack(batch)[:, None])


def batched(images: Iterable[Grey], size: int) -> Iterator[Sequence[Grey]]:
    """Lists of at most `size` images."""
    pending: list[Grey] = []
    for image in images:
        pending.append(image)
        if len(pending) == size:
            yield pending
            pending = []
    if pending:
        yield pending


def _loaded(runtime: OnnxRuntimeCpu, path: Path) -> Engine:
    return runtime.load(path.read_bytes(), title=path.name, precision="")
