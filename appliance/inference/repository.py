"""What the protocol's repository calls ask of whoever keeps the packs; the daemon implements it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """A model as the repository lists it: `state` is READY, LOADING or UNAVAILABLE, with the reason if not READY."""

    name: str
    version: str
    state: str
    reason: str


class Repository(Protocol):
    """Loads and unloads packs while others serve; calls may take as long as a replay of golden cases takes."""

    def index(self) -> Sequence[IndexEntry]:
        """Every model that is served, and every pack that is not, with the reason."""
        ...

    def load(self, name: str) -> None:
        """Verify a pack again, replay its golden cases, and serve it in place of what served under its name.

        Args:
            name: A pack, or any of its models.

        Raises:
            UnknownModelError: No such pack is installed.
            PackError: It may not serve; what served before goes on serving.
        """
        ...

    def unload(self, name: str) -> None:
        """Stop serving a pack once its last request is answered.

        Raises:
            UnknownModelError: It is not served.
        """
        ...
