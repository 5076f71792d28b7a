"""Which release of each pack an administrator chose to serve, which was served before, and which runs in shadow.

The file lies among the installed packs. A pack that it does not name is served in its newest release.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from appliance.domain.errors import PackError
from appliance.domain.manifest import VerifiedPack

FILE = "selection.json"


@dataclass(frozen=True, slots=True)
class Selected:
    """Releases of one pack; None where there is none."""

    active: int | None = None
    previous: int | None = None
    shadow: int | None = None

    def activated(self, release: int) -> "Selected":
        """With another release active; the one before is remembered, for the way back."""
        if release == self.active:
            return self
        shadow = None if self.shadow == release else self.shadow
        return Selected(release, self.active, shadow)

    def rolled_back(self) -> "Selected":
        """With the release before active again.

        Raises:
            PackError: There is none.
        """
        if self.previous is None:
            raise PackError("No earlier release was active.", "Name one with `insite packs activate`.")
        return replace(self, active=self.previous, previous=self.active)


def read_selection(packs: Path) -> Mapping[str, Selected]:
    """The selection among the packs of a folder; empty where there is none.

    Raises:
        PackError: The file is damaged.
    """
    file = packs / FILE
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        return {str(name): Selected(**{key: _release(each[key]) for key in each}) for name, each in values.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise PackError(f"{file} can't be read: {error}.", "Remove it: the newest releases are served then.") from error


def write_selection(packs: Path, selection: Mapping[str, Selected]) -> None:
    """Replace the selection in one move."""
    draft = packs / f".{FILE}.{os.getpid()}"
    with draft.open("w", encoding="utf-8") as stream:
        json.dump({name: asdict(each) for name, each in sorted(selection.items())}, stream, indent=2)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())
    draft.chmod(0o644)
    draft.replace(packs / FILE)


def in_order(packs: Sequence[VerifiedPack], selected: Selected) -> Sequence[VerifiedPack]:
    """Releases of one pack in the order in which they are tried: active, previous, then the newest first.

    A release that runs in shadow is never tried.
    """

    def rank(pack: VerifiedPack) -> tuple[int, int]:
        release = pack.manifest.release
        first = 0 if release == selected.active else 1 if release == selected.previous else 2
        return first, -release

    return sorted((pack for pack in packs if pack.manifest.release != selected.shadow), key=rank)


def _release(value: object) -> int | None:
    if value is not None and type(value) is not int:
        raise TypeError(f"{value!r} is no release")
    return value
