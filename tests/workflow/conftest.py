"""A database file, as the ledger leaves it."""

from pathlib import Path

import pytest


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A database file that exists."""
    file = tmp_path / "ledger.db"
    file.touch(mode=0o600)
    return file
