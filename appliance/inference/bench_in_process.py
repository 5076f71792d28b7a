"""ONNX Runtime without any server, in a process of its own: what `insite bench inference` compares the daemon with.

Reads one JSON object from standard input, writes one to standard output: `{"graph", "outputs", "heads", "threads",
"batches", "spins", "seconds", "callers"}` gives images a second and milliseconds a run for every setting that was asked
for.
"""

import itertools
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from appliance.inference.onnxruntime_cpu import UNWANTED_OPTIMISERS
from appliance.inference.tensors import Array

FIRST_RUNS = 3
"""Not counted: they allocate."""


def session_of(graph: Path, threads: int, *, spin: bool) -> onnxruntime.InferenceSession:
    """A session as somebody would make it who knows ONNX Runtime and has the machine to himself."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
    return onnxruntime.InferenceSession(
        str(graph), options, providers=["CPUExecutionProvider"], disabled_optimizers=list(UNWANTED_OPTIMISERS)
    )


def measured(order: dict[str, Any]) -> list[dict[str, Any]]:
    """Run every setting for `seconds`; with heads, an image is done when an encoder of its own ran for each head."""
    found = []
    for threads, spin in itertools.product(order["threads"], order["spins"]):
        encoder = session_of(Path(order["graph"]), threads, spin=spin)
        heads = [session_of(Path(head), threads, spin=spin) for head in order.get("heads", [])]
        for batch in order["batches"]:
            images = np.random.default_rng(0).integers(0, 256, (batch, 1, order["rows"], order["columns"]), np.uint8)
            callers = order.get("callers", 1)
            times, processor = _times_of(callers, encoder, heads, images, order)
            found.append(
                {
                    "threads": threads,
                    "spin": spin,
                    "batch": batch,
                    "images_per_second": batch * len(times) / sum(times) * callers,
                    "processor_ms": processor / (batch * len(times)) * 1000,
                    "milliseconds": [seconds * 1000 for seconds in times],
                }
            )
    return found


def _times_of(
    callers: int,
    encoder: onnxruntime.InferenceSession,
    heads: list[onnxruntime.InferenceSession],
    images: Array,
    order: dict[str, Any],
) -> tuple[list[float], float]:
    """Seconds of each run of every caller, and of the processor in all."""
    for _ in range(FIRST_RUNS):
        _run(encoder, heads, images, order)
    processor = time.process_time()
    with ThreadPoolExecutor(callers) as pool:
        each = [pool.submit(_times, encoder, heads, images, order) for _ in range(callers)]
        times = [seconds for one in each for seconds in one.result()]
    return times, time.process_time() - processor


def _times(
    encoder: onnxruntime.InferenceSession,
    heads: list[onnxruntime.InferenceSession],
    images: Array,
    order: dict[str, Any],
) -> list[float]:
    """Seconds of each run."""
    times: list[float] = []
    begin = time.perf_counter()
    while not times or time.perf_counter() - begin < order["seconds"]:
        start = time.perf_counter()
        _run(encoder, heads, images, order)
        times.append(time.perf_counter() - start)
    return times


def _run(
    encoder: onnxruntime.InferenceSession,
    heads: list[onnxruntime.InferenceSession],
    images: Array,
    order: dict[str, Any],
) -> None:
    if not heads:
        encoder.run(order["outputs"], {order["input"]: images})
    for head in heads:
        names = [node.name for node in head.get_inputs()]
        head.run(None, dict(zip(names, encoder.run(names, {order["input"]: images}), strict=True)))


if __name__ == "__main__":
    json.dump(measured(json.load(sys.stdin)), sys.stdout)
