"""How fast two encoders are on this CPU: interleaved runs, ratios of neighbours, so that noise shows and cancels."""

import time
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from export.runner import Grey

WARM_UP = 3
ROUNDS = 25


class Encoder(Protocol):
    """What is timed."""

    def features(self, images: Grey) -> object:
        """Work through images, uint8 [N, 1, rows, columns]."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """Times of a reference divided by times of a candidate, of pairs run one after the other.

    Attributes:
        median, low, high: Median and quartiles of the pairs' ratios.
        reference_ms, candidate_ms: Median times of one run in milliseconds, on this machine.
    """

    median: float
    low: float
    high: float
    reference_ms: float
    candidate_ms: float


def compare(reference: Encoder, candidate: Encoder, images: Grey, rounds: int = ROUNDS) -> Ratio:
    """Time both encoders on the same images, uint8 [N, 1, rows, columns]."""
    times: list[tuple[float, float]] = []
    for number in range(WARM_UP + rounds):
        pair = (_seconds(reference, images), _seconds(candidate, images))
        if number >= WARM_UP:
            times.append(pair)
    slow, fast = np.array(times).T
    low, median, high = np.percentile(slow / fast, (25, 50, 75))
    return Ratio(float(median), float(low), float(high), float(np.median(slow) * 1e3), float(np.median(fast) * 1e3))


def _seconds(encoder: Encoder, images: Grey) -> float:
    start = time.perf_counter()
    encoder.features(images)
    return time.perf_counter() - start
