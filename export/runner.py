"""Runs a pack's graphs as the appliance does: encoder once, then any head on its outputs."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

Arrays = dict[str, NDArray[np.float32]]
BATCH = 16


class Graph:
    """One ONNX file on the CPU.

    Args:
        path: The file.
        threads: Threads within an operator; 1 for timings that compare.
    """

    def __init__(self, path: Path, threads: int = 2) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.inputs: tuple[str, ...] = tuple(each.name for each in self._session.get_inputs())
        self.outputs: tuple[str, ...] = tuple(each.name for each in self._session.get_outputs())

    def run(self, tensors: dict[str, NDArray[np.generic]]) -> Arrays:
        """Run the graph on the tensors that it reads; others are ignored."""
        results = self._session.run(None, {name: tensors[name] for name in self.inputs})
        return dict(zip(self.outputs, results, strict=True))


class Runner:
    """An encoder with its heads.

    Args:
        encoder: The encoder's file.
        heads: Task name to the head's file.
        threads: As for `Graph`.
    """

    def __init__(self, encoder: Path, heads: dict[str, Path], threads: int = 2) -> None:
        self.encoder = Graph(encoder, threads)
        self._heads = {task: Graph(path, threads) for task, path in heads.items()}

    def run(self, images: NDArray[np.uint8], tasks: Sequence[str]) -> dict[str, Arrays]:
        """Run tasks on images, uint8 [N, 1, rows, columns]; returns each task's outputs by name."""
        features = self.encoder.run({self.encoder.inputs[0]: images})
        return {task: self._heads[task].run(features) for task in tasks}  # type: ignore[arg-type]

    def run_all(self, images: Iterable[NDArray[np.uint8]], tasks: Sequence[str]) -> dict[str, Arrays]:
        """Run tasks on any number of images, uint8 [rows, columns] each, in batches; outputs are concatenated."""
        parts = [self.run(batch, tasks) for batch in _batches(images)]
        return {
            task: {name: np.concatenate([part[task][name] for part in parts]) for name in parts[0][task]}
            for task in tasks
        }


def runner_of(folder: Path, encoder: str, tasks: Iterable[str], threads: int = 2) -> Runner:
    """The runner of graphs laid out as in a pack."""
    return Runner(folder / encoder, {task: folder / "tasks" / task / "head.onnx" for task in tasks}, threads)


def _batches(images: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
    pending: list[NDArray[np.uint8]] = []
    for image in images:
        pending.append(image)
        if len(pending) == BATCH:
            yield np.stack(pending)[:, None]
            pending = []
    if pending:
        yield np.stack(pending)[:, None]
