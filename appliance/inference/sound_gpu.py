"""Refuses to compute on a GPU whose results are doubtful, and says what it reported."""

from appliance.domain.errors import EngineFileError
from appliance.domain.gpu import GpuState

_WAY_FORWARD = "ONNX Runtime serves on the CPU until the GPU was looked at and reset."


def check_sound(state: GpuState | None) -> GpuState:
    """Let a sound GPU pass, and give its state back.

    Args:
        state: What it says now; None when it has stopped answering.

    Raises:
        EngineFileError: Nothing may be computed on it.
    """
    if state is None:
        raise EngineFileError("The GPU does not answer.", _WAY_FORWARD)
    if not state.sound:
        raise EngineFileError(
            f"The GPU reported errors ({state.ecc_errors or 0} of its memory, XIDs {list(state.xid_errors)}).",
            _WAY_FORWARD,
        )
    return state
