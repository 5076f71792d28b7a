"""What the commands of `insite` share: their common options, their settings, their output for programs."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from appliance.settings import Settings, load
from appliance.telemetry import configure_logs

StateOption = Annotated[Path | None, typer.Option("--state", metavar="DIR", help="Folder of everything that is kept.")]
ConfigOption = Annotated[Path | None, typer.Option("--config", metavar="FILE", help="Settings, a TOML file.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def settings_from(state: Path | None, config: Path | None, more: Mapping[str, Any] | None = None) -> Settings:
    """The settings of this call, with the logs set up as they say.

    Raises:
        SettingsError: A key or a value that is not known.
    """
    settings = load(config, {**overrides(state), **(more or {})}).settings
    configure_logs(settings.log.level, settings.log.format)
    return settings


def overrides(state: Path | None) -> dict[str, Any]:
    """What `--state` changes in the settings."""
    return {} if state is None else {"state": state.absolute()}


def print_json(value: Any) -> None:
    """Print for programs."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")
