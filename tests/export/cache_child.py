"""Caches what a counting teacher says of numbered pictures; killed and started again by the test."""

import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from appliance.domain.manifest import InputSpec
from export.feature_cache import Caching, Views, cache_features
from export.images import ImageSet
from export.progress import Silent
from export.teachers.contract import Seen, Teacher

PICTURES = 160


class Counting(Teacher):
    """Notes the number of each picture, which is its grey level, and takes its time."""

    def __init__(self, log: Path, pause: float) -> None:
        super().__init__()
        self.log = log
        self.pause = pause

    def see(self, images: Tensor) -> Seen:
        """Features are the picture's number."""
        numbers = images[:, 0, 0, 0].float()
        with self.log.open("a") as stream:
            stream.writelines(f"{int(number)}\n" for number in numbers)
        time.sleep(self.pause)
        return Seen(numbers.view(-1, 1, 1, 1).expand(-1, 4, 2, 2), numbers.view(-1, 1).expand(-1, 4))


def numbered_views() -> Views:
    """Pictures 0 to 159, each of one grey level."""
    images = np.repeat(np.arange(PICTURES, dtype=np.uint8), 64).reshape(PICTURES, 8, 8)
    data = ImageSet((), images, np.zeros((0, 4, 4), np.uint8), ())
    return Views(data, range(PICTURES), 1, InputSpec("image", 8, 8, 0.5, 99.5), seed=0)


def main() -> None:
    """Cache into a folder, noting in a log."""
    torch.set_num_threads(1)
    folder, log = Path(sys.argv[1]), Path(sys.argv[2])
    plan = Caching(folder, grid=2, batch=8)
    cache_features("counting", lambda: Counting(log, 0.05), numbered_views(), plan, Silent())


if __name__ == "__main__":
    main()
