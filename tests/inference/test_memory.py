"""What was freed goes back to the system, so that packs may come and go for years."""

import numpy as np
import psutil

from appliance.inference.memory import give_back, use_few_arenas


def test_freed_memory_goes_back() -> None:
    """After many small pieces were freed the process is smaller again."""
    use_few_arenas()
    pieces = [np.ones(8192, np.uint8) for _ in range(20_000)]
    full = psutil.Process().memory_info().rss
    del pieces
    give_back()
    assert psutil.Process().memory_info().rss < full - (100 << 20)
