"""Remembers the last images' features and computes each only once, also when several tasks ask at the same time."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future

from appliance.inference.tensors import Array

Features = Mapping[str, Array]


class FeatureCache:
    """A least-recently-used cache whose entries may still be under way.

    Args:
        capacity: How many images' features are kept.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, Future[Features]] = OrderedDict()

    def get(self, key: str, compute: Callable[[], Features]) -> Features:
        """The features under a key, computed by the first who asks; whoever asks meanwhile waits for it.

        A failure reaches everyone who waited, and is not remembered.
        """
        with self._lock:
            known = self._entries.get(key)
            if known is not None:
                self._entries.move_to_end(key)
            else:
                mine: Future[Features] = Future()
                self._entries[key] = mine
                while len(self._entries) > self._capacity:
                    self._entries.popitem(last=False)
        if known is not None:
            return known.result()
        try:
            mine.set_result(compute())
        except BaseException as error:
            with self._lock:
                if self._entries.get(key) is mine:
                    del self._entries[key]
            mine.set_exception(error)
            raise
        return mine.result()
