"""The list pages through many studies and says when it did not look at all of them."""

from datetime import timedelta
from pathlib import Path

import pytest

from appliance.admin import listing
from appliance.admin.listing import ROWS_PER_PAGE, listing_of, query_from_arguments
from appliance.admin.packs_list import PackList
from appliance.domain.ports import StoredInstance
from tests.fakes.memory_ledger import MemoryLedger
from tests.fakes.scene import BEGINNING, instance

NO_PACKS = PackList(())


@pytest.fixture
def many() -> MemoryLedger:
    """A ledger of 120 studies, one a minute."""
    ledger = MemoryLedger()
    for number in range(120):
        made = instance(number, f"PATIENT^{number:03}")
        ledger.add_instance(
            StoredInstance(made, Path("/absent"), BEGINNING + timedelta(minutes=number), "CR1", own_result=False)
        )
    return ledger


@pytest.mark.parametrize("arguments", [{}, {"text": "patient"}, {"state": "receiving"}])
def test_pages_follow_each_other_without_gaps(many: MemoryLedger, arguments: dict[str, str]) -> None:
    """Newest first, fifty a page, every study on exactly one page; filtered or not."""
    pages = [
        listing_of(many, NO_PACKS, query_from_arguments({**arguments, "page": str(number)})) for number in (1, 2, 3, 4)
    ]
    names = [row.record.patient_name for page in pages for row in page.rows]
    assert names == [f"PATIENT^{number:03}" for number in range(119, -1, -1)]
    assert [len(page.rows) for page in pages] == [ROWS_PER_PAGE, ROWS_PER_PAGE, 20, 0]
    assert [page.more for page in pages] == [True, True, False, False]
    assert not any(page.cut_off for page in pages)


def test_a_search_stops_at_the_newest_studies_and_says_so(many: MemoryLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A filter over very many studies looks through the newest and says that it did."""
    monkeypatch.setattr(listing, "SEARCHED", 100)
    found = listing_of(many, NO_PACKS, query_from_arguments({"text": "^005"}))
    assert not found.rows
    assert found.cut_off


@pytest.mark.parametrize(("page", "number"), [("3", 3), ("0", 1), ("-1", 1), ("x", 1), ("٣", 1), ("999999999999", 1)])
def test_an_odd_page_number_is_the_first_page(page: str, number: int) -> None:
    """Whatever stands in the address, the list answers."""
    assert query_from_arguments({"page": page}).page == number
