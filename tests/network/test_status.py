"""Which status answers which error."""

import pytest

from appliance.domain import errors
from appliance.network.status import answer_for, is_permanent, is_taken


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.StorageFullError("Jane Doe"), 0xA700),
        (errors.DataSetMismatchError("Jane Doe"), 0xA900),
        (errors.IdentityConflictError("Jane Doe"), 0x0111),
        (errors.UnreadableFileError("Jane Doe"), 0xC000),
        (errors.StorageError("Jane Doe"), 0x0110),
        (KeyError("Jane Doe"), 0x0110),
    ],
)
def test_every_error_has_its_status(error: Exception, status: int) -> None:
    """A sender learns from the status whether to try again, and from a short comment why."""
    answer = answer_for(error)
    assert answer.status == status
    assert 0 < len(answer.comment) <= 64
    assert "Jane Doe" not in answer.comment


@pytest.mark.parametrize(
    ("status", "taken", "permanent"),
    [
        (0x0000, True, False),
        (0xB000, True, False),
        (0xB006, True, False),
        (0xB007, True, False),
        (0x0111, True, False),
        (0x0110, False, False),
        (0xA700, False, False),
        (0x0122, False, True),
        (0xA900, False, True),
        (0xC123, False, True),
    ],
)
def test_a_peers_status_says_what_to_do_next(status: int, taken: bool, permanent: bool) -> None:  # noqa: FBT001 - a table
    """Success, warnings and "known before" end a delivery; what can't get better is not tried again."""
    assert (is_taken(status), is_permanent(status)) == (taken, permanent)
