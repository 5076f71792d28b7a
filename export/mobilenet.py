"""MobileNetV4 as a student: universal inverted bottlenecks, convolutions and ReLU only, one channel in.

Qin et al., MobileNetV4, ECCV 2024: the convolutional small and medium models. Names of parameters are timm's, so that
its weights can be read without it; tests compare both.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from export.encoder import TimmEncoder, with_grey_stem

EXPANDED_LAST = 960
EMBEDDING = 1280
RENAMED = {"conv_stem.": "stem.", "bn1.": "stem_norm.", "conv_head.": "head.", "norm_head.": "head_norm."}
"""Beginnings of timm's names, to ours."""


@dataclass(frozen=True, slots=True)
class Plain:
    """A convolution with normalisation and ReLU."""

    kernel: int
    stride: int
    width: int


@dataclass(frozen=True, slots=True)
class Fused:
    """A strided 3 x 3 expansion and a projection."""

    stride: int
    expansion: int
    width: int


@dataclass(frozen=True, slots=True)
class Universal:
    """The universal inverted bottleneck: `start` and `middle` are kernels of depthwise convolutions, 0 for none."""

    start: int
    middle: int
    stride: int
    expansion: int
    width: int


Row = Plain | Fused | Universal


@dataclass(frozen=True, slots=True)
class MobileNetDesign:
    """One model of the family; its stages end at strides 4, 8, 16 and 32 (and the first at 2 or 4)."""

    name: str
    stem: int
    stages: tuple[tuple[Row, ...], ...]
    embedding: int = EMBEDDING
    shrink: int = 2

    @property
    def feature_widths(self) -> tuple[int, ...]:
        """Channels of the feature maps at strides 4, 8, 16 and 32."""
        return tuple(rows[-1].width for rows in self.stages)

    def encoder(self) -> "MobileNetEncoder":
        """A new encoder of this design, its weights random."""
        return MobileNetEncoder(self)


def _u(start: int, middle: int, stride: int, expansion: int, width: int) -> Universal:
    return Universal(start, middle, stride, expansion, width)


DESIGNS = {
    "mobilenetv4_conv_small": MobileNetDesign(
        "mobilenetv4_conv_small",
        32,
        (
            (Plain(3, 2, 32), Plain(1, 1, 32)),
            (Plain(3, 2, 96), Plain(1, 1, 64)),
            (_u(5, 5, 2, 3, 96), *(_u(0, 3, 1, 2, 96),) * 4, _u(3, 0, 1, 4, 96)),
            (
                _u(3, 3, 2, 6, 128),
                _u(5, 5, 1, 4, 128),
                _u(0, 5, 1, 4, 128),
                _u(0, 5, 1, 3, 128),
                *(_u(0, 3, 1, 4, 128),) * 2,
            ),
        ),
    ),
    "mobilenetv4_conv_medium": MobileNetDesign(
        "mobilenetv4_conv_medium",
        32,
        (
            (Fused(2, 4, 48),),
            (_u(3, 5, 2, 4, 80), _u(3, 3, 1, 2, 80)),
            (
                _u(3, 5, 2, 6, 160),
                *(_u(3, 3, 1, 4, 160),) * 2,
                _u(3, 5, 1, 4, 160),
                _u(3, 3, 1, 4, 160),
                _u(3, 0, 1, 4, 160),
                _u(0, 0, 1, 2, 160),
                _u(3, 0, 1, 4, 160),
            ),
            (
                _u(5, 5, 2, 6, 256),
                _u(5, 5, 1, 4, 256),
                *(_u(3, 5, 1, 4, 256),) * 2,
                _u(0, 0, 1, 4, 256),
                _u(3, 0, 1, 4, 256),
                _u(3, 5, 1, 2, 256),
                _u(5, 5, 1, 4, 256),
                *(_u(0, 0, 1, 4, 256),) * 2,
                _u(5, 0, 1, 2, 256),
            ),
        ),
    ),
}
"""By timm's names."""


