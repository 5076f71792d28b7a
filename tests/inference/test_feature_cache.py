"""The feature cache: one computation per image, also when several ask at once."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from appliance.inference.feature_cache import FeatureCache, Features


def features(value: float) -> Features:
    """Something to remember."""
    return {"embedding": np.array([value], np.float32)}


def test_the_first_who_asks_computes_and_the_others_wait() -> None:
    """Eight threads that ask for one image cause one computation."""
    cache = FeatureCache(2)
    begun, go = threading.Event(), threading.Event()
    calls = []

    def compute() -> Features:
        calls.append(1)
        begun.set()
        go.wait(10)
        return features(1)

    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(cache.get, "image", compute)
        begun.wait(10)
        others = [pool.submit(cache.get, "image", compute) for _ in range(7)]
        go.set()
        assert all(other.result() is first.result() for other in others)
    assert len(calls) == 1


def test_a_failure_reaches_all_and_is_not_remembered() -> None:
    """Who waited for a failed computation fails with it; who asks next starts anew."""
    cache = FeatureCache(2)
    begun, go = threading.Event(), threading.Event()

    def fail() -> Features:
        begun.set()
        go.wait(10)
        raise ValueError("broken")

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.get, "image", fail)
        begun.wait(10)
        waiting = pool.submit(cache.get, "image", lambda: features(2))
        go.set()
        for asked in (first, waiting):
            error = asked.exception(10)
            assert error is None or str(error) == "broken"
        assert first.exception(10) is not None
    assert cache.get("image", lambda: features(3)) is not None


def test_the_oldest_is_forgotten_first() -> None:
    """Beyond its capacity the cache forgets what was not asked for longest."""
    cache = FeatureCache(2)
    for key in ("a", "b", "a", "c"):
        cache.get(key, lambda: features(1))
    computed: list[str] = []

    def ask(key: str) -> None:
        cache.get(key, lambda: computed.append(key) or features(1))

    ask("a")
    ask("c")
    ask("b")
    assert computed == ["b"]


def test_an_image_forgotten_while_it_is_computed_still_gets_its_answer() -> None:
    """A failing computation that was already pushed out harms nobody else's entry."""
    cache = FeatureCache(1)

    def fail() -> Features:
        cache.get("b", lambda: features(2))
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        cache.get("a", fail)
    assert cache.get("b", lambda: features(3))["embedding"][0] == 2
