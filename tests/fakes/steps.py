"""Study steps that write every call into a file, so that a test sees them across the death of a process."""

import json
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from appliance.workflow.steps import Next


@dataclass
class RecordedSteps:
    """Answers each call from a script; without one, everything goes on.

    Args:
        journal: File that gets one JSON line a call.
        answers: By step name, the answers of its first calls; an exception is raised, the last answer repeats.
        due: Destinations that `hand_over` names.
        die_in: The name of a step in which the process kills itself, once: a file beside the journal says it did.
    """

    journal: Path
    answers: dict[str, list[Next | Exception]] = field(default_factory=dict)
    due: Sequence[str] = ()
    die_in: str = ""

    def analyse(self, token: str, revision: int) -> Next:
        """As the Protocol says."""
        return self._answer("analyse", token, revision)

    def report(self, token: str, revision: int) -> Next:
        """As the Protocol says."""
        return self._answer("report", token, revision)

    def hand_over(self, token: str, revision: int) -> Sequence[str]:
        """As the Protocol says."""
        self._answer("hand_over", token, revision)
        return list(self.due)

    def deliver(self, token: str, revision: int, destination: str, attempt: int) -> Next:
        """As the Protocol says."""
        return self._answer(f"deliver {destination}", token, revision, attempt)

    def fail(self, token: str, revision: int, reason: str) -> None:
        """As the Protocol says."""
        self._answer("fail", token, revision, reason)

    def abandon(self, token: str, revision: int, destination: str, reason: str) -> None:
        """As the Protocol says."""
        self._answer(f"abandon {destination}", token, revision, reason)

    def calls(self, name: str = "") -> list[list[object]]:
        """All calls so far, of one step or of all: name and arguments."""
        if not self.journal.exists():
            return []
        lines = [json.loads(line) for line in self.journal.read_text().splitlines()]
        return [line for line in lines if not name or line[0] == name]

    def wait_for(self, name: str, times: int = 1, seconds: float = 30.0) -> list[list[object]]:
        """The calls of one step, when there are `times` of them."""
        deadline = time.monotonic() + seconds
        while len(found := self.calls(name)) < times:
            assert time.monotonic() < deadline, f"{name} was called {len(found)} times, not {times}: {self.calls()}"
            time.sleep(0.02)
        return found

    def _answer(self, name: str, *arguments: object) -> Next:
        with self.journal.open("a") as stream:
            stream.write(json.dumps([name, *arguments]) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        died = self.journal.with_suffix(".died")
        if name == self.die_in and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        script = self.answers.get(name, [])
        answer = script[min(len(self.calls(name)), len(script)) - 1] if script else Next.GO_ON
        if isinstance(answer, Exception):
            raise answer
        return answer
