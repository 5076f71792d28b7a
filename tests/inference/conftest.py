"""The tiny pack, opened once for this room's tests."""

import pytest

from appliance.domain.manifest import VerifiedPack
from tests.fakes.tiny_pack import tiny_verified


@pytest.fixture(scope="session")
def pack(tmp_path_factory: pytest.TempPathFactory) -> VerifiedPack:
    """A verified pack; no test may change its files."""
    return tiny_verified(tmp_path_factory.mktemp("packs"))
