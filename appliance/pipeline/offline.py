"""Studies out of files and folders: the same grouping and identity rules as the node, without daemons."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from appliance.domain.device import made_here
from appliance.domain.errors import UnreadableFileError
from appliance.domain.instance import Instance, StudyKey, key_of
from appliance.domain.ports import StoredInstance
from appliance.imaging.header import read_instance

OWN_RESULT = "A result of an Insite appliance: never analysed."


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A file that was left out, and why."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class Gathered:
    """What files and folders hold: images by study, in order of first sight, and what was left out."""

    studies: dict[StudyKey, list[StoredInstance]]
    unreadable: list[Unreadable]


def gather(paths: Sequence[Path]) -> Gathered:
    """Read every file once, group by study, keep identities apart.

    The same SOP instance twice counts once; the same SOP Instance UID with other content, or under another study or
    patient, is left out with its reason: the first one read stays, files being read in order of their names.
    """
    gathered = Gathered({}, [])
    known: dict[str, Instance] = {}
    for path in _files(paths, gathered.unreadable):
        try:
            instance = read_instance(path)
        except UnreadableFileError as error:
            gathered.unreadable.append(Unreadable(path, str(error)))
            continue
        first = known.setdefault(instance.identity.sop_instance_uid, instance)
        if first is not instance:
            if first.identity != instance.identity or key_of(first) != key_of(instance):
                gathered.unreadable.append(Unreadable(path, _conflict(instance)))
            continue
        if made_here(instance):
            gathered.unreadable.append(Unreadable(path, OWN_RESULT))
            continue
        stored = StoredInstance(instance, path, datetime.now(UTC), calling_ae="", own_result=False)
        gathered.studies.setdefault(key_of(instance), []).append(stored)
    for images in gathered.studies.values():
        images.sort(key=lambda stored: stored.instance.identity.sop_instance_uid)
    return gathered


def _conflict(instance: Instance) -> str:
    return f"SOP Instance UID {instance.identity.sop_instance_uid} was read before with other content or identity."


def _files(paths: Iterable[Path], unreadable: list[Unreadable]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(file for file in path.rglob("*") if file.is_file())
        elif path.is_file():
            yield path
        else:
            unreadable.append(Unreadable(path, "No such file or folder."))
