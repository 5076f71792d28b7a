"""How far a long step is: a bar on a terminal, a line at every tenth elsewhere, nothing from helper processes."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

Advance = Callable[[int], None]
TENTHS = 10


class Progress(Protocol):
    """Whoever is told."""

    def say(self, text: str) -> None:
        """One line."""

    def bar(self, title: str, total: int, done: int = 0) -> AbstractContextManager[Advance]:
        """A count from `done` to `total`; what is entered is called with each advance."""


class Shown:
    """Progress on a console."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def say(self, text: str) -> None:
        """Print one line."""
        self._console.print(text, highlight=False, markup=False)

    @contextmanager
    def bar(self, title: str, total: int, done: int = 0) -> Iterator[Advance]:
        """A bar with the time that is left, or lines where nobody watches."""
        if not self._console.is_terminal:
            yield self._lines(title, total, done)
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with RichProgress(*columns, console=self._console) as progress:
            task = progress.add_task(title, total=total, completed=done)
            yield lambda count: progress.advance(task, count)

    def _lines(self, title: str, total: int, done: int) -> Advance:
        reached = done

        def advance(count: int) -> None:
            nonlocal reached
            before, reached = reached, reached + count
            if before * TENTHS // total != reached * TENTHS // total:
                self.say(f"{title}: {reached} of {total}")

        return advance


class Silent:
    """Progress that nobody needs to hear twice: in all processes of a run but the first."""

    def say(self, text: str) -> None:
        """Nothing."""

    @contextmanager
    def bar(self, title: str, total: int, done: int = 0) -> Iterator[Advance]:
        """Nothing."""
        del title, total, done
        yield lambda _: None
