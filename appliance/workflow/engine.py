"""Durable work on DBOS: every study and every delivery is a workflow that survives the death of the process.

Workflow `study:<token>:<revision>` runs analyse, report, hand-over; `dlv:<token>:<revision>:<destination>:<n>` is the
n-th attempt at one destination, on a queue of that destination's own. Steps run at least once. A long wait is never a
sleeping thread: the workflow ends and its next turn, `study:<token>:<revision>:<turn>`, is enqueued with a delay.
"""

from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import ExitStack, contextmanager
from dataclasses import astuple, dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dbos import DBOS, DBOSClient, DBOSConfig, DBOSPortableJSONSerializer
from dbos import error as dbos_error

from appliance.domain.errors import StorageError, TransitionError
from appliance.domain.ports import Transaction
from appliance.telemetry import logger_for
from appliance.workflow.database import join_logs, open_engine, refuse_pickles, storage_errors
from appliance.workflow.leftovers import Leftovers
from appliance.workflow.names import DELIVERY, MAX_FAULTS, STUDIES, STUDY, options_of, queue_of
from appliance.workflow.steps import Next, StudySteps

APPLICATION = "insite"
APPLICATION_VERSION = "1"
"""Constant: work begun by one release is ended by the next; a change to the order of steps goes behind `DBOS.patch`."""
EXECUTOR = "worker"
"""Fixed: a restarted worker takes up what it had begun."""
MAX_RECOVERIES = 10
"""How often the process may die over one workflow before that workflow counts as the cause."""
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 30.0
LONGEST_DELIVERY_PAUSE_SECONDS = 3600.0
CLOSE_SECONDS = 5
"""How long a clean stop waits for running steps; what is left is resumed at the next start."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast work is taken up.

    Attributes:
        poll_seconds: Between two looks at a queue.
        concurrency: Studies worked on at the same time, and deliveries to one destination.
        delivery_retry_seconds: Before the second attempt at a destination; doubled after each, up to an hour.
    """

    poll_seconds: float
    concurrency: int
    delivery_retry_seconds: float


@dataclass(frozen=True, slots=True)
class Work:
    """A revision in work, as the arguments of its workflows begin."""

    token: str
    revision: int


