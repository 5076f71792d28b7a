"""Complete studies are put to work, once."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from appliance.domain.errors import TransitionError
from appliance.domain.lifecycle import StudyState
from appliance.domain.ports import Transaction
from appliance.pipeline.assemble import Assembler
from appliance.pipeline.hold import Hold
from appliance.storage.ledger import SqlLedger
from tests.pipeline.conftest import NOON

QUIET = timedelta(seconds=20)


@dataclass
class Queue:
    """Takes what it gets, or says that it is busy."""

    busy: bool = False
    taken: list[tuple[str, int]] = field(default_factory=list)

    def enqueue(self, within: Transaction, token: str, revision: int) -> None:
        """As the Protocol says."""
        assert within.connection is not None
        if self.busy:
            raise TransitionError("busy")
        self.taken.append((token, revision))


def assembler(ledger: SqlLedger, queue: Queue, now: datetime, hold: Path = Path("/nowhere")) -> Assembler:
    """An assembler at a time that stands still."""
    return Assembler(ledger, queue, QUIET, lambda: now, Hold(hold, lambda: now))


def test_a_quiet_study_is_put_to_work_once(ledger: SqlLedger, arrive: Callable[..., str]) -> None:
    """A study is taken up when no image came for the quiet time, and then not again."""
    token = arrive()
    queue = Queue()
    assert assembler(ledger, queue, NOON + QUIET - timedelta(seconds=1)).sweep() == 0
    assert assembler(ledger, queue, NOON + QUIET).sweep() == 1
    assert assembler(ledger, queue, NOON + 2 * QUIET).sweep() == 0
    assert queue.taken == [(token, 1)]
    assert ledger.study(token).state is StudyState.QUEUED


def test_a_study_whose_earlier_revision_is_in_work_waits(ledger: SqlLedger, arrive: Callable[..., str]) -> None:
    """When work is refused the study stays as it is, and the next sweep asks again."""
    token = arrive()
    queue = Queue(busy=True)
    assert assembler(ledger, queue, NOON + QUIET).sweep() == 0
    assert ledger.study(token).state is StudyState.RECEIVING
    queue.busy = False
    assert assembler(ledger, queue, NOON + QUIET).sweep() == 1


def test_a_patients_study_waits_while_a_release_is_proved(
    ledger: SqlLedger, arrive: Callable[..., str], tmp_path: Path
) -> None:
    """With a proof under way a settled study stays where it is; after it, the next sweep takes it up."""
    arrive()
    proving = tmp_path / "proving"
    proving.touch()
    now = datetime.fromtimestamp(proving.stat().st_mtime, NOON.tzinfo)
    queue = Queue()
    assert assembler(ledger, queue, now, proving).sweep() == 0
    proving.unlink()
    assert assembler(ledger, queue, now, proving).sweep() == 1
