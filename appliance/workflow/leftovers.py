"""Work that nobody does any more: given up by the engine, dropped by it, or long done."""

from collections.abc import Set as AbstractSet
from datetime import datetime
from typing import Any

from dbos import DBOS, WorkflowStatus

from appliance.telemetry import logger_for
from appliance.workflow.database import storage_errors
from appliance.workflow.names import DELIVERY, MAX_FAULTS, STUDIES, STUDY, options_of, queue_of
from appliance.workflow.steps import StudySteps

DIED = "The worker ended again and again while working on this; the log says more."
FORGET_AT_ONCE = 1000


class Leftovers:
    """Looks after the rows of the launched engine.

    Args:
        running: Identifiers of the workflows that a thread of this process runs, kept up to date by the engine.
    """

    def __init__(self, steps: StudySteps, running: AbstractSet[str]) -> None:
        self._steps = steps
        self._running = running
        self._idle: set[str] = set()
        self._log = logger_for("workflow")

    def tend(self) -> int:
        """See `StudyWorkflows.tend`."""
        with storage_errors():
            return self._end_dropped() + self._resume_idle()

    def forget(self, before: datetime) -> int:
        """See `StudyWorkflows.forget`."""
        forgotten = 0
        with storage_errors():
            while ended := _listed(status="SUCCESS", completed_before=before.isoformat(), limit=FORGET_AT_ONCE):
                DBOS.delete_workflows([workflow.workflow_id for workflow in ended])
                forgotten += len(ended)
        return forgotten

    def _end_dropped(self) -> int:
        given_up = ["MAX_RECOVERY_ATTEMPTS_EXCEEDED", "ERROR", "CANCELLED"]
        ended = DBOS.list_workflows(name=[STUDY, DELIVERY], status=given_up, load_output=False)
        for workflow in ended:
            self._log.error("work dropped", workflow=workflow.workflow_id, status=workflow.status)
            *arguments, faults = workflow.input["args"] if workflow.input else (0,)
            if workflow.status == "ERROR" and faults + 1 < MAX_FAULTS:
                queue = STUDIES if workflow.name == STUDY else queue_of(arguments[2])
                options = options_of(workflow.name, queue, f"{workflow.workflow_id}+")
                DBOS.enqueue_workflow_with_options(options, *arguments, faults + 1)
            elif workflow.name == STUDY:
                self._steps.fail(arguments[0], arguments[1], DIED)
            else:
                self._steps.abandon(arguments[0], arguments[1], arguments[2], DIED)
            DBOS.delete_workflow(workflow.workflow_id)
        return len(ended)

    def _resume_idle(self) -> int:
        """Begin again what the database calls running and no thread of ours runs, at two looks in a row."""
        idle = {workflow.workflow_id for workflow in _listed(status="PENDING")} - self._running
        dropped = idle & self._idle
        for identifier in dropped:
            self._log.error("work was dropped; it is begun again", workflow=identifier)
            DBOS.resume_workflow(identifier)
        self._idle = idle - dropped
        return len(dropped)


def _listed(**which: Any) -> list[WorkflowStatus]:
    return DBOS.list_workflows(name=[STUDY, DELIVERY], load_input=False, load_output=False, **which)
