"""RepViT as a student: branches of convolutions in training, one convolution for each when served, one channel in.

Wang et al., RepViT: Revisiting Mobile CNN From ViT Perspective, CVPR 2024. Names of parameters are timm's, so that its
weights can be read without it; tests compare both.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from export.encoder import TimmEncoder, with_grey_stem

EXPANSION = 2
SQUEEZE = 4
SQUEEZED_MULTIPLE = 8
"""A squeeze keeps a quarter of the channels, rounded to the nearest multiple of this."""


@dataclass(frozen=True, slots=True)
class RepVitDesign:
    """One model of the family: width and number of blocks of its stages, which end at strides 4, 8, 16 and 32."""

    name: str
    feature_widths: tuple[int, ...]
    depths: tuple[int, ...]
    shrink: int = 2

    @property
    def embedding(self) -> int:
        """Length of the embedding, which is the last map's mean."""
        return self.feature_widths[-1]

    def encoder(self) -> "RepVitEncoder":
        """A new encoder of this design, its weights random."""
        return RepVitEncoder(self)


DESIGNS = {
    "repvit_m0_9": RepVitDesign("repvit_m0_9", (48, 96, 192, 384), (2, 2, 14, 2)),
    "repvit_m1_0": RepVitDesign("repvit_m1_0", (56, 112, 224, 448), (2, 2, 14, 2)),
}
"""By timm's names."""


class _ConvNorm(nn.Sequential):
    def __init__(self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.c = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs)


class _TokenMixer(nn.Module):
    """Three branches that look at each channel alone: 3 x 3, 1 x 1, and the input itself."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = _ConvNorm(width, width, 3, groups=width)
        self.conv1 = nn.Conv2d(width, width, 1, groups=width)
        self.bn = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn(self.conv(x) + self.conv1(x) + x)
        return y

    @torch.no_grad()
    def fused(self) -> nn.Conv2d:
        """The one 3 x 3 convolution that says the same, in evaluation mode."""
        one = fuse_conv_bn_eval(self.conv.c, self.conv.bn)
        one.weight[:, :, 1:2, 1:2] += self.conv1.weight + 1.0
        one.get_parameter("bias").add_(self.conv1.get_parameter("bias"))
        return fuse_conv_bn_eval(one, self.bn)


class _Squeeze(nn.Module):
    """Squeeze-and-excitation (Hu et al., CVPR 2018)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        squeezed = (width // SQUEEZE + SQUEEZED_MULTIPLE // 2) // SQUEEZED_MULTIPLE * SQUEEZED_MULTIPLE
        self.fc1 = nn.Conv2d(width, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean(dim=(2, 3), keepdim=True)
        return x * torch.sigmoid(self.fc2(functional.relu(self.fc1(pooled))))


class _ChannelMixer(nn.Module):
    """Two convolutions of 1 x 1; the second starts at nothing, so that a new block changes nothing."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = _ConvNorm(width, width * EXPANSION, 1)
        self.conv2 = _ConvNorm(width * EXPANSION, width, 1)
        nn.init.zeros_(self.conv2.bn.weight)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv2(functional.gelu(self.conv1(x)))
        return y


class _Block(nn.Module):
    def __init__(self, width: int, *, squeezes: bool) -> None:
        super().__init__()
        self.token_mixer: nn.Module = _TokenMixer(width)
        self.se = _Squeeze(width) if squeezes else nn.Identity()
        self.channel_mixer = _ChannelMixer(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.se(self.token_mixer(x))
        y: Tensor = x + self.channel_mixer(x)
        return y


class _Stem(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = _ConvNorm(1, width // 2, 3, stride=2)
        self.conv2 = _ConvNorm(width // 2, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv2(functional.gelu(self.conv1(x)))
        return y


class _Downsample(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.pre_block = _Block(inputs, squeezes=False)
        self.spatial_downsample = _ConvNorm(inputs, inputs, 3, stride=2, groups=inputs)
        self.channel_downsample = _ConvNorm(inputs, outputs, 1)
        self.ffn = _ChannelMixer(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.channel_downsample(self.spatial_downsample(self.pre_block(x)))
        y: Tensor = x + self.ffn(x)
        return y


class _Stage(nn.Module):
    """Every other block squeezes, beginning with the first."""

    def __init__(self, inputs: int, outputs: int, depth: int, *, first: bool) -> None:
        super().__init__()
        self.downsample = nn.Identity() if first else _Downsample(inputs, outputs)
        self.blocks = nn.Sequential(*(_Block(outputs, squeezes=number % 2 == 0) for number in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.blocks(self.downsample(x))
        return y

    def parts(self) -> list[nn.Module]:
        """The blocks, with the one that halves the resolution where there is one."""
        return [*([self.downsample] if isinstance(self.downsample, _Downsample) else []), *self.blocks]


class RepVitEncoder(TimmEncoder):
    """UINT8 [N, 1, 512, 512] to an embedding [N, D] and feature maps at strides 4, 8, 16 and 32 of the shrunk image."""

    def __init__(self, architecture: RepVitDesign) -> None:
        super().__init__(architecture)
        widths = architecture.feature_widths
        self.stem = _Stem(widths[0])
        self.stages = nn.ModuleList(
            _Stage(inputs, outputs, depth, first=number == 0)
            for number, (inputs, outputs, depth) in enumerate(
                zip((widths[0], *widths[:-1]), widths, architecture.depths, strict=True)
            )
        )

    def front(self, blocks: int) -> list[nn.Module]:
        """The stem and so many blocks behind it; one that halves the resolution counts as one."""
        every = [part for stage in self.stages if isinstance(stage, _Stage) for part in stage.parts()]
        return [self.stem, *every[:blocks]]

    def fused(self) -> "RepVitEncoder":
        """A copy in evaluation mode in which every token mixer is one convolution."""
        encoder = copy.deepcopy(self).eval()
        for module in encoder.modules():
            if isinstance(module, _Block) and isinstance(module.token_mixer, _TokenMixer):
                module.token_mixer = module.token_mixer.fused()
        return encoder

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return (embedding, feature maps at strides 4, 8, 16 and 32)."""
        x = self.stem(self.normalised(image))
        features: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return (x.mean(dim=(2, 3)), *features)

    def state_from_timm(self, published: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Ours out of timm's: the colour stem folded to one channel, both classifiers left out."""
        kept = {key: tensor for key, tensor in published.items() if not key.startswith("head.")}
        return with_grey_stem(kept, "stem.conv1.c.weight", "stem.conv1.bn.running_mean")
