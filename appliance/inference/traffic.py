"""Knows whether anybody was served during a stretch of time: what was measured beside others is not what it seems."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock


class Traffic:
    """The batches of one runner; several threads may use it."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._begun = 0
        self._under_way = 0

    @contextmanager
    def batch(self) -> Iterator[None]:
        """A batch is worked on from here to the end of the `with`."""
        with self._lock:
            self._begun += 1
            self._under_way += 1
        try:
            yield
        finally:
            with self._lock:
                self._under_way -= 1

    def from_here(self) -> Callable[[], bool]:
        """A question to ask later: whether nobody was served between now and then."""
        with self._lock:
            begun, idle = self._begun, not self._under_way
        return lambda: idle and self._begun == begun
