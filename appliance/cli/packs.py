"""`insite packs`: the installed model packs."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from appliance.cli.options import ConfigOption, JsonOption, StateOption, print_json, settings_from

commands = typer.Typer(help="Installed model packs: which release serves on this machine.", no_args_is_help=True)

PackFolder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of one pack.")]
PackName = Annotated[str, typer.Argument(metavar="PACK", help="The pack's name.")]
PackRelease = Annotated[int, typer.Argument(metavar="RELEASE", help="Its release, an integer.")]


@commands.command(name="list")
def packs_list(state: StateOption = None, config: ConfigOption = None, *, as_json: JsonOption = False) -> None:
    """List every installed release: which serves, which stands by, which is refused and why."""
    from appliance.daemons.packs import list_packs  # noqa: PLC0415 - each command imports only what it runs

    found = list_packs(settings_from(state, config))
    if as_json:
        print_json(found)
        return
    for each in found:
        release = "?" if each["release"] is None else each["release"]
        sys.stdout.write(f"{each['name']:<24} {release!s:>4} {each['state']:<9} {each['reason']}".rstrip() + "\n")


@commands.command(name="verify")
def packs_verify(folder: PackFolder, state: StateOption = None, config: ConfigOption = None) -> None:
    """Check a pack from signature to gate report, wherever it lies; exit status 1 if it may not serve."""
    from appliance.daemons.packs import verify as check  # noqa: PLC0415 - each command imports only what it runs

    manifest = check(settings_from(state, config), folder).manifest
    word = manifest.validation.value
    sys.stdout.write(f"{manifest.name} release {manifest.release}, {manifest.digest}: signed, whole, {word}.\n")


@commands.command(name="install")
def packs_install(folder: PackFolder, state: StateOption = None, config: ConfigOption = None) -> None:
    """Copy a verified pack among the installed ones; it serves only when it is activated."""
    from appliance.daemons.packs import install  # noqa: PLC0415 - each command imports only what it runs

    manifest = install(settings_from(state, config), folder).manifest
    sys.stdout.write(f"{manifest.name} release {manifest.release} is installed.\n")


@commands.command(name="activate")
def packs_activate(
    name: PackName, release: PackRelease, state: StateOption = None, config: ConfigOption = None
) -> None:
    """Let a release serve once its golden cases hold on this machine, without losing a request."""
    from appliance.daemons.packs import activate  # noqa: PLC0415 - each command imports only what it runs

    sys.stdout.write(f"{activate(settings_from(state, config), name, release)}\n")


@commands.command(name="shadow")
def packs_shadow(
    name: PackName,
    release: Annotated[int | None, typer.Argument(metavar="[RELEASE]", help="None ends the shadow.")] = None,
    state: StateOption = None,
    config: ConfigOption = None,
) -> None:
    """Let a release answer unseen beside the one that serves, and compare."""
    from appliance.daemons.packs import shadow  # noqa: PLC0415 - each command imports only what it runs

    sys.stdout.write(f"{shadow(settings_from(state, config), name, release)}\n")


@commands.command(name="rollback")
def packs_rollback(name: PackName, state: StateOption = None, config: ConfigOption = None) -> None:
    """Let the release before serve again."""
    from appliance.daemons.packs import rollback  # noqa: PLC0415 - each command imports only what it runs

    sys.stdout.write(f"{rollback(settings_from(state, config), name)}\n")


@commands.command(name="remove")
def packs_remove(name: PackName, release: PackRelease, state: StateOption = None, config: ConfigOption = None) -> None:
    """Take out a release that is not in use."""
    from appliance.daemons.packs import remove  # noqa: PLC0415 - each command imports only what it runs

    remove(settings_from(state, config), name, release)
    sys.stdout.write(f"{name} release {release} is removed.\n")
