"""The commands of `insite` itself: start daemons, analyse files, show the state."""

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from appliance.cli import bench, packs
from appliance.cli.options import ConfigOption, JsonOption, StateOption, overrides, print_json, settings_from
from appliance.daemons.notify import notify
from appliance.domain.errors import InsiteError, SettingsError
from appliance.settings import Settings, flat, load
from appliance.telemetry import configure_logs

app = typer.Typer(
    name="insite",
    help="An AI appliance for community hospitals: results beside the PACS, nothing leaves the site.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

bundle_commands = typer.Typer(help="Installation bundles for machines without network.", no_args_is_help=True)
app.add_typer(bundle_commands, name="bundle")

app.add_typer(packs.commands, name="packs")
app.add_typer(bench.commands, name="bench")

PAGE_WIDTH = 118
"""Columns where the output is no terminal."""

Daemon = Callable[[Settings, threading.Event, Callable[[], None]], None]


def main() -> None:
    """Run the command line; an expected error is one sentence and exit status 1."""
    try:
        app()
    except InsiteError as error:
        sys.stderr.write(f"insite: {error}\n")
        sys.exit(1)


@app.command()
def inference(
    state: StateOption = None,
    config: ConfigOption = None,
    packs: Annotated[Path | None, typer.Option("--packs", metavar="DIR", help="Folder of signed packs.")] = None,
    listen: Annotated[
        str | None, typer.Option("--listen", metavar="ADDRESS", help="unix:///path, or host:port with TLS.")
    ] = None,
) -> None:
    """Run the inference daemon: signed packs, Open Inference Protocol v2 on a Unix socket."""
    from appliance.daemons.inference import run  # noqa: PLC0415 - each command imports only what it runs

    more: dict[str, Any] = {}
    if packs is not None:
        more["packs"] = {"folder": str(packs.absolute())}
    if listen is not None:
        more["inference"] = {"listen": listen}
    _run_daemon(run, state, config, more)


@app.command()
def node(state: StateOption = None, config: ConfigOption = None) -> None:
    """Run the DICOM node that receives studies."""
    from appliance.daemons.node import run  # noqa: PLC0415 - each command imports only what it runs

    _run_daemon(run, state, config)


@app.command()
def worker(state: StateOption = None, config: ConfigOption = None) -> None:
    """Run the worker that analyses, reports and delivers."""
    from appliance.daemons.worker import run  # noqa: PLC0415 - each command imports only what it runs

    _run_daemon(run, state, config)


@app.command()
def web(state: StateOption = None, config: ConfigOption = None) -> None:
    """Run the status site."""
    from appliance.daemons.web import run  # noqa: PLC0415 - each command imports only what it runs

    _run_daemon(run, state, config)


@app.command()
def serve(state: StateOption = None, config: ConfigOption = None) -> None:
    """Run all four daemons on one state folder from this terminal; Ctrl-C stops them."""
    from appliance.daemons.serve import serve_until  # noqa: PLC0415 - each command imports only what it runs

    settings = settings_from(state, config)
    with _stop_on_signal(threading.Event()) as stop:
        serve_until(stop, settings, _passed_on(state, config))


@app.command()
def status(state: StateOption = None, config: ConfigOption = None, *, as_json: JsonOption = False) -> None:
    """Show what runs, what waits and which packs speak."""
    from appliance.daemons.status import status_of, table_of  # noqa: PLC0415 - each command imports only what it runs

    found = status_of(settings_from(state, config))
    if as_json:
        print_json(found)
    else:
        Console().print(table_of(found))


@app.command()
def analyse(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH…", help="DICOM files and folders of them.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the result objects.")],
    config: ConfigOption = None,
    *,
    as_json: JsonOption = False,
    allow_unvalidated: Annotated[
        bool, typer.Option("--allow-unvalidated", help="Also run packs marked untrained, synthetic or research-only.")
    ] = False,
) -> None:
    """Analyse files without daemons: the same steps, results as DICOM files."""
    from appliance.daemons.analyse import analyse_paths, lines_of  # noqa: PLC0415 - each command imports only what it runs

    overrides = {"packs": {"allow_unvalidated": True}} if allow_unvalidated else {}
    settings = load(config, overrides).settings
    configure_logs("error", "text")
    found = analyse_paths(paths, out, settings)
    if as_json:
        print_json(found)
    else:
        for line in lines_of(found):
            sys.stdout.write(f"{line}\n")


@app.command(name="settings")
def show_settings(
    state: StateOption = None,
    config: ConfigOption = None,
    *,
    check: Annotated[bool, typer.Option("--check", help="Only say whether they are in order.")] = False,
) -> None:
    """Print every setting, its value and where that came from."""
    loaded = load(config, overrides(state))
    if check:
        from appliance.daemons.asked_daemon import asked_daemon  # noqa: PLC0415 - each command imports only what it runs

        asked_daemon(loaded.settings, loaded.settings.inference.timeout_seconds).close()
        sys.stdout.write("The settings are in order.\n")
        return
    for key, value in flat(loaded.settings.model_dump(mode="json")):
        sys.stdout.write(f"{key:<32} {json.dumps(value):<24} {loaded.origins.get(key, 'default')}\n")


@app.command()
def doctor(
    state: StateOption = None,
    config: ConfigOption = None,
    *,
    as_json: JsonOption = False,
    known: Annotated[
        Path | None,
        typer.Option("--known", metavar="FILE", help="An earlier --json report; what failed there is only a warning."),
    ] = None,
) -> None:
    """Examine this installation and say the way forward of whatever is wrong; exit status 1 if anything is."""
    from appliance.daemons.doctor import as_values, examine, excused, healthy, lines_of, names_failed_in  # noqa: PLC0415 - each command imports only what it runs

    loaded = load(config, overrides(state))
    configure_logs("error", loaded.settings.log.format)
    before = frozenset() if known is None else names_failed_in(known)
    found = excused(examine(loaded.settings), before)
    if as_json:
        print_json(as_values(found))
    else:
        sys.stdout.write("".join(f"{line}\n" for line in lines_of(found)))
    raise typer.Exit(0 if healthy(found) else 1)


@app.command(name="golden-study")
def golden_study(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="A DICOM file; default: the first pack's own golden case.")
    ] = None,
    state: StateOption = None,
    config: ConfigOption = None,
) -> None:
    """Send one image through the running services and check its report; no destination gets the results."""
    from appliance.daemons.golden_study import run_golden_study  # noqa: PLC0415 - each command imports only what it runs

    settings = load(config, overrides(state)).settings
    configure_logs("error", settings.log.format)
    found = run_golden_study(settings, file)
    tasks = ", ".join(f"{name} {outcome.value}" for name, outcome in found.tasks)
    sys.stdout.write(f"The golden study was answered with {' and '.join(found.objects)}: {tasks}.\n")


