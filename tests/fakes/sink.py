"""A sink in memory: takes what a node receives, or fails as it is told."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Taken:
    """One data set as the sink got it."""

    data: bytes
    transfer_syntax_uid: str
    sop_class_uid: str
    sop_instance_uid: str
    calling_ae: str


class MemorySink:
    """Implements `InstanceSink`.

    Attributes:
        failure: Raised instead of taking, while it is set.
        gate: While it is clear, `accept` waits: holds an image in hand.
    """

    def __init__(self) -> None:
        self.taken: list[Taken] = []
        self.failure: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def accept(
        self,
        chunks: Iterator[bytes],
        *,
        transfer_syntax_uid: str,
        sop_class_uid: str,
        sop_instance_uid: str,
        calling_ae: str,
    ) -> bool:
        """Take a data set."""
        data = b"".join(chunks)
        self.entered.set()
        assert self.gate.wait(30)
        if self.failure is not None:
            raise self.failure
        self.taken.append(Taken(data, transfer_syntax_uid, sop_class_uid, sop_instance_uid, calling_ae))
        return True
