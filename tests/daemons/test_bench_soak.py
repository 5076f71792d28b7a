"""What counts as growth: a trend over rounds, not where two looks happened to fall."""

import numpy as np
import pytest

from appliance.daemons.bench_soak import MOST_ROUNDS, WARM_UP_ROUNDS, growth_of


def test_noise_without_a_trend_is_no_growth() -> None:
    """Looks that move by five percent up and down, after a warm-up that filled caches."""
    rng = np.random.default_rng(7)
    looks = [100.0] * WARM_UP_ROUNDS + [rng.uniform(240, 264) for _ in range(MOST_ROUNDS - WARM_UP_ROUNDS)]
    assert abs(growth_of(looks)) < 0.03


def test_a_leak_is_growth_however_much_it_trembles() -> None:
    """One MiB a round, under the same noise, is seen."""
    rng = np.random.default_rng(7)
    assert growth_of([250 + number + rng.uniform(-12, 12) for number in range(MOST_ROUNDS)]) == pytest.approx(
        0.08, abs=0.03
    )
