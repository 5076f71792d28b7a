"""What a pack is made of decides what it may claim."""

import pytest

from appliance.domain.errors import SettingsError
from appliance.domain.manifest import Validation
from export.sources import SOURCES, Source, notice, refuse_claim

RESEARCH = Source("Some teacher", "CC BY-NC 4.0", "Somebody", "Teacher.", research_only=True)


def test_a_research_only_source_forbids_the_claim_to_be_validated() -> None:
    """A teacher or data set for research only is named when the recipe claims more than research."""
    with pytest.raises(SettingsError, match="Some teacher is for research only"):
        refuse_claim(Validation.VALIDATED, (*SOURCES, RESEARCH))
    refuse_claim(Validation.RESEARCH_ONLY, (*SOURCES, RESEARCH))


def test_the_default_pack_may_claim_what_it_claims() -> None:
    """Nothing that the default pack is made of bars its use."""
    refuse_claim(Validation.VALIDATED, SOURCES)


def test_the_notice_credits_every_source() -> None:
    """Name, maker and licence of each source stand in NOTICE."""
    text = notice((*SOURCES, RESEARCH))
    for source in (*SOURCES, RESEARCH):
        assert source.name in text
        assert source.origin in text
        assert source.licence in text
    assert text.count("For research only.") == 1
