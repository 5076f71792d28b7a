"""How many files a daemon may open."""

import resource
from collections.abc import Iterator

import pytest

from appliance.daemons.descriptors import raise_descriptor_limit


@pytest.fixture
def most() -> Iterator[int]:
    """This process with a low limit of its own; what it might have."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, before[1]), before[1]))
    yield before[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_daemon_takes_what_its_unit_allows(most: int) -> None:
    """The limit that a process starts with is raised to the one that the administrator set."""
    assert raise_descriptor_limit() == most
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (most, most)
