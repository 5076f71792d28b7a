"""What one caller asks of one model, as it lies in the queue, and how its answer reaches the caller."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from appliance.domain.findings import ModelProvenance
from appliance.domain.ports import Answer
from appliance.inference.features import FeatureRow
from appliance.inference.tensors import Array

Source: TypeAlias = tuple[str, str]
"""A task of a pack, or `embedding`, and one of its outputs."""


@dataclass(slots=True)
class Timing:
    """Where the time of one question went, in seconds of the lane's clock.

    Attributes:
        batch: Images of the batch that it was answered in.
        cache_hits: Images of it whose features were known.
    """

    queue: float = 0.0
    encoder: float = 0.0
    head: float = 0.0
    batch: int = 0
    cache_hits: int = 0


@dataclass(eq=False, slots=True)
class Question:
    """A model asked about images.

    Args:
        sources: Where each output of the answer comes from: the pack's task (or `embedding`) and its output.
        images: UINT8 [N, 1, rows, columns], this process's own copy: nobody may change it any more.
        tell: Called once, by the lane's thread, with the answer or the error.
        name: The model's whole name, for statistics.
    """

    sources: Mapping[str, Source]
    images: Array
    tell: Callable[["Answer | None", "BaseException | None"], None]
    name: str = ""
    timing: Timing = field(default_factory=Timing)
    failed: bool = field(default=False, init=False)
    settled: bool = field(default=False, init=False)

    def settle(self, answer: Answer | None, error: BaseException | None) -> None:
        """Tell the caller, once: what comes after the first outcome is not told."""
        if self.settled:
            return
        self.settled = True
        self.failed = error is not None
        self.tell(answer, error)


@dataclass(eq=False, slots=True)
class Answering:
    """A question whose images have features, while the tasks that it needs answer one after the other.

    Args:
        rows: The features of its images, in their order.
    """

    question: Question
    rows: Sequence[FeatureRow]
    _found: dict[Source, Array] = field(default_factory=dict, init=False)

    @property
    def tasks(self) -> frozenset[str]:
        """Whom it needs."""
        return frozenset(task for task, _ in self.question.sources.values())

    def take(self, task: str, outputs: Mapping[str, Array], provenance: ModelProvenance) -> None:
        """Keep what a task says; the caller is told with the last one, never a part."""
        self._found.update({(task, name): array for name, array in outputs.items()})
        sources = self.question.sources
        if self._found.keys() >= set(sources.values()):
            self.question.settle(Answer({name: self._found[each] for name, each in sources.items()}, provenance), None)


_CONTENT_KEY = AESGCM(os.urandom(16))
_NO_NONCE = bytes(12)


def content_digests(images: Array) -> tuple[str, ...]:
    """A digest of each image of a batch: images of equal digest are the same image, whoever sent them.

    It is GMAC (NIST SP 800-38D) under a key that this process alone has and forgets: without the key nobody can make
    two images of one digest, and a collision by chance has a probability below 2^-110. It takes a fifteenth of the time
    of SHA-256. The nonce never changes, which GMAC forbids only where somebody sees the tags; these never leave here.
    """
    return tuple(_CONTENT_KEY.encrypt(_NO_NONCE, b"", image.data).hex() for image in images)
