"""The processes of one run: one on a CPU or GPU, or as many as torchrun started, behind Lightning Fabric."""

import os
from typing import Any, TypeVar

import torch
import torch.distributed.nn.functional as collective
from lightning_fabric import Fabric
from torch import Tensor, distributed, nn

from appliance.domain.errors import SettingsError

Value = TypeVar("Value")


class Ranks:
    """Where this process stands among those of the run; the same code for one device and for many.

    Under torchrun the environment says how many there are. On GPUs numbers are mixed (bfloat16 where it is safe), on
    CPUs they are float32.
    """

    def __init__(self) -> None:
        world = int(os.environ.get("WORLD_SIZE", "1"))
        local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        on_gpu = torch.cuda.is_available()
        self.fabric = Fabric(
            accelerator="cuda" if on_gpu else "cpu",
            devices=local,
            num_nodes=world // local,
            strategy="ddp" if world > 1 else "auto",
            precision="bf16-mixed" if on_gpu else "32-true",
        )
        self.fabric.launch()
        if on_gpu:
            torch.backends.cudnn.benchmark = False
            torch.backends.cudnn.deterministic = True

    @property
    def count(self) -> int:
        """How many processes there are."""
        return self.fabric.world_size

    @property
    def number(self) -> int:
        """This process, from 0."""
        return self.fabric.global_rank

    @property
    def first(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.fabric.is_global_zero

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return self.fabric.device

    def share(self, batch: int) -> int:
        """The part of a batch that falls to each process; see `share_of`."""
        return share_of(batch, self.count)

    def wait(self) -> None:
        """Wait until every process is here."""
        self.fabric.barrier()

    def told(self, value: Value) -> Value:
        """What the first process says, in every process."""
        result: Any = self.fabric.broadcast(value)
        said: Value = result
        return said


def share_of(batch: int, processes: int) -> int:
    """The part of a batch that falls to each process.

    Raises:
        SettingsError: It can't be divided evenly, so that the result would depend on the number of processes.
    """
    if batch % processes:
        raise SettingsError(
            f"A batch of {batch} can't be divided among {processes} processes.",
            "Change agglomeration.batch in the recipe, or the number of processes.",
        )
    return batch // processes


class SharedBatchNorm(nn.BatchNorm2d):
    """Batch normalisation over the batches of all processes, on devices for which torch has none of its own (CPUs)."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, h, w] to [N, C, h, w]; every process must have as many pictures as the others."""
        if not self.training or self.running_mean is None or self.running_var is None or self.momentum is None:
            return super().forward(x)
        world = distributed.get_world_size()
        mean = _summed(x.mean(dim=(0, 2, 3))) / world
        centred = x - mean.view(1, -1, 1, 1)
        variance = _summed(centred.square().mean(dim=(0, 2, 3))) / world
        count = world * x.numel() / x.shape[1]
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
            self.running_var.lerp_(variance * (count / max(1.0, count - 1.0)), self.momentum)
        factor = (variance + self.eps).rsqrt() * self.weight
        normed: Tensor = centred * factor.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)
        return normed


def _summed(x: Tensor) -> Tensor:
    """The sum over all processes, through which gradients flow back to each."""
    total: Tensor = collective.all_reduce(x)  # type: ignore[no-untyped-call]
    return total


def share_batch_statistics(net: nn.Module, ranks: Ranks) -> nn.Module:
    """Let every batch normalisation of a net count the pictures of all processes, so that their number changes nothing.

    With one process the net stays as it is.
    """
    if ranks.count == 1:
        return net
    if ranks.device.type == "cuda":
        synchronised: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(net)  # type: ignore[no-untyped-call]
        return synchronised
    for name, module in net.named_children():
        if type(module) is nn.BatchNorm2d:
            shared = SharedBatchNorm(module.num_features, module.eps, module.momentum)
            shared.load_state_dict(module.state_dict())
            setattr(net, name, shared)
        else:
            share_batch_statistics(module, ranks)
    return net
