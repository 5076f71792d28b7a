"""What the engine asks of those who do the work: steps by name of a study, each safe to run again at any time."""

import enum
from collections.abc import Sequence
from typing import Protocol


class Next(enum.Enum):
    """What a step says of what comes next."""

    GO_ON = "go-on"
    """The step is done, now or before; the next one follows."""
    STOP = "stop"
    """This work has ended: superseded, failed or dead; the ledger says which."""
    LATER = "later"
    """Something outside is not there; the same step again after a pause, as often as it takes."""


class StudySteps(Protocol):
    """The steps of one revision of one study, named by its token.

    A step runs at least once and may be killed at any instruction: each looks at the ledger first and does only what is
    left to do. What it raises is unexpected: the engine counts it, tries again a few times and then calls `fail` or
    `abandon`.
    """

    def analyse(self, token: str, revision: int) -> Next:
        """Look at the images and keep what was found."""
        ...

    def report(self, token: str, revision: int) -> Next:
        """Make the result objects."""
        ...

    def hand_over(self, token: str, revision: int) -> Sequence[str]:
        """Note a delivery for every destination and name those that are still due."""
        ...

    def deliver(self, token: str, revision: int, destination: str, attempt: int) -> Next:
        """Send the result objects to one destination; attempts count from 1."""
        ...

    def fail(self, token: str, revision: int, reason: str) -> None:
        """End the revision with a reason, unless it has ended already."""
        ...

    def abandon(self, token: str, revision: int, destination: str, reason: str) -> None:
        """End one delivery with a reason, unless it has ended already."""
        ...
