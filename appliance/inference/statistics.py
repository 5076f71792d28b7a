"""Counts and times of what was served, per model, as the protocol's statistics and the metrics show them."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from appliance.inference.question import Question


@dataclass(slots=True)
class Duration:
    """How often, and how long in all, in nanoseconds."""

    count: int = 0
    ns: int = 0

    def add(self, seconds: float, count: int = 1) -> None:
        """Count once more."""
        self.count += count
        self.ns += int(seconds * 1e9)


@dataclass(slots=True)
class ModelCounts:
    """Of one model since the start of the process.

    Attributes:
        images: Images answered.
        batches: Runs that answered them; a run that answered several models counts once for each.
        last_ms: When it was last asked, milliseconds since the epoch.
        sizes: Runs and their times by batch size.
    """

    images: int = 0
    batches: int = 0
    last_ms: int = 0
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    infer: Duration = field(default_factory=Duration)
    cache_hit: Duration = field(default_factory=Duration)
    cache_miss: Duration = field(default_factory=Duration)
    sizes: dict[int, Duration] = field(default_factory=dict)


class Statistics:
    """Written by the lane's thread and by those who refuse, read by anybody.

    Args:
        now: Seconds since the epoch.
    """

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._models: dict[str, ModelCounts] = {}

    def batch(self, answered: Sequence[tuple[Question, int]], seconds: float) -> None:
        """Count a run that answered questions of one pack, each with its number of images."""
        size = sum(images for _, images in answered)
        with self._lock:
            for model in dict.fromkeys(question.name for question, _ in answered):
                counts = self._counts(model)
                counts.batches += 1
                counts.last_ms = int(self._now() * 1000)
                counts.sizes.setdefault(size, Duration()).add(seconds)
            for question, images in answered:
                counts = self._counts(question.name)
                timing = question.timing
                if question.failed:
                    counts.fail.add(timing.queue + seconds)
                    continue
                counts.images += images
                counts.success.add(timing.queue + seconds)
                counts.queue.add(timing.queue)
                counts.infer.add(timing.encoder + timing.head)
                counts.cache_hit.count += timing.cache_hits
                counts.cache_miss.count += images - timing.cache_hits

    def failed(self, model: str) -> None:
        """Count a request that was not run."""
        with self._lock:
            self._counts(model).fail.add(0.0)

    def snapshot(self) -> dict[str, ModelCounts]:
        """What was counted so far, a copy."""
        with self._lock:
            return {
                model: replace(
                    counts,
                    **{
                        name: replace(getattr(counts, name))
                        for name in ("success", "fail", "queue", "infer", "cache_hit", "cache_miss")
                    },
                    sizes={size: replace(duration) for size, duration in counts.sizes.items()},
                )
                for model, counts in self._models.items()
            }

    def _counts(self, model: str) -> ModelCounts:
        return self._models.setdefault(model, ModelCounts())