@app.command()
def drain(
    seconds: Annotated[float, typer.Option("--seconds", min=0, help="How long to wait, in seconds.")] = 120.0,
    state: StateOption = None,
    config: ConfigOption = None,
) -> None:
    """Wait until no study is received, analysed or reported; what is left is taken up at the next start."""
    from appliance.daemons.drain import drained  # noqa: PLC0415 - each command imports only what it runs

    settings = load(config, overrides(state)).settings
    configure_logs("error", settings.log.format)
    left = drained(settings, seconds)
    sys.stdout.write(f"{left} studies are still under way.\n" if left else "No study is under way.\n")


@bundle_commands.command()
def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The bundle.")],
    key: Annotated[Path, typer.Option("--key", metavar="PUB", help="Public key of its maker, PEM.")],
) -> None:
    """Say whether a bundle is whole, unaltered, and signed by its maker; exit status 1 if not."""
    from appliance.governance.bundle import verify_bundle  # noqa: PLC0415 - each command imports only what it runs

    found = verify_bundle(file, key)
    sys.stdout.write(
        f"Insite {found.version}, {found.variant}: {found.files} files, whole and signed with {key.name}.\n"
    )


@app.command()
def user(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who may log in to the status site.")],
    state: StateOption = None,
    config: ConfigOption = None,
    *,
    admin: Annotated[bool, typer.Option("--admin", help="May also have studies analysed and sent again.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Remove this user instead.")] = False,
) -> None:
    """Add or remove a user of the status site; a password is asked for, or read from standard input."""
    from appliance.storage.users import FILE_NAME, Role, UserStore  # noqa: PLC0415 - each command imports only what it runs

    settings = settings_from(state, config)
    if remove:
        with UserStore(settings.state / FILE_NAME) as users:
            users.remove_user(name)
        sys.stdout.write(f"{name} may no longer log in.\n")
        return
    asks = sys.stdin.isatty()
    password = typer.prompt("Password", hide_input=True, confirmation_prompt=True) if asks else sys.stdin.readline()
    with UserStore(settings.state / FILE_NAME) as users:
        added = users.add_user(name, password.rstrip("\n"), Role.ADMIN if admin else Role.VIEWER)
    sys.stdout.write(f"{added.name} may log in as {added.role.value}.\n")


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for results, pictures and report.")] = Path(
        "demo-out"
    ),
) -> None:
    """Send real DICOM files through the whole chain beside a small receiving PACS, and show what came back."""
    from appliance.daemons.demo import run_demo  # noqa: PLC0415 - each command imports only what it runs

    console = Console() if sys.stdout.isatty() else Console(width=PAGE_WIDTH)
    raise typer.Exit(run_demo(out, console))


def _passed_on(state: Path | None, config: Path | None) -> list[str]:
    arguments = [] if state is None else ["--state", str(state.absolute())]
    return arguments if config is None else [*arguments, "--config", str(config.absolute())]


def _run_daemon(run: Daemon, state: Path | None, config: Path | None, more: Mapping[str, Any] | None = None) -> None:
    from appliance.daemons.pulse import pulse_of  # noqa: PLC0415 - each command imports only what it runs

    settings = settings_from(state, config, more)
    os.umask(os.umask(0o077) | 0o007)  # what the state folder holds is for the services and their group alone
    try:
        (settings.state / "run").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(
            f"The state folder {settings.state} can't be made: {error.strerror}.", "Name another one with --state."
        ) from error
    pulse = pulse_of(run.__module__.rpartition(".")[2], settings)

    def ready() -> None:
        notify("READY=1")
        pulse.begin()

    with _stop_on_signal(pulse):
        run(settings, pulse, ready)
        notify("STOPPING=1")


@contextmanager
def _stop_on_signal(stop: threading.Event) -> Iterator[threading.Event]:
    before = {name: signal.signal(name, lambda *_: stop.set()) for name in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
