"""A node on a free port in front of a sink in memory."""

from collections.abc import Iterator

import pytest

from appliance.domain.ports import Destination
from appliance.network.scp import StoreServer
from appliance.settings import NodeSettings
from tests.fakes.sink import MemorySink

LOCAL = NodeSettings(bind="127.0.0.1", port=0)


@pytest.fixture
def sink() -> MemorySink:
    """Where the node puts what it receives."""
    return MemorySink()


@pytest.fixture
def server(sink: MemorySink) -> Iterator[StoreServer]:
    """A running node."""
    with StoreServer(LOCAL, sink) as running:
        yield running


@pytest.fixture
def node(server: StoreServer) -> Destination:
    """The running node as a sender knows it."""
    return Destination("node", "INSITE", "127.0.0.1", server.port)
