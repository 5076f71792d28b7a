"""The threads that compute: each takes batches from the queue, runs them, and tells each caller the outcome once.

One more thread keeps the deadlines of those who wait, however long the lanes are taken.
"""

import math
import threading
import time
from collections.abc import Callable, Hashable, Sequence

from appliance.domain.errors import DeadlineError, InferenceUnavailableError
from appliance.inference.scheduler import Ask, Batching, BatchQueue, Place, QueueLimits
from appliance.telemetry import logger_for

Outcome = Callable[[Ask, BaseException | None], None]
Work = Callable[[Sequence[Ask]], None]

_EXPIRED = "The deadline passed while the request waited."


class Lanes:
    """Run asks until `close`; each device that is asked for work gets as many threads as it has lanes.

    Args:
        limits: Of the queue.
        work: Runs one batch and tells every ask of it its outcome itself. Called by several threads where there are
            several lanes; no two batches that are under way together look at the same image for the same key.
        give_up: Tells an ask that it was not run, and why; also when `work` raised, after which some may know already.
        clock: Seconds; deadlines are on it.
    """

    def __init__(
        self,
        limits: QueueLimits,
        work: Work,
        give_up: Callable[[Ask, Exception], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._queue = BatchQueue(limits)
        self._most_waiting = limits.images
        self._work = work
        self._give_up = give_up
        self._clock = clock
        self._log = logger_for("inference")
        self._guard = threading.Lock()
        self._work_there = threading.Condition(self._guard)
        self._batch_done = threading.Condition(self._guard)
        self._deadline_nearer = threading.Condition(self._guard)
        self._under_way: list[Sequence[Ask]] = []
        self._closed = False
        self._threads: list[threading.Thread] = []
        self._opened: dict[str, int] = {}
        self._keeps_deadlines = False
        self._wakes_at = math.inf

    @property
    def clock(self) -> Callable[[], float]:
        """The clock that deadlines are on."""
        return self._clock

    @property
    def most_waiting_images(self) -> int:
        """Images that may wait."""
        return self._most_waiting

    @property
    def waiting_images(self) -> int:
        """Images that wait."""
        return self._queue.images

    def submit(self, ask: Ask) -> None:
        """Queue an ask.

        Raises:
            DeadlineError, OverloadedError: See `BatchQueue.put`.
            InferenceUnavailableError: The lanes are closed, or have no thread.
        """
        with self._guard:
            if self._closed:
                raise InferenceUnavailableError("The daemon is stopping.", "Ask again when it is back.")
            self._open_lanes(ask.place)  # first: what nobody could run does not wait
            if ask.deadline is not None:
                self._keep_deadline(ask.deadline)
            self._queue.put(ask, self._clock())
            self._work_there.notify()

    def cancel(self, ask: Ask) -> bool:
        """Take an ask out of the queue; its outcome is then never told. False when it runs or is done."""
        with self._guard:
            gone = self._queue.cancel(ask)
            if gone:
                self._work_there.notify()
                self._batch_done.notify_all()
            return gone

    def set_batching(self, key: Hashable, batching: Batching | None) -> None:
        """Say how asks of a key are put together; None forgets it."""
        with self._guard:
            self._queue.set_batching(key, batching)

    def drain(self, key: Hashable) -> None:
        """Return when no ask of this key waits or runs; nobody may submit one meanwhile."""
        with self._guard:
            self._batch_done.wait_for(lambda: not self._queue.holds(key) and not self._is_under_way(key))

    def forget(self, key: Hashable) -> None:
        """Drain a key, and forget how its asks are put together."""
        self.drain(key)
        self.set_batching(key, None)

    def close(self) -> None:
        """Run what waits, take nothing new, end the threads."""
        with self._guard:
            self._closed = True
            self._work_there.notify_all()
            self._deadline_nearer.notify()
        for thread in self._threads:  # no more of them are made
            if thread is not threading.current_thread():
                thread.join()

    def _open_lanes(self, place: Place) -> None:
        opened = self._opened.get(place.device, 0)
        while opened < place.lanes and self._started(self._run, f"lane-{place.device}-{opened}"):
            opened += 1
            self._opened[place.device] = opened
        if not opened:
            raise InferenceUnavailableError("The daemon can't start a thread that computes.", "Ask again later.")

    def _keep_deadline(self, deadline: float) -> None:
        if not self._keeps_deadlines:
            self._keeps_deadlines = self._started(self._keep_deadlines, "deadlines")
        if deadline < self._wakes_at:
            self._wakes_at = deadline
            self._deadline_nearer.notify()

    def _started(self, target: Callable[[], None], name: str) -> bool:
        """Whether a thread could be started; where not, the next ask tries again."""
        thread = threading.Thread(target=target, name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the system, or the unit's TasksMax, allows no more
            return False
        self._threads.append(thread)
        return True

    def _keep_deadlines(self) -> None:
        """Sleep until the nearest deadline, also where it is that of an ask that was answered meanwhile.

        So under traffic it wakes once in the time that clients give, not for each of their asks.
        """
        while True:
            with self._guard:
                now = self._clock()
                if self._closed and not len(self._queue):
                    return
                expired = self._queue.expire(now) if self._wakes_at <= now else ()
                if not expired:
                    if self._wakes_at <= now:
                        seconds = self._queue.deadline_in(now)
                        self._wakes_at = math.inf if seconds is None else now + seconds
                    self._deadline_nearer.wait(_waitable(self._wakes_at - now))
                    continue
            self._tell_expired(expired)
            with self._guard:
                self._work_there.notify_all()
                self._batch_done.notify_all()
            # Sleeping, it must not keep their images alive.
            del expired

    def _tell_expired(self, expired: Sequence[Ask]) -> None:
        for ask in expired:
            self._tell(ask, DeadlineError(_EXPIRED, "Give it more time, or ask when less waits."))

    def _tell(self, ask: Ask, error: Exception) -> None:
        """Give an ask up; one that can't be told costs neither the others their word nor the thread its life."""
        try:
            self._give_up(ask, error)
        except Exception:  # noqa: BLE001 - the top of a thread's loop: whoever else waits is told, the thread goes on
            self._log.exception("an ask can't be told that it was given up", reason=str(error))

    def _is_under_way(self, key: Hashable) -> bool:
        return any(ask.key == key for batch in self._under_way for ask in batch)

    def _run_batch(self, batch: Sequence[Ask]) -> None:
        try:
            self._work(batch)
        except Exception as error:  # noqa: BLE001 - the top of a lane's loop: those who wait are told, the lane goes on
            for ask in batch:
                self._tell(ask, error)

    def _run(self) -> None:
        while True:
            with self._guard:
                taken = self._queue.take(self._clock(), self._under_way)
                if not taken.batch and not taken.expired:
                    if self._closed and not len(self._queue):
                        self._work_there.notify_all()
                        self._deadline_nearer.notify()
                        return
                    self._work_there.wait(_waitable(taken.again_in))
                    continue
                if taken.batch:
                    self._under_way.append(taken.batch)
            try:
                self._tell_expired(taken.expired)
                if taken.batch:
                    self._run_batch(taken.batch)
            finally:
                self._leave(taken.batch)
            # An idle lane must not keep the last batch's images alive.
            del taken

    def _leave(self, batch: Sequence[Ask]) -> None:
        """A batch is no longer under way, and those who wait for that are woken."""
        with self._guard:
            if batch:
                self._under_way = [each for each in self._under_way if each is not batch]
                if self._queue.images:  # what waited for this batch's images may be work for several lanes
                    self._work_there.notify_all()
            self._batch_done.notify_all()


def _waitable(seconds: float | None) -> float | None:
    """A client may give thousands of years; a thread can't wait for so long."""
    return None if seconds is None else min(seconds, threading.TIMEOUT_MAX)
