"""EfficientViT of MIT as a student: convolutions, and attention whose cost grows with the places, one channel in.

Cai et al., EfficientViT: Multi-Scale Linear Attention for High-Resolution Dense Prediction, ICCV 2023. Names of
parameters are timm's, so that its weights can be read without it; tests compare both.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from export.encoder import TimmEncoder, with_grey_stem

EXPANSION = 4
HEAD_WIDTH = 16
SCALES = 2
"""Queries, keys and values as they are, and averaged over 5 x 5 places by a learned convolution."""
NO_DIVISION_BY_ZERO = 1e-5
ATTENTIVE_STAGES = (2, 3)
"""Attention begins at stride 16."""
CLASSIFIER = "head.classifier.4."


@dataclass(frozen=True, slots=True)
class EfficientVitDesign:
    """One model of the family; its four stages end at strides 4, 8, 16 and 32, the last two with attention.

    Attributes:
        depths: Blocks of each stage; in one with attention, beside the block that halves the resolution.
        last: Channels of the convolution behind the last map.
    """

    name: str
    stem: int
    feature_widths: tuple[int, ...]
    depths: tuple[int, ...]
    last: int
    embedding: int
    shrink: int = 2

    def encoder(self) -> "EfficientVitEncoder":
        """A new encoder of this design, its weights random."""
        return EfficientVitEncoder(self)


DESIGNS = {
    "efficientvit_b0": EfficientVitDesign("efficientvit_b0", 8, (16, 32, 64, 128), (2, 2, 2, 2), 1024, 1280),
    "efficientvit_b1": EfficientVitDesign("efficientvit_b1", 16, (32, 64, 128, 256), (2, 3, 3, 4), 1536, 1600),
}
"""By timm's names."""


class _Conv(nn.Module):
    """A convolution with normalisation, or with a bias in its place, and where asked with hard swish."""

    def __init__(
        self, shape: tuple[int, int, int], *, stride: int = 1, groups: int = 1, norm: bool = True, act: bool = True
    ) -> None:
        super().__init__()
        inputs, outputs, kernel = shape
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=not norm)
        self.norm = nn.BatchNorm2d(outputs) if norm else nn.Identity()
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.conv(x))
        return functional.hardswish(y) if self.act else y


class _Separable(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.depth_conv = _Conv((width, width, 3), groups=width)
        self.point_conv = _Conv((width, width, 1), act=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.point_conv(self.depth_conv(x))
        return y


class _Inverted(nn.Module):
    """Expand, convolve each channel, project; without `norm` only the projection is normalised."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1, norm: bool) -> None:
        super().__init__()
        hidden = inputs * EXPANSION
        self.inverted_conv = _Conv((inputs, hidden, 1), norm=norm)
        self.depth_conv = _Conv((hidden, hidden, 3), stride=stride, groups=hidden, norm=norm)
        self.point_conv = _Conv((hidden, outputs, 1), act=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.point_conv(self.depth_conv(self.inverted_conv(x)))
        return y


class _LinearAttention(nn.Module):
    """Attention with ReLU in the place of softmax: keys meet values first, so no place is compared with every other.

    What is summed over all places has no bound that half precision would know of, so sums and quotient are FP32 in
    every precision, as in timm; what leaves is a weighted mean of values again.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // HEAD_WIDTH
        triple = 3 * width
        self.qkv = nn.Sequential(OrderedDict(conv=nn.Conv2d(width, triple, 1, bias=False)))
        self.aggreg = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(triple, triple, 5, padding=2, groups=triple, bias=False),
                nn.Conv2d(triple, triple, 1, groups=3 * self.heads, bias=False),
            )
            for _ in range(SCALES - 1)
        )
        self.proj = _Conv((width * SCALES, width, 1), act=False)

    def forward(self, x: Tensor) -> Tensor:
        count, width, rows, columns = x.shape
        qkv = self.qkv(x)
        places = torch.cat([qkv, *(mixed(qkv) for mixed in self.aggreg)], dim=1)
        heads = places.reshape(count, SCALES * self.heads, 3 * HEAD_WIDTH, rows * columns)
        with torch.autocast(x.device.type, enabled=False):
            seen = _attended(*heads.float().chunk(3, dim=2))
        y: Tensor = self.proj(seen.to(x.dtype).reshape(count, SCALES * width, rows, columns))
        return y


