"""`insite packs`: what is installed, and which release serves; a change is asked of the running daemon first.

The daemon verifies a release and replays its golden cases beside the one that serves. Only when they hold does the new
one take over, without a request lost; when they do not, the selection is put back as it was. The daemon is always this
machine's own: packs are chosen on the machine that serves them, also where the worker asks another (inference.server).
"""

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from appliance.daemons.pack_keeper import load_marks
from appliance.domain.errors import InferenceUnavailableError, InsiteError, PackError
from appliance.domain.manifest import VerifiedPack
from appliance.governance.installing import install_pack, prepare_folder, remove_pack
from appliance.governance.selection import Selected, in_order, read_selection, write_selection
from appliance.governance.serving import serve_best
from appliance.inference.client import OipClient, is_away
from appliance.inference.runner import PackRunner
from appliance.packs.open import PackProblem, installed_packs, open_pack
from appliance.settings import SHIPPED_PACKS, Settings

LOAD_SECONDS = 300.0

_Said = Mapping[tuple[str, int | None], Mapping[str, Any]]
"""What the daemon last wrote of each release, by pack and release."""


def list_packs(settings: Settings) -> Sequence[dict[str, Any]]:
    """Every installed release: name, release, digest, and the state with its reason, as `run/packs.json` has it."""
    folder = settings.packs_folder
    selection = read_selection(folder)
    found = _installed(settings)
    said = _said_by_daemon(settings)
    good: dict[str, set[int]] = {}
    for pack in found:
        if isinstance(pack, VerifiedPack):
            good.setdefault(pack.manifest.name, set()).add(pack.manifest.release)
    active = {name: _active(name, selection.get(name, Selected()), releases, said) for name, releases in good.items()}
    return [_line(each, selection, active, said) for each in found]


def verify(settings: Settings, folder: Path) -> VerifiedPack:
    """Check a pack wherever it lies, without installing it."""
    return open_pack(folder, settings.packs.trusted_keys, allow_unvalidated=settings.packs.allow_unvalidated)


def install(settings: Settings, source: Path) -> VerifiedPack:
    """Copy a pack among the installed ones, without serving it."""
    folder = _writable_folder(settings)
    keys = settings.packs.trusted_keys
    return install_pack(
        source,
        folder,
        keys,
        allow_unvalidated=settings.packs.allow_unvalidated,
        serving=lambda name: next(iter(_running(settings, name, "active")), None),
    )


def activate(settings: Settings, name: str, release: int) -> str:
    """Let a release serve, and say how it went; one that brought the daemon down before is tried again."""
    pack = _release(settings, name, release)
    load_marks(settings).lift(pack.manifest.digest)
    return _changed(
        settings, name, lambda selected: selected.activated(release), f"Release {release} of {name} serves."
    )


def shadow(settings: Settings, name: str, release: int | None) -> str:
    """Let a release answer beside the one that serves, unseen and compared; None ends it."""
    if release is not None:
        _release(settings, name, release)
    said = f"Nothing of {name} runs in shadow." if release is None else f"Release {release} of {name} runs in shadow."
    return _changed(settings, name, lambda selected: selected.shadowed(release), said)


def rollback(settings: Settings, name: str) -> str:
    """Let the release before serve again."""
    return _changed(settings, name, lambda selected: selected.rolled_back(), f"{name} is rolled back.")


def remove(settings: Settings, name: str, release: int) -> None:
    """Take a release out that neither serves, nor runs in shadow, nor is the way back."""
    serving = _running(settings, name, "active", "shadow")
    remove_pack(name, release, _writable_folder(settings), settings.packs.trusted_keys, serving=serving)


def _changed(settings: Settings, name: str, change: Callable[[Selected], Selected], done: str) -> str:
    folder = _writable_folder(settings)
    before = dict(read_selection(folder))
    chosen = before.get(name, Selected())
    if chosen.active is None:
        chosen = replace(chosen, active=_serving(settings, name, chosen))
    after = change(chosen)
    write_selection(folder, before | {name: after})
    try:
        return f"{done} {_told(settings, name, after)}"
    except InsiteError:
        write_selection(folder, before)
        # The daemon went on with what served; where it had to let go of it, this brings it back.
        with contextlib.suppress(InsiteError):
            _ask_daemon(settings, name)
        raise


