"""Puts packs into the folder of installed packs and takes them out of it: whole, verified, or not at all."""

import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

from appliance.domain.errors import PackError
from appliance.domain.manifest import PackManifest, VerifiedPack
from appliance.governance.selection import Selected, in_order, read_selection, write_selection
from appliance.packs.open import KEYS_FOLDER, PackProblem, installed_packs, open_pack


def prepare_folder(packs: Path, shipped: Path) -> None:
    """Make the folder of installed packs; those that came with the software are linked into it, and go on serving."""
    if packs.is_dir():
        return
    packs.mkdir(mode=0o755, parents=True)
    if shipped.is_dir():
        for each in sorted(shipped.iterdir()):
            if each.is_dir() and each.name != KEYS_FOLDER and not each.name.startswith("."):
                (packs / each.name).symlink_to(each.resolve())


def install_pack(
    source: Path,
    packs: Path,
    trusted_keys: Sequence[Path],
    *,
    allow_unvalidated: bool,
    serving: Callable[[str], int | None] = lambda _: None,
) -> VerifiedPack:
    """Copy a pack among the installed ones; it serves when it is activated, or is the only release at the next start.

    What is copied is verified where it will lie, so that what was verified is what is installed.

    Args:
        serving: The release of a pack that the daemon says it serves, which stays chosen; None where it says nothing.

    Raises:
        PackError: It may not serve, or this release is installed already.
    """
    offered = open_pack(source, trusted_keys, allow_unvalidated=allow_unvalidated)
    manifest = offered.manifest
    target = packs / f"{manifest.name}-{manifest.release}"
    for each in _of_name(packs, trusted_keys, manifest.name):
        if each.manifest.release == manifest.release:
            raise PackError(
                f"Release {manifest.release} of the pack {manifest.name} is installed already.", "Remove it first."
            )
    draft = packs / f".incoming-{target.name}"
    shutil.rmtree(draft, ignore_errors=True)
    try:
        shutil.copytree(source, draft, symlinks=True)
        _open_to_readers(draft)
        open_pack(draft, trusted_keys, allow_unvalidated=allow_unvalidated)
        draft.rename(target)
    except OSError as error:
        raise PackError(f"The pack {source} can't be copied: {error}.", "Make room, or check the medium.") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    _keep_what_serves(packs, trusted_keys, manifest, serving(manifest.name))
    return open_pack(target, trusted_keys, allow_unvalidated=allow_unvalidated)


def remove_pack(
    name: str, release: int, packs: Path, trusted_keys: Sequence[Path], *, serving: Collection[int] = ()
) -> None:
    """Take a release out of the folder.

    Args:
        serving: Releases of the pack that the daemon says it runs; they stay, whatever was chosen.

    Raises:
        PackError: It is active, in shadow or the way back, or not installed.
    """
    selected = read_selection(packs).get(name, Selected())
    installed = _of_name(packs, trusted_keys, name)
    first = [each.manifest.release for each in in_order(installed, selected)][:1]
    if release in {selected.active, selected.shadow, *first, *serving}:
        raise PackError(f"Release {release} of the pack {name} is in use.", "Activate another one first.")
    if release == selected.previous:
        raise PackError(
            f"Release {release} of the pack {name} is the way back, should release {selected.active} fail.",
            "It can be removed once a third release is active.",
        )
    found = next((each for each in installed if each.manifest.release == release), None)
    if found is None:
        raise PackError(f"Release {release} of the pack {name} is not installed.", "`insite packs list` lists what is.")
    folder = next(each for each in packs.iterdir() if each.is_dir() and each.resolve() == found.folder)
    if folder.is_symlink():
        folder.unlink()
        return
    gone = folder.with_name(f".removed-{folder.name}")
    folder.rename(gone)
    shutil.rmtree(gone)


def _keep_what_serves(packs: Path, trusted_keys: Sequence[Path], new: PackManifest, serving: int | None) -> None:
    """An installation activates nothing: where none was chosen, what serves, or would, stays chosen."""
    selection = dict(read_selection(packs))
    selected = selection.get(new.name, Selected())
    if selected.active is not None:
        return
    others = [each for each in _of_name(packs, trusted_keys, new.name) if each.manifest.release != new.release]
    candidates = [each.manifest.release for each in in_order(others, selected)]
    if candidates:
        active = serving if serving in candidates else candidates[0]
        write_selection(packs, selection | {new.name: replace(selected, active=active)})


def _of_name(packs: Path, trusted_keys: Sequence[Path], name: str) -> list[VerifiedPack]:
    found = installed_packs(packs, trusted_keys, allow_unvalidated=True)
    return [each for each in found if not isinstance(each, PackProblem) and each.manifest.name == name]


def _open_to_readers(folder: Path) -> None:
    """The daemon is another user: files are for all to read, for their owner to write."""
    for each in [folder, *folder.rglob("*")]:
        if not each.is_symlink():
            each.chmod(0o755 if each.is_dir() else 0o644)
