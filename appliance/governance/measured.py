"""What was measured on this machine, remembered: how fast each way to serve a pack is, so that the next start knows.

A measurement holds for one pack, one precision, one runtime of one version, one processor and one number of threads;
whatever changes, it is made again. The file is a cache: damaged or lost, it is measured anew.
"""

import json
import os
import platform
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from appliance.inference.runner import Choice
from appliance.inference.scheduler import Batching
from appliance.inference.traffic import Traffic
from appliance.telemetry import logger_for

CPUINFO = Path("/proc/cpuinfo")


def machine_name(threads: int, cpuinfo: Path = CPUINFO) -> str:
    """What a measurement was made on: processor and threads."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{model or platform.machine()} with {threads} threads"


@dataclass(frozen=True, slots=True)
class Measured:
    """Measurements kept in a file.

    Attributes:
        file: Where; its folder must be there.
        machine: See `machine_name`.
        traffic: Of who serves on this machine: a time that was taken beside others holds for this life of the daemon,
            and is not remembered.
    """

    file: Path
    machine: str
    traffic: Traffic = field(default_factory=Traffic)

    def find(self, pack_digest: str, choice: Choice) -> Batching | None:
        """What was measured before, or None."""
        values = self._all().get(self._key(pack_digest, choice), {})
        try:
            return Batching(
                int(values["preferred"]), float(values["max_delay_seconds"]), float(values["image_seconds"])
            )
        except (KeyError, TypeError, ValueError):
            return None

    def keep(self, pack_digest: str, choice: Choice, batching: Batching) -> None:
        """Remember a measurement; where it can't be written it is made again at the next start."""
        values = self._all() | {self._key(pack_digest, choice): asdict(batching)}
        draft = self.file.with_name(f".{self.file.name}.{os.getpid()}")
        try:
            draft.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
            draft.replace(self.file)
        except OSError as error:  # a full disk is no reason to refuse a pack
            logger_for("inference").error("the measurement can't be kept", file=str(self.file), reason=str(error))
            with suppress(OSError):
                draft.unlink(missing_ok=True)

    def _key(self, pack_digest: str, choice: Choice) -> str:
        return f"{pack_digest} {choice.precision} {choice.runtime} {choice.version} {self.machine}"

    def _all(self) -> dict[str, dict[str, float]]:
        try:
            values = json.loads(self.file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return values if isinstance(values, dict) else {}
