"""An encoder's outputs for a batch of images, and the last images' rows of them by content digest."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock

from appliance.inference.tensors import Array, Tensor, host_array


@dataclass(frozen=True, eq=False, slots=True)
class FeatureRow:
    """One image's features: a row of what one run of the encoder gave, on the device or on the host."""

    tensors: Mapping[str, Tensor]
    row: int

    def host(self, name: str) -> Array:
        """One feature of this image on the host, [1, …]."""
        return host_array(self.tensors[name])[self.row : self.row + 1]


class EmbeddingCache:
    """Remembers the features of the images that were looked at last; several threads may use it.

    A row keeps the whole run that it came from alive, so the memory held is at most `capacity` runs.

    Args:
        capacity: Images.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._rows: OrderedDict[str, FeatureRow] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, digest: str) -> FeatureRow | None:
        """The features of the image of this digest, if they are remembered."""
        with self._lock:
            row = self._rows.get(digest)
            if row is not None:
                self._rows.move_to_end(digest)
            return row

    def put(self, digest: str, row: FeatureRow) -> None:
        """Remember an image's features; the one that was not asked for longest is forgotten."""
        with self._lock:
            self._rows[digest] = row
            self._rows.move_to_end(digest)
            while len(self._rows) > self._capacity:
                self._rows.popitem(last=False)

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._rows.clear()
