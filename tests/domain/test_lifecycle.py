"""The life of a study revision is the table, nothing more."""

import itertools

import pytest

from appliance.domain.errors import TransitionError
from appliance.domain.lifecycle import OPEN_STATES, STUDY_TABLE, StudyEvent, StudyState, next_state


@pytest.mark.parametrize(("state", "event"), list(itertools.product(StudyState, StudyEvent)))
def test_every_pair_of_state_and_event_is_in_the_table_or_an_error(state: StudyState, event: StudyEvent) -> None:
    """An event that the table does not know in a state is refused by name, never guessed."""
    if (state, event) in STUDY_TABLE:
        assert next_state(state, event) is STUDY_TABLE[state, event]
    else:
        with pytest.raises(TransitionError, match=event.value):
            next_state(state, event)


def test_every_state_can_be_reached_and_every_open_state_can_end() -> None:
    """From receiving, each state is reachable, and from each open state there is a way to an end."""
    reach = {state: {after for (before, _), after in STUDY_TABLE.items() if before is state} for state in StudyState}

    def reachable(start: StudyState) -> set[StudyState]:
        seen, waiting = set(), [start]
        while waiting:
            state = waiting.pop()
            if state not in seen:
                seen.add(state)
                waiting.extend(reach[state])
        return seen

    assert reachable(StudyState.RECEIVING) == set(StudyState)
    for state in OPEN_STATES:
        assert reachable(state) - OPEN_STATES


def test_a_step_repeated_after_a_crash_changes_nothing() -> None:
    """The event that a resumed step repeats leaves the state where that step had brought it."""
    for event in (StudyEvent.STARTED, StudyEvent.ANALYSED, StudyEvent.REPORTED, StudyEvent.DELIVERED):
        after = {state for (_, seen), state in STUDY_TABLE.items() if seen is event}
        assert all(next_state(state, event) is state for state in after)
