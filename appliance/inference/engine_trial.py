"""Loads an engine file in a process of its own first: one that brings its reader down does not take the daemon along.

`python -m appliance.inference.engine_trial RUNTIME FILE` ends with status 0 when the file could be read.
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from appliance.domain.engine_file import EngineRefusal
from appliance.domain.errors import EngineFileError
from appliance.inference.tensorrt_engine import library_of

SECONDS = 120.0
_UNREAD = 3


def try_engine(runtime: str, file: Path, *, command: Sequence[str] = (), seconds: float = SECONDS) -> None:
    """Load a file in a child process.

    Args:
        command: In place of our own child, in tests.

    Raises:
        EngineFileError: The child died of it, could not read it, or took too long (CRASHED); it says how it ended.
    """
    arguments = command or (sys.executable, "-m", "appliance.inference.engine_trial", runtime)
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter and module
            [*arguments, str(file)],
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        how = "" if done.returncode == 0 else _how(done.returncode, done.stderr)
    except subprocess.TimeoutExpired:
        how = f"was not done with it after {seconds:g} s"
    if how:
        raise EngineFileError(
            f"The engine {file.name} is not loaded: the process that tried it {how}.",
            "Build the engine again on this machine.",
            refusal=EngineRefusal.CRASHED,
        )


def _how(status: int, said: str) -> str:
    if status < 0:
        return f"died of signal {-status}"
    last = said.strip().splitlines()[-1:] or [""]
    return f"could not read it (status {status}) {last[0]}".strip()


def main() -> int:
    """Read the file that the command line names."""
    runtime, file = sys.argv[1:]
    library = library_of(runtime)
    reader = library.Runtime(library.Logger(library.Logger.ERROR))
    return 0 if reader.deserialize_cuda_engine(Path(file).read_bytes()) is not None else _UNREAD


if __name__ == "__main__":
    sys.exit(main())
