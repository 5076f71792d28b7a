"""Sessions end by log-out, by idleness and after a shift."""

from datetime import UTC, datetime, timedelta

from appliance.admin.sessions import LONGEST, Sessions

NOW = datetime(2024, 3, 1, 12, 0, tzinfo=UTC)
HALF = timedelta(minutes=15)


def test_a_click_keeps_a_session_open_and_a_refresh_does_not() -> None:
    """A page that refreshes itself on an unattended screen does not keep its user logged in."""
    sessions = Sessions(timedelta(minutes=30))
    clicked, watched = sessions.open("vera", NOW), sessions.open("walt", NOW)
    assert sessions.name_of(clicked, NOW + HALF, click=True) == "vera"
    assert sessions.name_of(watched, NOW + HALF, click=False) == "walt"
    assert sessions.name_of(clicked, NOW + 2 * HALF, click=True) == "vera"
    assert sessions.name_of(watched, NOW + 2 * HALF, click=True) is None


def test_a_session_ends_after_a_shift_however_busy() -> None:
    """After twelve hours everybody logs in again."""
    sessions = Sessions(timedelta(days=2))
    opened = sessions.open("vera", NOW)
    assert sessions.name_of(opened, NOW + LONGEST - HALF, click=True) == "vera"
    assert sessions.name_of(opened, NOW + LONGEST, click=True) is None


def test_closed_sessions_are_gone() -> None:
    """A log-out ends one session, a changed password all of the user's and nobody else's."""
    sessions = Sessions(timedelta(minutes=30))
    first, second, third, other = (sessions.open(name, NOW) for name in ("vera", "vera", "vera", "walt"))
    sessions.close(first)
    sessions.close("never opened")
    assert sessions.name_of(first, NOW, click=True) is None
    assert sessions.name_of(second, NOW, click=True) == "vera"
    sessions.close_all_of("vera")
    assert [sessions.name_of(each, NOW, click=True) for each in (second, third, other)] == [None, None, "walt"]


def test_ended_sessions_are_swept_away() -> None:
    """The list of sessions does not grow for ever."""
    sessions = Sessions(timedelta(minutes=30))
    for day in range(5):
        sessions.open("vera", NOW + timedelta(days=day))
    assert len(sessions._open) == 1
