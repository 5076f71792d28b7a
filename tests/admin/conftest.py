"""The site that every test of this room looks at."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.site import Scene, scene_in


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """A site over one study of every kind."""
    with scene_in(tmp_path) as made:
        yield made
