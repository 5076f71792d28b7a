"""UIDs of one study's results: derived from what they say and what they were made of."""

from dataclasses import dataclass

from appliance.domain.findings import StudyAnalysis
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
    """The naming of an analysis: its sources with their content, its tasks with their packs."""
    sources = tuple((source.sop_instance_uid, source.content_sha256) for source in analysis.sources)
    models = tuple(
        f"{outcome.pack}.{outcome.task}={analysis.pack_digests.get(outcome.pack, '')}" for outcome in analysis.outcomes
    )
    return Naming(profile, sources, models)
