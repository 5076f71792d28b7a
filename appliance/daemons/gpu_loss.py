"""Moves packs away from a GPU that failed while it served them: once each, in the background."""

import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from appliance.domain.errors import EngineFileError
from appliance.domain.gpu import GpuState
from appliance.inference.sound_gpu import check_sound
from appliance.telemetry import logger_for


class GpuLoss:
    """Listens from `with` to the end of it.

    Args:
        gpu: Its state; None when it does not answer.
        refresh: Chooses anew how a pack is served.
    """

    def __init__(self, gpu: Callable[[], GpuState | None], refresh: Callable[[str], None]) -> None:
        self._gpu = gpu
        self._refresh = refresh
        self._log = logger_for("inference")
        self._failed: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._moved: set[str] = set()

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
        while (pack := self._failed.get()) is not None:
            if pack in self._moved:
                continue
            try:
                check_sound(self._gpu())
            except EngineFileError as error:
                self._moved.add(pack)
                self._log.error("the GPU is lost", pack=pack, reason=str(error))
                self._move(pack)

    def _move(self, pack: str) -> None:
        try:
            self._refresh(pack)
        except Exception:  # noqa: BLE001 - the top of the thread's loop: the next pack must not wait for ever
            self._log.exception("serving a pack without the GPU failed", pack=pack)
