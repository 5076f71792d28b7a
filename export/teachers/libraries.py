"""Loads a publisher's library late, offline, and with a sentence where it can't be loaded."""

import importlib
import os
from types import ModuleType

from appliance.domain.errors import InputError

OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}
"""Read by the libraries when they are first imported; nothing is ever fetched, whatever a checkpoint asks for."""


def library(name: str) -> ModuleType:
    """Import a library with every hub switched off.

    Raises:
        InputError: It is not installed, or not for the torch that is here; what it said is repeated.
    """
    os.environ.update(OFFLINE)
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:
        raise InputError(
            f"The library {name} can't be loaded: {str(error).splitlines()[0]}",
            "Install it beside a torch and a torchvision of the same build; docs/export.md says how.",
        ) from error
