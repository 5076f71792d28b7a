"""What the inference daemon says of its packs, read from the file that it leaves for the other daemons."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.admin.words import PACK_WORDS, Word
from appliance.domain.findings import ModelProvenance
from appliance.domain.manifest import Validation


@dataclass(frozen=True, slots=True)
class Caution:
    """What must be said wherever results of a pack appear: a label for a list, a sentence for a page."""

    label: str
    sentence: str


_CAUTIONS = {
    Validation.UNTRAINED.value: Caution("untrained", "untrained: its figures mean nothing"),
    Validation.SYNTHETIC.value: Caution("synthetic", "synthetic: made for tests, its figures mean nothing"),
    Validation.RESEARCH_ONLY.value: Caution("research only", "research only: not validated for patients"),
}
_UNKNOWN = Caution("validation unknown", "validation unknown")
_GONE = Caution("validation unknown", "validation unknown: this pack is no longer installed")
ENGINES = "engines.json"
_KEYS = ("name", "title", "release", "version", "digest", "validation", "precision", "state", "reason")


@dataclass(frozen=True, slots=True)
class PackLine:
    """One installed pack: identity, how far it was validated, whether it serves, and why not.

    Attributes:
        caution: None for a validated pack.
    """

    name: str
    title: str
    release: str
    version: str
    digest: str
    validation: str
    precision: str
    state: str
    reason: str
    caution: Caution | None

    @property
    def word(self) -> Word:
        """The state for reading."""
        return PACK_WORDS.get(self.state, Word(self.state or "Unknown", "?", "busy"))


@dataclass(frozen=True, slots=True)
class PackList:
    """The installed packs; `problem` says why there is no list."""

    packs: Sequence[PackLine]
    problem: str = ""

    def caution_of(self, made_by: ModelProvenance) -> Caution | None:
        """What must be said beside a result of this model; a pack that is gone has an unknown validation."""
        for line in self.packs:
            if line.name == made_by.pack and line.digest == made_by.pack_digest:
                return line.caution
        return _GONE


def read_packs(file: Path) -> PackList:
    """Read the list; a missing or broken file is a problem to show, not an error."""
    try:
        listed = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return PackList((), "The inference daemon has not said yet which packs it serves.")
    except (OSError, ValueError):
        return PackList((), "The list of packs can't be read. The log of the inference daemon says more.")
    if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
        return PackList((), "The list of packs is not of the expected form.")
    return PackList([_line(entry) for entry in listed])


@dataclass(frozen=True, slots=True)
class EngineLine:
    """An engine that is being built for this machine's GPU, or was: how far it is, or why it failed."""

    pack: str
    engine: str
    state: str
    far: str
    reason: str


def read_engines(packs_file: Path) -> Sequence[EngineLine]:
    """How far engines are; nothing where none was ever built, or the list can't be read: it is never in the way.

    Args:
        packs_file: The list of packs; the daemon keeps the other list beside it.
    """
    try:
        listed = json.loads(packs_file.with_name(ENGINES).read_text(encoding="utf-8"))
        return [_engine(entry) for entry in listed]
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return []


def _engine(entry: dict[str, Any]) -> EngineLine:
    step, steps = int(entry["step"]), int(entry["steps"])
    far = f"{entry['phase']}: {step} of {steps}" if steps else ""
    return EngineLine(str(entry["pack"]), str(entry["engine"]), str(entry["state"]), far, str(entry["reason"]))


def _line(entry: dict[str, Any]) -> PackLine:
    word = {key: "" if entry.get(key) is None else str(entry[key]) for key in _KEYS}
    validated = word["validation"] == Validation.VALIDATED.value
    return PackLine(**word, caution=None if validated else _CAUTIONS.get(word["validation"], _UNKNOWN))
