"""What the doctor asks of the machine: space, and who may read and write what."""

import shutil
import stat
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from appliance.daemons.doctor_check import Check, failed, ok, warning
from appliance.settings import Settings

MIB = 1 << 20
SPARE = 2
"""Less than this many times the least free space is worth a look, before the node has to turn images away."""
FIREWALL_RULES = Path("/opt/insite/current/site/firewall.nft")
"""Where the role puts them (docs/fleet.md)."""
OTHERS = stat.S_IRWXO
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def disk(settings: Settings) -> Iterator[Check]:
    """Whether the state folder is there and its disk has room for received images."""
    if not settings.state.is_dir():
        yield failed("disk", f"There is no state folder {settings.state}.", "Start the services, or correct `state`.")
        return
    free = shutil.disk_usage(settings.state).free // MIB
    least = settings.node.min_free_mib
    sentence = f"{free} MiB are free on the disk of {settings.state}; the node needs {least}."
    if free < least:
        yield failed("disk", sentence, "Free space, or lower node.min_free_mib.")
    elif free < SPARE * least:
        yield warning("disk", sentence, "Free space before the node has to turn images away.")
    else:
        yield ok("disk", sentence)


def permissions(settings: Settings) -> Iterator[Check]:
    """Whether patient data is closed to other users, and trusted keys to everybody's pen."""
    faults = [_fault(path, OTHERS, "open to every user of this machine", "o=") for path in _private(settings)]
    faults += [
        _fault(key, OTHERS_WRITE, "writable by others than its owner", "go-w") for key in settings.packs.trusted_keys
    ]
    found = [fault for fault in faults if fault is not None]
    yield from found
    if not found:
        yield ok("permissions", "Patient data is closed to other users; trusted keys can't be changed by them.")


def firewall(rules: Path = FIREWALL_RULES, program: str = "/usr/sbin/nft") -> Iterator[Check]:
    """Whether the firewall's table is in force on a machine whose installation wrote rules for it."""
    if not rules.exists():
        return
    try:
        answer = subprocess.run(  # noqa: S603 - a fixed program and fixed words
            [program, "list", "table", "inet", "insite"], capture_output=True, text=True, check=False
        )
    except OSError as error:
        yield warning("firewall", f"{program} can't be run: {error.strerror}.", "Install the Debian package nftables.")
        return
    if answer.returncode == 0:
        yield ok("firewall", "Only configured peers come in and are spoken to.")
    elif "not permitted" in answer.stderr:
        yield warning("firewall", "The firewall's table can't be looked at.", "Run the doctor as root.")
    else:
        yield failed("firewall", "The firewall's table is not in force.", "systemctl restart nftables-insite")


def _private(settings: Settings) -> Iterator[Path]:
    yield from (settings.ledger_file, settings.spool_folder, settings.results_folder)
    yield from (settings.state / name for name in ("users.db", "work"))
    for folder in ("keys", "audit"):
        with suppress(OSError):
            yield from sorted((settings.state / folder).iterdir())


def _fault(path: Path, bits: int, what: str, mend: str) -> Check | None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return None
    except OSError as error:
        return failed("permissions", f"{path} can't be looked at: {error.strerror}.", "Run the doctor as root.")
    if mode & bits:
        return failed("permissions", f"{path} is {what}.", f"chmod {mend} {path}")
    return None
