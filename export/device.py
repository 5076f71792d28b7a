"""Where nets are trained and asked: on the first GPU of this machine, where there is one, else on its CPU."""

import torch


def training_device() -> torch.device:
    """The GPU that torch can use, or the CPU.

    On a GPU this sets cuDNN to its deterministic convolutions, without TF32. Some sums, as of the gradient of
    interpolated masks, still come in any order there: equal trainings end near each other, not in the same weights.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda")


def compute_capability() -> str | None:
    """Of the GPU that torch can use (`8.6`), or None."""
    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return f"{major}.{minor}"
