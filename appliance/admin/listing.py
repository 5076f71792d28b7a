"""The list of studies: filtered by state and words, one page at a time, with what the tasks said in short."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from appliance.admin.packs_list import PackList
from appliance.admin.words import STUDY_WORDS, TASK_WORDS, Word, flags, person
from appliance.domain.findings import StudyAnalysis, TaskOutcome, TaskState
from appliance.domain.lifecycle import StudyState
from appliance.domain.ports import Ledger, StudyRecord

ROWS_PER_PAGE = 50
SEARCHED = 5000
"""Newest studies that a filter looks through: weeks to months of a community hospital; it takes under a second."""
_BATCH = 500


@dataclass(frozen=True, slots=True)
class Query:
    """What somebody asks of the list; an unknown state or page counts as none."""

    state: StudyState | None
    text: str
    page: int

    @property
    def arguments(self) -> dict[str, str]:
        """The same as arguments of an address, without the page."""
        given = {"state": self.state.value if self.state else "", "text": self.text}
        return {key: value for key, value in given.items() if value}


@dataclass(frozen=True, slots=True)
class Chip:
    """One thing that the tasks said: its words, sign and tone."""

    text: str
    sign: str
    tone: str


@dataclass(frozen=True, slots=True)
class Row:
    """One study of the list."""

    record: StudyRecord
    name: str
    word: Word
    chips: tuple[Chip, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Listing:
    """One page of the list.

    Attributes:
        more: Whether there is a next page.
        cut_off: Whether the filter stopped at the newest `SEARCHED` studies.
    """

    rows: Sequence[Row]
    more: bool
    cut_off: bool


def query_from_arguments(arguments: Mapping[str, str]) -> Query:
    """Read what stands in the address."""
    state = next((state for state in StudyState if state.value == arguments.get("state", "")), None)
    page = arguments.get("page", "1")
    number = int(page) if page.isascii() and page.isdecimal() and len(page) < 6 else 1  # noqa: PLR2004 - five digits
    return Query(state, arguments.get("text", "").strip()[:100], max(1, number))


def listing_of(ledger: Ledger, packs: PackList, query: Query) -> Listing:
    """The page that was asked for, newest studies first."""
    first = (query.page - 1) * ROWS_PER_PAGE
    if not query.arguments:
        records = list(ledger.studies(ROWS_PER_PAGE + 1, first))
        cut_off = False
    else:
        looked_at = list(itertools.islice(_newest(ledger), SEARCHED + 1))
        cut_off = len(looked_at) > SEARCHED
        found = [record for record in looked_at[:SEARCHED] if _fits(record, query)]
        records = found[first : first + ROWS_PER_PAGE + 1]
    rows = [_row(ledger, packs, record) for record in records[:ROWS_PER_PAGE]]
    return Listing(rows, len(records) > ROWS_PER_PAGE, cut_off)


def _newest(ledger: Ledger) -> Iterator[StudyRecord]:
    for offset in itertools.count(0, _BATCH):
        batch = ledger.studies(_BATCH, offset)
        yield from batch
        if len(batch) < _BATCH:
            return


def _fits(record: StudyRecord, query: Query) -> bool:
    if query.state is not None and record.state is not query.state:
        return False
    text = " ".join(
        (
            record.key.study_uid,
            record.key.patient_id,
            record.patient_name,
            person(record.patient_name),
            record.description,
        )
    ).casefold()
    return all(word in text for word in query.text.casefold().split())


def _row(ledger: Ledger, packs: PackList, record: StudyRecord) -> Row:
    analysis = ledger.analysis(record.token, record.revision)
    return Row(
        record,
        person(record.patient_name),
        STUDY_WORDS[record.state],
        chips_of(analysis, packs) if analysis else (),
        record.reason or _shared_reason(analysis),
    )


def chips_of(analysis: StudyAnalysis, packs: PackList) -> tuple[Chip, ...]:
    """Positive findings with their scores, how many tasks ran, were refused and failed, and what to beware of."""
    positive = [
        Chip(f"{outcome.finding.meaning} {outcome.score:.2f}", "▲", "flag")
        for outcome in analysis.outcomes
        if flags(outcome) and outcome.score is not None
    ]
    cautions = {packs.caution_of(outcome.provenance) for outcome in analysis.outcomes if outcome.provenance}
    labels = sorted({caution.label for caution in cautions if caution})
    return (
        *positive,
        *(_count(analysis.outcomes, state) for state in TaskState if _of(analysis.outcomes, state)),
        *(Chip(label, "!", "bad") for label in labels),
    )


def _count(outcomes: Sequence[TaskOutcome], state: TaskState) -> Chip:
    word = TASK_WORDS[state]
    return Chip(f"{len(_of(outcomes, state))} {word.text.lower()}", word.sign, word.tone)


def _of(outcomes: Sequence[TaskOutcome], state: TaskState) -> list[TaskOutcome]:
    return [outcome for outcome in outcomes if outcome.state is state]


def _shared_reason(analysis: StudyAnalysis | None) -> str:
    """The first task's reason where nothing ran: usually all tasks refuse for the same one."""
    if analysis is None or not analysis.outcomes or _of(analysis.outcomes, TaskState.RAN):
        return ""
    return analysis.outcomes[0].reason
