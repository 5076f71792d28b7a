"""Only a pack that is both installed and served speaks for a study."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from appliance.domain.errors import InferenceUnavailableError
from appliance.domain.instance import StudyKey
from appliance.domain.manifest import PackManifest
from appliance.domain.ports import ServedModel
from appliance.pipeline.planned import PlannedPacks
from tests.fakes.chain import DIGEST, ScriptedModels, agreeable, pack

KEY = StudyKey("1.1", "P1", "")


class Shelf:
    """Installed packs that can be exchanged; counts how often they are read."""

    def __init__(self, *packs: PackManifest) -> None:
        self.packs = packs
        self.read = 0

    def __call__(self) -> Sequence[PackManifest]:
        """Read them."""
        self.read += 1
        return self.packs


def digests(packs: PlannedPacks) -> dict[str, str]:
    """Which packs would speak now."""
    return dict(packs.analyser().analyse(KEY, 1, []).pack_digests)


def test_packs_are_read_once_while_nothing_changes() -> None:
    """Installed packs are verified at first use, and not for every study."""
    shelf = Shelf(pack())
    planned = PlannedPacks(agreeable(), shelf, 16)
    assert digests(planned) == digests(planned) == {"chest": DIGEST}
    assert shelf.read == 1


def test_an_installed_pack_that_is_not_served_is_not_silent() -> None:
    """A pack that the daemon refused still stands in every result; an older release of a served pack does not."""
    older = replace(pack(digest="8" * 64), release=0)
    shelf = Shelf(older, pack(), pack(name="refused", digest="9" * 64))
    assert digests(PlannedPacks(agreeable(), shelf, 16)) == {"chest": DIGEST, "refused": "9" * 64}


def test_an_exchanged_pack_is_read_again() -> None:
    """When the daemon serves a new pack, the installed ones are read again and the new one speaks."""
    models, shelf = agreeable(), Shelf(pack())
    planned = PlannedPacks(models, shelf, 16)
    planned.analyser()
    models.manifest = pack(digest="7" * 64)
    with pytest.raises(InferenceUnavailableError, match="another version"):
        planned.analyser()
    shelf.packs = (pack(digest="7" * 64),)
    assert digests(planned) == {"chest": "7" * 64}


class Empty(ScriptedModels):
    """A daemon that serves nothing."""

    def served(self) -> Sequence[ServedModel]:
        """As the Protocol says."""
        return []


def test_a_daemon_that_serves_nothing_is_waited_for() -> None:
    """Without a served pack there is nothing to say about a study yet."""
    with pytest.raises(InferenceUnavailableError, match="no model pack"):
        PlannedPacks(Empty({}), Shelf(pack()), 16).analyser()
