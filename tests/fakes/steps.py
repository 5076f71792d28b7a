"""Study steps that write every call into a file, so that a test sees them across the death of a process."""

import json
import os
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from appliance.workflow.steps import Next

Answer = Next | Exception


@dataclass
class RecordedSteps:
    """Answers each call from a script; without one, everything goes on.

    Args:
        journal: File that gets one JSON line a call: step, token, revision, further arguments.
        answers: By token and step, the answers of the first calls; an exception is raised, the last answer repeats.
        due: Destinations that `hand_over` names.
        gates: By token, a file that the analysis waits for.
        die_in: The name of a step in which the process kills itself, as often as `deaths` says.
    """

    journal: Path
    answers: dict[tuple[str, str], list[Answer]] = field(default_factory=dict)
    due: Sequence[str] = ()
    gates: dict[str, Path] = field(default_factory=dict)
    die_in: str = ""
    deaths: int = 1
    lock: threading.Lock = field(default_factory=threading.Lock)

    def analyse(self, token: str, revision: int) -> Next:
        """As the Protocol says."""
        answer = self._answer("analyse", token, revision)
        while token in self.gates and not self.gates[token].exists():
            time.sleep(0.02)
        return answer

    def report(self, token: str, revision: int) -> Next:
        """As the Protocol says."""
        return self._answer("report", token, revision)

    def hand_over(self, token: str, revision: int) -> Sequence[str]:
        """As the Protocol says."""
        self._answer("hand over", token, revision)
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

    def calls(self, token: str, step: str = "") -> list[list[object]]:
        """All calls for a study so far, of one step or of all: step, revision, further arguments."""
        if not self.journal.exists():
            return []
        lines = [json.loads(line) for line in self.journal.read_text().splitlines()]
        return [[name, *rest] for name, study, *rest in lines if study == token and step in {"", name}]

    def wait_for(self, token: str, step: str, times: int = 1, seconds: float = 30.0) -> list[list[object]]:
        """The calls of one step for a study, when there are `times` of them."""
        deadline = time.monotonic() + seconds
        while len(found := self.calls(token, step)) < times:
            assert time.monotonic() < deadline, f"not {times} times {step}: {self.calls(token)}"
            time.sleep(0.02)
        return found

    def _answer(self, step: str, token: str, *arguments: object) -> Next:
        with self.lock, self.journal.open("a") as stream:
            stream.write(json.dumps([step, token, *arguments]) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        called = len(self.calls(token, step))
        if step == self.die_in and called <= self.deaths:
            os.kill(os.getpid(), signal.SIGKILL)
        script = self.answers.get((token, step), [])
        answer = script[min(called, len(script)) - 1] if script else Next.GO_ON
        if isinstance(answer, Exception):
            raise answer
        return answer