class _ConvNorm(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1, act: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn(self.conv(x))
        return functional.relu(y) if self.act else y


class _Plain(nn.Module):
    def __init__(self, inputs: int, row: Plain) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, row.width, row.kernel, row.stride, row.kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(row.width)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn1(self.conv(x)))


class _Fused(nn.Module):
    def __init__(self, inputs: int, row: Fused) -> None:
        super().__init__()
        hidden = inputs * row.expansion
        self.conv_exp = nn.Conv2d(inputs, hidden, 3, row.stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv_pwl = nn.Conv2d(hidden, row.width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(row.width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn2(self.conv_pwl(functional.relu(self.bn1(self.conv_exp(x)))))
        return y


class _Universal(nn.Module):
    def __init__(self, inputs: int, row: Universal) -> None:
        super().__init__()
        hidden = inputs * row.expansion
        start_stride, middle_stride = (1, row.stride) if row.middle else (row.stride, 1)
        self.dw_start = (
            _ConvNorm(inputs, inputs, row.start, stride=start_stride, groups=inputs, act=False)
            if row.start
            else nn.Identity()
        )
        self.pw_exp = _ConvNorm(inputs, hidden, 1, act=True)
        self.dw_mid = (
            _ConvNorm(hidden, hidden, row.middle, stride=middle_stride, groups=hidden, act=True)
            if row.middle
            else nn.Identity()
        )
        self.pw_proj = _ConvNorm(hidden, row.width, 1, act=False)
        self.residual = row.stride == 1 and inputs == row.width

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.pw_proj(self.dw_mid(self.pw_exp(self.dw_start(x))))
        return x + y if self.residual else y


def _block(inputs: int, row: Row) -> nn.Module:
    if isinstance(row, Plain):
        return _Plain(inputs, row)
    return _Fused(inputs, row) if isinstance(row, Fused) else _Universal(inputs, row)


class MobileNetEncoder(TimmEncoder):
    """UINT8 [N, 1, 512, 512] to an embedding [N, D] and feature maps at strides 4, 8, 16 and 32 of the shrunk image."""

    architecture: MobileNetDesign

    def __init__(self, architecture: MobileNetDesign) -> None:
        super().__init__(architecture)
        self.stem = nn.Conv2d(1, architecture.stem, 3, 2, 1, bias=False)
        self.stem_norm = nn.BatchNorm2d(architecture.stem)
        self.blocks = nn.ModuleList()
        self.taps: list[int] = []
        width = architecture.stem
        for rows in architecture.stages:
            for row in rows:
                self.blocks.append(_block(width, row))
                width = row.width
            self.taps.append(len(self.blocks) - 1)
        self.last = _Plain(width, Plain(1, 1, EXPANDED_LAST))
        self.head = nn.Conv2d(EXPANDED_LAST, architecture.embedding, 1, bias=False)
        self.head_norm = nn.BatchNorm2d(architecture.embedding)

    def front(self, blocks: int) -> list[nn.Module]:
        """The stem and so many blocks behind it."""
        return [self.stem, self.stem_norm, *self.blocks[:blocks]]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return (embedding, feature maps at strides 4, 8, 16 and 32)."""
        x = functional.relu(self.stem_norm(self.stem(self.normalised(image))))
        features: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.taps:
                features.append(x)
        pooled = self.last(x).mean(dim=(2, 3), keepdim=True)
        embedding = functional.relu(self.head_norm(self.head(pooled))).flatten(1)
        return (embedding, *features)

    def state_from_timm(self, published: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Ours out of timm's: blocks renumbered, the colour stem folded to one channel, no classifier."""
        stages = self.architecture.stages
        places = [(stage, row) for stage, rows in enumerate(stages) for row in range(len(rows))]
        beginnings = RENAMED | {f"blocks.{stage}.{row}.": f"blocks.{n}." for n, (stage, row) in enumerate(places)}
        beginnings[f"blocks.{len(stages)}.0."] = "last."
        kept = {
            next((new + key.removeprefix(old) for old, new in beginnings.items() if key.startswith(old)), key): tensor
            for key, tensor in published.items()
            if not key.startswith("classifier.")
        }
        return with_grey_stem(kept, "stem.weight", "stem_norm.running_mean")
