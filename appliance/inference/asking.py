"""How a caller of the runner asks: for what, how urgently, and how the answer reaches him."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from appliance.domain.ports import Answer
from appliance.inference.scheduler import Priority

Settle: TypeAlias = "Callable[[Answer | None, BaseException | None], None]"
"""Called once, with the answer or the error."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a caller asks for: a model, in a release (empty: whichever is served), some of its outputs (empty: all)."""

    model: str
    version: str = ""
    outputs: tuple[str, ...] = ()

    @property
    def pack(self) -> str:
        """The pack's name."""
        return self.model.partition(".")[0]

    @property
    def task(self) -> str:
        """The model's name within its pack."""
        return self.model.partition(".")[2]


@dataclass(frozen=True, slots=True)
class Urgency:
    """How a caller wants to be served: its class, and the seconds it will wait (None: as long as it takes)."""

    priority: Priority = Priority.ROUTINE
    seconds: float | None = None
