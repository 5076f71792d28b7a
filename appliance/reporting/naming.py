"""UIDs of one study's results: derived from what they say and what they were made of."""

import hashlib
from dataclasses import dataclass

import numpy as np

from appliance.domain.findings import StudyAnalysis, TaskOutcome
from appliance.domain.identifiers import uid_from_content


@dataclass(frozen=True, slots=True)
class Naming:
    """Names every object that is made of one analysis for one encoding profile."""

    profile: str
    sources: tuple[tuple[str, str], ...]
    models: tuple[str, ...]

    def uid(self, kind: str) -> str:
        """The UID of the object, series or tracked finding called `kind`."""
        return uid_from_content(kind, self.profile, self.sources, self.models)


def naming_of(analysis: StudyAnalysis, profile: str) -> Naming:
    """The naming of an analysis: its sources with their content, its tasks with their packs and how they ended.

    A study whose task failed and ran when it was retried has two reports: the second must not pass for the first,
    which the archive already holds.
    """
    sources = tuple((source.sop_instance_uid, source.content_sha256) for source in analysis.sources)
    models = tuple(
        f"{outcome.pack}.{outcome.task}={analysis.pack_digests.get(outcome.pack, '')}|{_ending(outcome)}"
        for outcome in analysis.outcomes
    )
    return Naming(profile, sources, models)


def _ending(outcome: TaskOutcome) -> str:
    """What a task said, so that a report which says something else is another object."""
    point = outcome.operating_point
    said = (
        outcome.state.value,
        "" if outcome.refusal is None else outcome.refusal.code.value,
        "" if outcome.provenance is None else outcome.provenance.precision,
        "" if outcome.image is None else outcome.image.sop_instance_uid,
        "" if outcome.score is None else f"{outcome.score:.4f}",
        "" if point is None else f"{point.threshold:.4f}",
        "" if outcome.mask is None else hashlib.sha256(np.packbits(outcome.mask.pixels).tobytes()).hexdigest(),
    )
    return "|".join(said)
