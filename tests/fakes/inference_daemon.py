"""The inference daemon in a thread of the test's own process, on settings of a site that trusts given packs."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance.daemons.inference import run
from appliance.inference.client import OipClient
from appliance.settings import Settings, load
from tests.fakes.tiny_pack import TinyPack


def settings_for(state: Path, *packs: TinyPack, allow_unvalidated: bool = True) -> Settings:
    """Settings of a site that trusts the keys of these packs."""
    keys = sorted({str(pack.keys.public) for pack in packs})
    return load(
        None,
        {
            "state": str(state),
            "inference": {"threads": 1},
            "packs": {"folder": str(state / "packs"), "trusted_keys": keys, "allow_unvalidated": allow_unvalidated},
        },
    ).settings


@contextmanager
def running(settings: Settings) -> Iterator[OipClient]:
    """The daemon in a thread of this process, ready, and a client of it; stopped at the end."""
    stop, ready, failed = threading.Event(), threading.Event(), []

    def daemon() -> None:
        try:
            run(settings, stop, ready.set)
        except Exception as error:  # noqa: BLE001 - raised again in the test's own thread
            failed.append(error)
            ready.set()

    thread = threading.Thread(target=daemon)
    thread.start()
    try:
        assert ready.wait(60)
        if failed:
            raise failed[0]
        with OipClient(f"unix://{settings.inference_socket}", 10) as client:
            yield client
    finally:
        stop.set()
        thread.join(60)
    assert not thread.is_alive()
