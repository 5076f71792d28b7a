"""Moves packs away from a GPU that failed while it served them, in the background, until none of them is on it."""

import queue
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from appliance.domain.errors import EngineFileError
from appliance.domain.gpu import GpuState
from appliance.inference.sound_gpu import check_sound
from appliance.telemetry import logger_for

FIRST_PAUSE = 10.0
"""Seconds after a move that failed until it is tried again; twice as many after each further one."""
LONGEST_PAUSE = 600.0


class GpuLoss:
    """Listens from `with` to the end of it.

    Args:
        gpu: Its state; None when it does not answer.
        move: Chooses anew how a pack is served.
        on_device: Whether a pack, or its shadow, is computed on the GPU: one that is not has nothing to lose.
        pause: Seconds until the second try.
    """

    def __init__(
        self,
        gpu: Callable[[], GpuState | None],
        move: Callable[[str], None],
        on_device: Callable[[str], bool],
        *,
        pause: float = FIRST_PAUSE,
    ) -> None:
        self._gpu = gpu
        self._move = move
        self._on_device = on_device
        self._pause = pause
        self._log = logger_for("inference")
        self._failed: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._again_at: dict[str, float] = {}
        self._pauses: dict[str, float] = {}

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run, name="gpu-loss", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._failed.put(None)
        self._thread.join()

    def failed(self, pack: str) -> None:
        """Say that a run of a pack failed on a device; returns at once."""
        self._failed.put(pack)

    def _run(self) -> None:
        while True:
            again = min(self._again_at, key=self._again_at.__getitem__, default=None)
            seconds = None if again is None else max(0.0, self._again_at[again] - time.monotonic())
            try:
                pack = self._failed.get(timeout=seconds)
            except queue.Empty:
                pack = again
            else:
                if pack in self._again_at:  # its turn comes, however often it fails until then
                    continue
            if pack is None:
                return
            self._look_at(pack)

    def _look_at(self, pack: str) -> None:
        """Move a pack if the GPU is lost; one that is still on it then is looked at again after a while."""
        self._again_at.pop(pack, None)
        if self._is_lost(pack):
            self._try_move(pack)
            if self._on_device(pack):
                pause = self._pauses.get(pack, self._pause)
                self._pauses[pack] = min(2 * pause, LONGEST_PAUSE)
                self._again_at[pack] = time.monotonic() + pause
                return
        self._pauses.pop(pack, None)

    def _is_lost(self, pack: str) -> bool:
        if not self._on_device(pack):
            return False
        try:
            check_sound(self._gpu())
        except EngineFileError as error:
            self._log.error("the GPU is lost", pack=pack, reason=str(error))
            return True
        return False

    def _try_move(self, pack: str) -> None:
        try:
            self._move(pack)
        except Exception:  # noqa: BLE001 - the top of the thread's loop: the next pack must not wait for ever
            self._log.exception("serving a pack without the GPU failed", pack=pack)
