"""What tests of several daemons begin with."""

import socket
from pathlib import Path

import pytest

from tests.fakes.tiny_pack import TinyPack, tiny_pack


@pytest.fixture
def free_port() -> int:
    """A port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture
def pack(tmp_path: Path) -> TinyPack:
    """A small signed pack in the test's folder `packs`."""
    return tiny_pack(tmp_path / "packs")