class StudyWorkflows:
    """Runs `steps` durably from `with` to the end of it; one per process, because DBOS is.

    Args:
        file: The ledger's SQLite database, which exists.
        destinations: Names of all destinations, each of which gets a queue of its own.
    """

    def __init__(self, file: Path, steps: StudySteps, destinations: tuple[str, ...], pace: Pace) -> None:
        self._steps = steps
        self._destinations = destinations
        self._pace = pace
        self._log = logger_for("workflow")
        self._running: set[str] = set()
        self._leftovers = Leftovers(steps, self._running)
        self._database = open_engine(file)
        self._client = DBOSClient(
            system_database_engine=self._database,
            serializer=DBOSPortableJSONSerializer(),
            application_name=APPLICATION,
            lazy=True,
        )

    def __enter__(self) -> Self:
        join_logs()
        refuse_pickles()
        config: DBOSConfig = {
            "name": APPLICATION,
            "application_version": APPLICATION_VERSION,
            "executor_id": EXECUTOR,
            "system_database_engine": self._database,
            "serializer": DBOSPortableJSONSerializer(),
            "enable_otlp": False,
            "log_level": "WARNING",
        }
        with ExitStack() as stack, storage_errors():
            stack.callback(self._close)
            DBOS(config=config)
            self._register()
            DBOS.launch()
            for queue in (STUDIES, *map(queue_of, self._destinations)):
                DBOS.register_queue(
                    queue,
                    worker_concurrency=self._pace.concurrency,
                    polling_interval_sec=self._pace.poll_seconds,
                    on_conflict="always_update",
                )
            stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def enqueue(self, within: Transaction, token: str, revision: int) -> None:
        """Put a revision to work, at the commit of a transaction on the ledger.

        Raises:
            TransitionError: An earlier revision of the study is still in work; ask again later.
            StorageError: The database does not take it; ask again later.
        """
        options = options_of(STUDY, STUDIES, f"study:{token}:{revision}")
        options["deduplication_id"] = token
        with storage_errors():
            try:
                self._client.enqueue_in_transaction(within.connection, options, token, revision, 0, 0)
            except dbos_error.DBOSQueueDeduplicatedError as error:
                raise TransitionError("An earlier revision of this study is still in work.") from error

    def tend(self) -> int:
        """Look after work that nobody does any more; to be called now and then.

        Work over which the process died again and again ends, and the ledger is told. Work that the engine itself
        dropped (a full disk, a lost database) is begun once more, a few times; its steps look at the ledger first.

        Returns:
            How many workflows were ended or begun again.

        Raises:
            StorageError: The database or the ledger does not answer.
        """
        return self._leftovers.tend()

    def forget(self, before: datetime) -> int:
        """Delete the engine's rows of work that ended before a time; the ledger keeps the truth.

        Returns:
            How many workflows were deleted.

        Raises:
            StorageError: The database does not answer.
        """
        return self._leftovers.forget(before)

    @property
    def unfinished(self) -> AbstractSet[str]:
        """Identifiers of the work whose threads still run; after a close they run on without a database."""
        return frozenset(self._running)

    def _close(self) -> None:
        DBOS.destroy(destroy_registry=True, workflow_completion_timeout_sec=CLOSE_SECONDS)
        self._client.destroy()
        self._database.dispose()

    def _register(self) -> None:
        @DBOS.workflow(name=STUDY, max_recovery_attempts=MAX_RECOVERIES)
        def study(token: str, revision: int, turn: int, faults: int) -> None:
            with self._noted():
                self._study(Work(token, revision), turn, faults)

        @DBOS.workflow(name=DELIVERY, max_recovery_attempts=MAX_RECOVERIES)
        def delivery(token: str, revision: int, destination: str, attempt: int, faults: int) -> None:
            with self._noted():
                self._delivery(Work(token, revision), destination, attempt, faults)

    @contextmanager
    def _noted(self) -> Iterator[None]:
        identifier = str(DBOS.workflow_id)
        self._running.add(identifier)
        try:
            yield
        finally:
            self._running.discard(identifier)

    def _study(self, work: Work, turn: int, faults: int) -> None:
        for name, step in (("analyse", self._steps.analyse), ("report", self._steps.report)):
            said, fault = self._run(name, partial(_said, step, work.token, work.revision))
            if fault or said == Next.LATER.value:
                self._study_again(work, turn, faults, fault)
                return
            if said == Next.STOP.value:
                return
        due, fault = self._run("hand over", partial(self._steps.hand_over, work.token, work.revision))
        if fault or due == Next.LATER.value:
            self._study_again(work, turn, faults, fault)
            return
        for destination in due:
            self._attempt(work, destination, 1, 0)

    def _study_again(self, work: Work, turn: int, faults: int, fault: str) -> None:
        faults += bool(fault)
        if faults >= MAX_FAULTS:
            DBOS.run_step({"name": "fail"}, self._steps.fail, work.token, work.revision, fault)
            return
        options = options_of(STUDY, STUDIES, f"study:{work.token}:{work.revision}:{turn + 1}")
        options["delay_seconds"] = _doubled(FIRST_PAUSE_SECONDS, turn, LONGEST_PAUSE_SECONDS)
        DBOS.enqueue_workflow_with_options(options, *astuple(work), turn + 1, faults)

    def _delivery(self, work: Work, destination: str, attempt: int, faults: int) -> None:
        step = partial(_said, self._steps.deliver, work.token, work.revision, destination, attempt)
        said, fault = self._run("deliver", step)
        faults += bool(fault)
        if faults >= MAX_FAULTS:
            DBOS.run_step({"name": "abandon"}, self._steps.abandon, work.token, work.revision, destination, fault)
        elif fault or said == Next.LATER.value:
            self._attempt(work, destination, attempt + 1, faults)

    def _attempt(self, work: Work, destination: str, attempt: int, faults: int) -> None:
        options = options_of(
            DELIVERY, queue_of(destination), f"dlv:{work.token}:{work.revision}:{destination}:{attempt}"
        )
        if attempt > 1:
            first = self._pace.delivery_retry_seconds
            options["delay_seconds"] = _doubled(first, attempt - 2, LONGEST_DELIVERY_PAUSE_SECONDS)
        DBOS.enqueue_workflow_with_options(options, *astuple(work), destination, attempt, faults)

    def _run(self, name: str, step: Callable[[], Any]) -> tuple[Any, str]:
        """A step's answer, kept by the engine so that a resumed workflow does not ask again, or how it ended.

        A ledger or a disk that does not answer now is no fault of the study: it is asked again later.
        """

        def answer() -> tuple[Any, str]:
            try:
                return step(), ""
            except StorageError as error:
                self._log.warning("step waits", step=name, workflow=DBOS.workflow_id, error=str(error))
                return Next.LATER.value, ""
            except Exception as error:  # noqa: BLE001 - the top of the work: counted, told in the ledger, tried again
                self._log.exception("step ended unexpectedly", step=name, workflow=DBOS.workflow_id)
                return None, f"The step `{name}` ended unexpectedly ({type(error).__name__}); the log says more."

        said, fault = DBOS.run_step({"name": name}, answer)
        return said, fault


def _said(step: Callable[..., Next], *arguments: Any) -> str:
    return step(*arguments).value


def _doubled(first: float, times: int, longest: float) -> float:
    """The pause after `times` earlier ones, each twice as long as the one before; `times` may be large."""
    return min(longest, first * 2.0 ** min(times, 60))
