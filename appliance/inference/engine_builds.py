"""Builds engines in a child process at the lowest priority, while ONNX Runtime serves, and tells how far it is.

`python -m appliance.inference.engine_builds` is the child: a plan as JSON on standard input, progress as JSON lines on
standard output. However it ends, a half-built engine is never seen: the file appears whole or not at all.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from appliance.domain.errors import EngineFileError
from appliance.inference.engine_build import BuildPlan, build_engine
from appliance.inference.engine_file import engine_metadata

LOWEST = 19
"""nice(2): whatever serves comes first."""
ATTEMPTS = 2
"""A build that fails twice in one life of the daemon is left alone: ONNX Runtime serves."""


@dataclass(frozen=True, slots=True)
class BuildOrder:
    """A graph on disk, the engine to make of it, and how. `pack` is told when it is done."""

    pack: str
    graph: Path
    engine: Path
    plan: BuildPlan


@dataclass(frozen=True, slots=True)
class BuildProgress:
    """How far a build is: `state` is `waiting`, `building`, `built` or `failed`, `step` of `steps` in a phase."""

    pack: str
    engine: str
    state: str
    phase: str = ""
    step: int = 0
    steps: int = 0
    reason: str = ""


class EngineBuilds:
    """Builds one engine after the other, from `with` to the end of it; the child ends with it.

    Args:
        told: Called at each change, by the building thread.
        built: Called with the pack's name when an engine of it is ready.
        command: In place of our own child, in tests.
    """

    def __init__(
        self,
        told: Callable[[Sequence[BuildProgress]], None],
        built: Callable[[str], None],
        *,
        command: Sequence[str] = (sys.executable, "-m", "appliance.inference.engine_builds"),
    ) -> None:
        self._told = told
        self._built = built
        self._command = tuple(command)
        self._changed = threading.Condition()
        self._orders: list[BuildOrder] = []
        self._progress: dict[str, BuildProgress] = {}
        self._process: subprocess.Popen[str] | None = None
        self._closed = False

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run, name="engine-builds", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._closed = True
            if self._process is not None:
                self._process.kill()
            self._changed.notify_all()
        self._thread.join()

    @property
    def child(self) -> int | None:
        """The process that builds now, or None."""
        process = self._process
        return process.pid if process is not None else None

    def order(self, order: BuildOrder) -> None:
        """Have an engine built after those that were ordered before."""
        with self._changed:
            self._orders.append(order)
            self._changed.notify_all()
        self._say(BuildProgress(order.pack, order.engine.name, "waiting"))

    def order_all(self, orders: Iterable[BuildOrder]) -> None:
        """Have several engines built, in their order."""
        for each in orders:
            self.order(each)

    def progress(self) -> Sequence[BuildProgress]:
        """How far each build is."""
        with self._changed:
            return tuple(self._progress.values())

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._orders)
                if self._closed:
                    return
                order = self._orders.pop(0)
            self._build(order)

    def _build(self, order: BuildOrder) -> None:
        reason = ""
        for _ in range(ATTEMPTS):
            reason = self._attempt(order)
            if self._closed:
                return
            if not reason:
                self._say(BuildProgress(order.pack, order.engine.name, "built"))
                self._built(order.pack)
                return
        self._say(BuildProgress(order.pack, order.engine.name, "failed", reason=reason))

    def _attempt(self, order: BuildOrder) -> str:
        """Build once in a child; why it failed, or nothing."""
        with self._changed:
            if self._closed:
                return "The daemon is stopping."
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        reason = "It ended without a word."
        with self._process as process:
            with contextlib.suppress(BrokenPipeError):
                json.dump(_values(order), process.stdin)  # type: ignore[arg-type]
                process.stdin.close()  # type: ignore[union-attr]
            for line in process.stdout or ():
                reason = self._heard(order, line, reason)
        status = process.returncode
        with self._changed:
            self._process = None
        if status == 0 and _is_there(order.engine):
            return ""
        return f"The building process died of signal {-status}." if status < 0 else reason

    def _heard(self, order: BuildOrder, line: str, reason: str) -> str:
        try:
            said = json.loads(line)
        except ValueError:
            return reason
        if "reason" in said:
            return str(said["reason"])
        now = BuildProgress(order.pack, order.engine.name, "building")
        self._say(replace(now, phase=str(said["phase"]), step=int(said["step"]), steps=int(said["steps"])))
        return reason

    def _say(self, progress: BuildProgress) -> None:
        with self._changed:
            self._progress[progress.engine] = progress
        self._told(self.progress())


def main() -> int:
    """Build what standard input orders, at the lowest priority."""
    with contextlib.suppress(OSError):  # the unit's filter of system calls leaves priorities to the service manager
        os.nice(LOWEST)
    order = json.load(sys.stdin)
    plan = BuildPlan(**{**order["plan"], "compute_capabilities": tuple(order["plan"]["compute_capabilities"])})

    def told(phase: str, step: int, steps: int) -> bool:
        sys.stdout.write(json.dumps({"phase": phase, "step": step, "steps": steps}) + "\n")
        sys.stdout.flush()
        return True

    try:
        build_engine(Path(order["graph"]).read_bytes(), Path(order["engine"]), plan, progress=told)
    except (EngineFileError, OSError) as error:
        sys.stdout.write(json.dumps({"reason": str(error)}) + "\n")
        return 1
    return 0


def _values(order: BuildOrder) -> dict[str, Any]:
    return {"graph": str(order.graph), "engine": str(order.engine), "plan": asdict(order.plan)}


def _is_there(engine: Path) -> bool:
    try:
        engine_metadata(engine)
    except EngineFileError:
        return False
    return engine.is_file()


if __name__ == "__main__":
    sys.exit(main())