def _attended(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Queries, keys and values [N, heads, width, places] to the values' weighted means of the same shape."""
    query, key = functional.relu(query), functional.relu(key)
    weighted = (value @ key.transpose(-1, -2)) @ query
    weights = (query * key.sum(dim=-1, keepdim=True)).sum(dim=-2, keepdim=True)
    return weighted / (weights + NO_DIVISION_BY_ZERO)


class _Residual(nn.Module):
    def __init__(self, main: nn.Module) -> None:
        super().__init__()
        self.main = main

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.main(x)
        return y


class _Straight(nn.Module):
    """A block that nothing is added to, named as its neighbours are."""

    def __init__(self, main: nn.Module) -> None:
        super().__init__()
        self.main = main

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.main(x)
        return y


class _Attentive(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.context_module = _Residual(_LinearAttention(width))
        self.local_module = _Residual(_Inverted(width, width, norm=False))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.local_module(self.context_module(x))
        return y


class _Stem(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_conv = _Conv((1, width, 3), stride=2)
        self.res0 = _Residual(_Separable(width))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.res0(self.in_conv(x))
        return y


class _Stage(nn.Module):
    def __init__(self, inputs: int, outputs: int, depth: int, *, attentive: bool) -> None:
        super().__init__()
        first = _Straight(_Inverted(inputs, outputs, stride=2, norm=not attentive))
        rest: list[nn.Module] = (
            [_Attentive(outputs) for _ in range(depth)]
            if attentive
            else [_Residual(_Inverted(outputs, outputs, norm=True)) for _ in range(depth - 1)]
        )
        self.blocks = nn.Sequential(first, *rest)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.blocks(x)
        return y


class _Head(nn.Module):
    def __init__(self, width: int, last: int, embedding: int) -> None:
        super().__init__()
        self.in_conv = _Conv((width, last, 1))
        self.classifier = nn.Sequential(nn.Linear(last, embedding, bias=False), nn.LayerNorm(embedding), nn.Hardswish())

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.classifier(self.in_conv(x).mean(dim=(2, 3)))
        return y


class EfficientVitEncoder(TimmEncoder):
    """UINT8 [N, 1, 512, 512] to an embedding [N, D] and feature maps at strides 4, 8, 16 and 32 of the shrunk image."""

    def __init__(self, architecture: EfficientVitDesign) -> None:
        super().__init__(architecture)
        widths = architecture.feature_widths
        self.stem = _Stem(architecture.stem)
        self.stages = nn.ModuleList(
            _Stage(inputs, outputs, depth, attentive=number in ATTENTIVE_STAGES)
            for number, (inputs, outputs, depth) in enumerate(
                zip((architecture.stem, *widths[:-1]), widths, architecture.depths, strict=True)
            )
        )
        self.head = _Head(widths[-1], architecture.last, architecture.embedding)

    def front(self, blocks: int) -> list[nn.Module]:
        """The stem and so many blocks behind it."""
        every = [block for stage in self.stages if isinstance(stage, _Stage) for block in stage.blocks]
        return [self.stem, *every[:blocks]]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return (embedding, feature maps at strides 4, 8, 16 and 32)."""
        x = self.stem(self.normalised(image))
        features: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return (self.head(x), *features)

    def state_from_timm(self, published: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Ours out of timm's: the colour stem folded to one channel, no classifier."""
        kept = {key: tensor for key, tensor in published.items() if not key.startswith(CLASSIFIER)}
        return with_grey_stem(kept, "stem.in_conv.conv.weight", "stem.in_conv.norm.running_mean")
