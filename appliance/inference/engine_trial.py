"""Loads an engine in a process of its own first: one that brings its reader down does not take the daemon along.

`python -m appliance.inference.engine_trial RUNTIME` ends with status 0 when what came on standard input could be read.
"""

import subprocess
import sys
from collections.abc import Sequence

from appliance.domain.engine_file import EngineRefusal
from appliance.domain.errors import EngineFileError
from appliance.inference.tensorrt_engine import library_of

SECONDS = 120.0
_UNREAD = 3


def try_engine(runtime: str, name: str, data: bytes, *, command: Sequence[str] = (), seconds: float = SECONDS) -> None:
    """Load an engine in a child process.

    Args:
        name: Of its file, for errors.
        data: Its bytes as they were checked: the file may be another one by now.
        command: In place of our own child, in tests.

    Raises:
        EngineFileError: The child died of it, could not read it, or took too long (CRASHED); it says how it ended.
    """
    arguments = command or (sys.executable, "-m", "appliance.inference.engine_trial", runtime)
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter and module
            arguments, capture_output=True, timeout=seconds, check=False, input=data
        )
        how = "" if done.returncode == 0 else _how(done.returncode, done.stderr.decode(errors="replace"))
    except subprocess.TimeoutExpired:
        how = f"was not done with it after {seconds:g} s"
    if how:
        raise EngineFileError(
            f"The engine {name} is not loaded: the process that tried it {how}.",
            "Build the engine again on this machine.",
            refusal=EngineRefusal.CRASHED,
        )


def _how(status: int, said: str) -> str:
    if status < 0:
        return f"died of signal {-status}"
    last = said.strip().splitlines()[-1:] or [""]
    return f"could not read it (status {status}) {last[0]}".strip()


def main() -> int:
    """Read the engine on standard input with the library that the command line names."""
    (runtime,) = sys.argv[1:]
    library = library_of(runtime)
    reader = library.Runtime(library.Logger(library.Logger.ERROR))
    return 0 if reader.deserialize_cuda_engine(sys.stdin.buffer.read()) is not None else _UNREAD


if __name__ == "__main__":
    sys.exit(main())
