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
        return self.activated(self.previous)

    def shadowed(self, release: int | None) -> "Selected":
        """With a release in shadow, or none.

        Raises:
            PackError: It is the active one: it can't be compared with itself.
        """
        if release is not None and release == self.active:
            raise PackError(
                f"Release {release} is the active one: it can't run in its own shadow.",
                "Name another release, or activate another one first.",
            )
        return replace(self, shadow=release)


def read_selection(packs: Path) -> Mapping[str, Selected]:
    """The selection among the packs of a folder; empty where there is none.

    Raises:
        PackError: The file is damaged.
    """
    file = packs / FILE
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        return {str(name): _selected(each) for name, each in values.items()}
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
    """Releases of one pack in the order in which they are tried.

    Where one was chosen, only that one and the one that served before: an installation activates nothing, not even
    when the chosen release fails. Where none was chosen, the newest first. What runs in shadow is never tried.
    """
    by_release = {pack.manifest.release: pack for pack in packs if pack.manifest.release != selected.shadow}
    if selected.active is None:
        return [by_release[release] for release in sorted(by_release, reverse=True)]
    chosen = dict.fromkeys((selected.active, selected.previous))
    return [by_release[release] for release in chosen if release in by_release]


def _selected(values: Mapping[str, object]) -> Selected:
    selected = Selected(**{key: _release(values[key]) for key in values})
    # What serves is not its own shadow, whoever wrote the file.
    return replace(selected, shadow=None) if selected.shadow == selected.active else selected


def _release(value: object) -> int | None:
    if value is not None and type(value) is not int:
        raise TypeError(f"{value!r} is no release")
    return value
