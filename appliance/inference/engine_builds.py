"""Builds engines in a child process at the lowest priority, while ONNX Runtime serves, and tells how far it is.

`python -m appliance.inference.engine_builds` is the child: a plan as JSON on standard input, progress as JSON lines on
standard output. However it ends, a half-built engine is never seen: the file appears whole or not at all.
"""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from appliance.domain.errors import EngineFileError
from appliance.inference.engine_build import BuildPlan, build_engine
from appliance.inference.engine_file import clear_drafts, engine_metadata
from appliance.telemetry import logger_for

LOWEST = 19
"""nice(2): whatever serves comes first."""
ATTEMPTS = 2
"""A build that fails twice in one life of the daemon is left alone: ONNX Runtime serves."""
BUILD_SECONDS = 3600.0
"""A build takes seconds; one that hangs must not hold up the others for ever. An hour leaves room for a model a hundred
times the size of ours, on a machine whose processors everybody else has first."""
EASIEST_TO_KILL = 1000
"""proc(5), oom_score_adj: when the unit's memory runs out it is the builder that ends, not the daemon."""
_PR_SET_PDEATHSIG = 1
_OUR_FAULT = "The daemon failed; its log says why."


@dataclass(frozen=True, slots=True)
class BuildOrder:
    """A graph on disk, the engine to make of it, and how.

    Attributes:
        pack: Whose it is; told when its last engine is done.
        is_good: Whether the engine is there and fits. Asked before a build, which is left out then, and after it.
            Without it every order is built, and a description beside the engine is enough.
    """

    pack: str
    graph: Path
    engine: Path
    plan: BuildPlan
    is_good: Callable[[], bool] | None = field(default=None, compare=False)


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
        told: Called at each change, by one thread at a time.
        built: Called with the pack's name when the last of its engines that were ordered is done, and any is new.
        command: In place of our own child, in tests.
        seconds: How long a child may build.
    """

    def __init__(
        self,
        told: Callable[[Sequence[BuildProgress]], None],
        built: Callable[[str], None],
        *,
        command: Sequence[str] = (sys.executable, "-m", "appliance.inference.engine_builds"),
        seconds: float = BUILD_SECONDS,
    ) -> None:
        self._told = told
        self._built = built
        self._command = tuple(command)
        self._seconds = seconds
        self._log = logger_for("inference")
        self._changed = threading.Condition()
        self._telling = threading.Lock()
        self._orders: list[BuildOrder] = []
        self._under_way: BuildOrder | None = None
        self._failed: set[Path] = set()
        self._new: set[str] = set()
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
        """Have an engine built after those that were ordered before.

        Nothing happens when this is ordered already, or the engine failed its attempts.
        """
        with self._telling:  # so that it is told to wait before it is told to be built
            with self._changed:
                if order in self._orders or order == self._under_way or order.engine in self._failed:
                    return
                self._orders.append(order)
                self._progress[order.engine.name] = BuildProgress(order.pack, order.engine.name, "waiting")
                self._changed.notify_all()
            self._tell()

    def order_all(self, orders: Iterable[BuildOrder]) -> None:
        """Have several engines built, in their order."""
        for each in orders:
            self.order(each)

    def progress(self) -> Sequence[BuildProgress]:
        """How far each build is."""
        with self._changed:
            return tuple(self._progress.values())

    def _run(self) -> None:
        while (order := self._next()) is not None:
            for part in (self._build, self._hand_over):
                try:
                    part(order)
                except Exception:  # noqa: BLE001 - the top of the thread's loop: the next order must not wait for ever
                    self._log.exception("building engines failed", pack=order.pack, engine=order.engine.name)

    def _next(self) -> BuildOrder | None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._orders)
            if self._closed:
                return None
            self._under_way = self._orders.pop(0)
            return self._under_way

    def _build(self, order: BuildOrder) -> None:
        reason = _OUR_FAULT
        try:
            reason = self._made(order)
        finally:
            with self._changed:
                self._under_way = None
                if reason:
                    self._failed.add(order.engine)
                else:
                    self._new.add(order.pack)
            if not self._closed:
                state = "failed" if reason else "built"
                self._say(BuildProgress(order.pack, order.engine.name, state, reason=reason))

    def _hand_over(self, order: BuildOrder) -> None:
        """Tell the pack of its new engines, once: each time it is told it is replayed whole."""
        with self._changed:
            waits = any(each.pack == order.pack for each in self._orders)
            if self._closed or waits or order.pack not in self._new:
                return
            self._new.remove(order.pack)
        self._built(order.pack)

    def _made(self, order: BuildOrder) -> str:
        """Build, unless another order did meanwhile; why every attempt failed, or nothing."""
        if order.engine in self._failed:
            return self._progress[order.engine.name].reason or _OUR_FAULT
        if order.is_good is not None and order.is_good():
            return ""
        reason = ""
        for _ in range(ATTEMPTS):
            reason = self._attempt(order)
            if self._closed or not reason:
                break
        return reason

    def _attempt(self, order: BuildOrder) -> str:
        """Build once in a child; why it failed, or nothing."""
        with self._changed:
            if self._closed:
                return "The daemon is stopping."
            try:
                self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                    self._command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                    errors="replace",
                )
            except OSError as error:
                return f"The building process can't be started: {error}."
        process = self._process
        reason = "It ended without a word."
        out_of_time = threading.Event()

        def end() -> None:
            out_of_time.set()
            process.kill()

        late = threading.Timer(self._seconds, end)
        try:
            with process, _killed_on_error(process):
                late.start()
                with contextlib.suppress(BrokenPipeError):
                    json.dump(_values(order), process.stdin)  # type: ignore[arg-type]
                    process.stdin.close()  # type: ignore[union-attr]
                for line in process.stdout or ():
                    reason = self._heard(order, line, reason)
        finally:
            late.cancel()
            with self._changed:
                self._process = None
            clear_drafts(order.engine.parent, process.pid)
        if out_of_time.is_set() and process.returncode < 0:
            return f"It was not done after {self._seconds:g} s."
        return _ending(order, process.returncode, reason)

    def _heard(self, order: BuildOrder, line: str, reason: str) -> str:
        try:
            said = json.loads(line)
            if "reason" in said:
                return str(said["reason"])
            if "in_the_way" in said:
                self._log.warning("a builder is in the way of others", reason=str(said["in_the_way"]))
                return reason
            phase, step, steps = str(said["phase"]), int(said["step"]), int(said["steps"])
        except (ValueError, TypeError, KeyError):  # a word of the library's own
            return reason
        now = BuildProgress(order.pack, order.engine.name, "building")
        self._say(replace(now, phase=phase, step=step, steps=steps))
        return reason

    def _say(self, progress: BuildProgress) -> None:
        with self._telling:
            with self._changed:
                self._progress[progress.engine] = progress
            self._tell()

    def _tell(self) -> None:
        try:
            self._told(self.progress())
        except OSError as error:  # a full disk stops no build
            self._log.error("the progress of builds can't be written", reason=str(error))


@contextlib.contextmanager
def _killed_on_error(process: "subprocess.Popen[str]") -> Iterator[None]:
    """Whatever goes wrong here, nobody waits for the child, and it builds for nobody."""
    try:
        yield
    except BaseException:
        process.kill()
        raise


def main() -> int:
    """Build what standard input orders, at the lowest priority, for as long as the daemon lives."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    for step_back in (_come_last, _die_first):
        try:
            step_back()
        except OSError as error:  # a sandbox may forbid it: better a build that is in the way than none
            _say(in_the_way=f"{step_back.__name__[1:]}: {error}")
    order = json.load(sys.stdin)
    if os.getppid() != order["daemon"]:  # it was gone before we asked to be told
        return 1
    plan = BuildPlan(**{**order["plan"], "compute_capabilities": tuple(order["plan"]["compute_capabilities"])})

    def told(phase: str, step: int, steps: int) -> bool:
        _say(phase=phase, step=step, steps=steps)
        return True

    try:
        build_engine(Path(order["graph"]).read_bytes(), Path(order["engine"]), plan, progress=told)
    except (EngineFileError, OSError) as error:
        _say(reason=str(error))
        return 1
    return 0


def _say(**words: object) -> None:
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()


def _come_last() -> None:
    os.nice(LOWEST)


def _die_first() -> None:
    Path("/proc/self/oom_score_adj").write_text(str(EASIEST_TO_KILL), encoding="ascii")


def _values(order: BuildOrder) -> dict[str, Any]:
    return {"graph": str(order.graph), "engine": str(order.engine), "plan": asdict(order.plan), "daemon": os.getpid()}


def _ending(order: BuildOrder, status: int, reason: str) -> str:
    """Why a build that ended with a status failed, or nothing."""
    if status < 0:
        return f"The building process died of signal {-status}."
    if status > 0:
        return reason
    if order.is_good is not None and not order.is_good():
        return "It was built, and does not fit this machine."
    return "" if _is_there(order.engine) else reason


def _is_there(engine: Path) -> bool:
    try:
        engine_metadata(engine)
    except EngineFileError:
        return False
    return engine.is_file()


if __name__ == "__main__":
    sys.exit(main())
