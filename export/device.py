"""Where nets are trained and asked: on the first GPU of this machine, where there is one, else on its CPU."""

import torch


def training_device() -> torch.device:
    """The GPU that torch can use, or the CPU; on a GPU convolutions are the deterministic ones."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    return torch.device("cuda")
