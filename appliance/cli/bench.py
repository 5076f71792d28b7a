"""`insite bench`: measures this machine."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from appliance.cli.options import ConfigOption, JsonOption, StateOption, print_json, settings_from
from appliance.settings import Settings

commands = typer.Typer(help="Measure this machine.", no_args_is_help=True)

PacksOption = Annotated[Path | None, typer.Option("--packs", metavar="DIR", help="Folder of signed packs.")]


@commands.command(name="inference")
def bench_inference(
    state: StateOption = None,
    config: ConfigOption = None,
    packs: PacksOption = None,
    mlserver: Annotated[
        Path, typer.Option("--mlserver", metavar="PYTHON", help="Python of an environment with MLServer.")
    ] = Path("build/mlserver/bin/python"),
    *,
    as_json: JsonOption = False,
    short: Annotated[bool, typer.Option("--short", help="A minute: shows that it runs, judges nothing.")] = False,
) -> None:
    """Compare the inference daemon with ONNX Runtime alone and with MLServer, as ratios of one run."""
    from appliance.daemons.bench_inference import SHORT, Effort  # noqa: PLC0415 - each command imports only what it runs
    from appliance.daemons.bench_inference import bench_inference as measure  # noqa: PLC0415 - the same
    from appliance.daemons.bench_inference_table import table_of  # noqa: PLC0415 - the same

    settings = _settings_with(packs, state, config)
    found = measure(settings, SHORT if short else Effort(), mlserver.absolute())
    if as_json:
        print_json(found)
    else:
        Console().print(table_of(found))


@commands.command(name="soak")
def bench_soak(
    state: StateOption = None,
    config: ConfigOption = None,
    packs: PacksOption = None,
    cycles: Annotated[int, typer.Option("--cycles", help="Times that the pack is unloaded and loaded.")] = 1000,
    requests: Annotated[int, typer.Option("--requests", help="Requests.")] = 100_000,
) -> None:
    """Load, unload and ask for long, and print as JSON how much the inference daemon has grown."""
    from appliance.daemons.bench_soak import Soak  # noqa: PLC0415 - each command imports only what it runs
    from appliance.daemons.bench_soak import bench_soak as measure  # noqa: PLC0415 - the same

    settings = _settings_with(packs, state, config)
    print_json(measure(settings, Soak(cycles, requests)))


@commands.command(name="gpu")
def bench_gpu(state: StateOption = None, config: ConfigOption = None) -> None:
    """Try every runtime of this machine's GPU on the installed packs, and print as JSON how fast each is."""
    from appliance.daemons.bench_gpu import bench_gpu as measure  # noqa: PLC0415 - each command imports only what it runs

    print_json(measure(settings_from(state, config)))


def _settings_with(packs: Path | None, state: Path | None, config: Path | None) -> Settings:
    return settings_from(state, config, {"packs": {"folder": str(packs.absolute())}} if packs else None)