def _told(settings: Settings, name: str, selected: Selected) -> str:
    """Have the running daemon do it; without one, replay the golden cases here: the next start must not fail."""
    try:
        _ask_daemon(settings, name)
    except InferenceUnavailableError as error:
        if not is_away(error):
            raise
        _rehearse(settings, name, selected)
        return "No daemon runs: the golden cases held here, and this holds from the next start on."
    return "Its golden cases held on this machine."


def _ask_daemon(settings: Settings, name: str) -> None:
    with OipClient(_target(settings), LOAD_SECONDS) as client:
        client.load_pack(name, LOAD_SECONDS)


def _rehearse(settings: Settings, name: str, selected: Selected) -> None:
    """Replay the golden cases of what the next start would serve, and of what it would run in shadow.

    Raises:
        PackError: They do not hold, or the next start would not try the release that was chosen.
    """
    installed = _of_name(settings, name)
    tried = [pack.manifest.release for pack in in_order(installed, selected)]
    if tried[:1] != [selected.active]:
        _release(settings, name, selected.active)
        raise PackError(f"The next start would not serve release {selected.active} of {name}.", "Choose another one.")
    for pack in installed:
        if pack.manifest.release in {selected.active, selected.shadow}:
            with PackRunner((), settings.inference.threads) as trial:
                serve_best(pack, trial)


def _target(settings: Settings) -> str:
    listen = settings.inference.listen
    return listen if listen.startswith("unix:") else f"unix://{settings.inference_socket}"


def _serving(settings: Settings, name: str, selected: Selected) -> int | None:
    """What serves where nothing was chosen: what the daemon says, or what its next start would try first."""
    installed = [each.manifest.release for each in in_order(_of_name(settings, name), selected)]
    said = [release for release in _running(settings, name, "active") if release in installed]
    return next(iter([*said, *installed]), None)


def _running(settings: Settings, name: str, *states: str) -> Sequence[int]:
    """Releases of a pack that the daemon listed in one of these states."""
    return [
        release
        for (pack, release), line in _said_by_daemon(settings).items()
        if pack == name and release is not None and line.get("state") in states
    ]


def _of_name(settings: Settings, name: str) -> Sequence[VerifiedPack]:
    return [each for each in _installed(settings) if isinstance(each, VerifiedPack) and each.manifest.name == name]


def _release(settings: Settings, name: str, release: int | None) -> VerifiedPack:
    for each in _installed(settings):
        if isinstance(each, VerifiedPack) and (each.manifest.name, each.manifest.release) == (name, release):
            return each
    for each in _installed(settings):
        if isinstance(each, PackProblem) and each.name in {name, f"{name}-{release}"}:
            raise each.error
    raise PackError(f"Release {release} of the pack {name} is not installed.", "`insite packs list` lists what is.")


def _installed(settings: Settings) -> Sequence[VerifiedPack | PackProblem]:
    packs = settings.packs
    return installed_packs(settings.packs_folder, packs.trusted_keys, allow_unvalidated=packs.allow_unvalidated)


def _writable_folder(settings: Settings) -> Path:
    folder = settings.packs.folder or settings.state / "packs"
    prepare_folder(folder, SHIPPED_PACKS)
    return folder


def _said_by_daemon(settings: Settings) -> _Said:
    try:
        listed = json.loads((settings.state / "run" / "packs.json").read_text(encoding="utf-8"))
        return {(each["name"], each["release"]): each for each in listed}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _active(name: str, selected: Selected, good: set[int], said: _Said) -> int | None:
    """The release that serves: the chosen one, or what stands in for one that is damaged or was refused."""
    chosen = selected.active or max(good)
    if chosen in good and said.get((name, chosen), {}).get("state") != "refused":
        return chosen
    return next((each for (pack, each), line in said.items() if pack == name and line.get("state") == "active"), None)


def _line(
    found: VerifiedPack | PackProblem, selection: Mapping[str, Selected], active: Mapping[str, int | None], said: _Said
) -> dict[str, Any]:
    if isinstance(found, PackProblem):
        return {"name": found.name, "release": None, "digest": "", "state": "refused", "reason": str(found.error)}
    manifest = found.manifest
    selected = selection.get(manifest.name, Selected())
    state = {active[manifest.name]: "active", selected.shadow: "shadow"}.get(manifest.release, "installed")
    by_daemon = said.get((manifest.name, manifest.release), {})
    reason = by_daemon.get("reason", "") if by_daemon.get("state") == "refused" else ""
    return {
        "name": manifest.name,
        "release": manifest.release,
        "digest": manifest.digest,
        "state": "refused" if reason else state,
        "reason": reason,
    }
