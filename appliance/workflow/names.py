"""How work is called in the engine's database: workflows, queues, identifiers."""

from dbos import EnqueueOptions

STUDY, DELIVERY = "study", "delivery"
STUDIES = "studies"
MAX_FAULTS = 3
"""How often a step may end unexpectedly before its study ends as failed."""


def queue_of(destination: str) -> str:
    """Each destination has a queue of its own, so that one that is away holds up no other."""
    return f"deliver-{destination}"


def options_of(workflow: str, queue: str, identifier: str) -> EnqueueOptions:
    """How to put a workflow into a queue; an identifier that is known already changes nothing."""
    return {"workflow_name": workflow, "queue_name": queue, "workflow_id": identifier}
