"""One thread per device: takes batches from the queue, runs them, and tells each caller the outcome exactly once."""

import threading
import time
from collections.abc import Callable, Hashable, Sequence

from appliance.domain.errors import DeadlineError, InferenceUnavailableError
from appliance.inference.scheduler import Ask, Batching, BatchQueue, QueueLimits

Outcome = Callable[[Ask, BaseException | None], None]
Work = Callable[[Sequence[Ask]], None]

_EXPIRED = "The deadline passed while the request waited."


class Lane:
    """Runs asks from construction until `close`.

    Args:
        limits: Of the queue.
        work: Runs one batch and tells every ask of it its outcome itself. Called by the lane's thread only.
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
        self._work = work
        self._give_up = give_up
        self._clock = clock
        self._changed = threading.Condition()
        self._running: frozenset[Hashable] = frozenset()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="lane", daemon=True)
        self._thread.start()

    @property
    def clock(self) -> Callable[[], float]:
        """The clock that deadlines are on."""
        return self._clock

    @property
    def waiting_images(self) -> int:
        """Images that wait."""
        return self._queue.images

    def submit(self, ask: Ask) -> None:
        """Queue an ask.

        Raises:
            DeadlineError, OverloadedError: See `BatchQueue.put`.
            InferenceUnavailableError: The lane is closed.
        """
        with self._changed:
            if self._closed:
                raise InferenceUnavailableError("The daemon is stopping.", "Ask again when it is back.")
            self._queue.put(ask, self._clock())
            self._changed.notify_all()

    def cancel(self, ask: Ask) -> bool:
        """Take an ask out of the queue; its outcome is then never told. False when it runs or is done."""
        with self._changed:
            gone = self._queue.cancel(ask)
            if gone:
                self._changed.notify_all()
            return gone

    def set_batching(self, key: Hashable, batching: Batching | None) -> None:
        """Say how asks of a key are put together; None forgets it."""
        with self._changed:
            self._queue.set_batching(key, batching)

    def drain(self, key: Hashable) -> None:
        """Return when no ask of this key waits or runs; nobody may submit one meanwhile."""
        with self._changed:
            self._changed.wait_for(lambda: not self._queue.holds(key) and key not in self._running)

    def close(self) -> None:
        """Run what waits, take nothing new, end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _run_batch(self, batch: Sequence[Ask]) -> None:
        try:
            self._work(batch)
        except Exception as error:  # noqa: BLE001 - the top of the lane's loop: those who wait are told, the lane goes on
            for ask in batch:
                self._give_up(ask, error)

    def _run(self) -> None:
        while True:
            with self._changed:
                taken = self._queue.take(self._clock())
                if not taken.batch and not taken.expired:
                    if self._closed and not len(self._queue):
                        return
                    self._changed.wait(taken.again_in)
                    continue
                self._running = frozenset(ask.key for ask in taken.batch)
            for ask in taken.expired:
                self._give_up(ask, DeadlineError(_EXPIRED, "Give it more time, or ask when less waits."))
            if taken.batch:
                self._run_batch(taken.batch)
            with self._changed:
                self._running = frozenset()
                self._changed.notify_all()
            # An idle lane must not keep the last batch's images alive.
            del taken
