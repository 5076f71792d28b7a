"""Measures how long a pack's encoder takes for one image, two, four, eight, and chooses how to batch from it."""

from collections.abc import Mapping

import numpy as np

from appliance.inference.loaded_pack import LoadedPack
from appliance.inference.scheduler import Batching
from appliance.inference.tensors import MAX_BATCH

BATCHES = (1, 2, 4, MAX_BATCH)
ROUNDS = 5
WORTH = 0.85
"""A larger batch is preferred when an image in it takes less than this part of what it takes in the smaller one: every
image that waits for company waits longer, and an urgent one waits for the whole batch before it."""
DELAY_SHARE = 0.1
LONGEST_DELAY = 0.002


def latency_table(pack: LoadedPack, rounds: int = ROUNDS) -> dict[int, float]:
    """Seconds of one batch by its size, as it takes while every lane of the device has one.

    The shortest of several runs, because a machine is only ever disturbed.
    """
    spec = pack.manifest.input
    table = {}
    with pack.crowded():
        for batch in BATCHES:
            images = np.full((batch, 1, spec.rows, spec.columns), 128, np.uint8)
            pack.encode_seconds(images)
            table[batch] = min(pack.encode_seconds(images) for _ in range(rounds))
    return table


def batching_from(table: Mapping[int, float], lanes: int = 1) -> Batching:
    """The smallest batch beyond which an image gets hardly cheaper, and how long to wait for it.

    Args:
        table: Seconds of a batch by its size, on one lane.
        lanes: How many batches the device computes at once.
    """
    sizes = sorted(table)
    preferred = sizes[0]
    for size in sizes[1:]:
        if table[size] / size < WORTH * table[preferred] / preferred:
            preferred = size
    delay = 0.0 if preferred == 1 else min(LONGEST_DELAY, DELAY_SHARE * table[preferred])
    return Batching(preferred, delay, table[preferred] / preferred / lanes)
