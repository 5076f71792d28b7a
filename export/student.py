"""The networks that are trained here: EfficientNet-Lite encoders with light heads, as plain convolutions.

EfficientNet-Lite (Apache-2.0, the TPU team's variant without squeeze-and-excitation and with ReLU6) quantises well and
needs no operator that a runtime may lack. The same module makes the teacher (Lite2), the student (Lite0) and the
narrow net of the tests. Everything from UINT8 [N, 1, 512, 512] on happens inside `Encoder`, so that the exported
graph repeats training exactly.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from appliance.domain.errors import InputError
from export import efficientvit, mobilenet, repvit
from export.encoder import Design, StudentEncoder

NORM_EPSILON = 1e-3
"""Batch normalisation's epsilon in the published EfficientNet-Lite weights."""
FEATURE_STRIDES = (4, 8, 16, 32)
DECODER_WIDTH = 48


@dataclass(frozen=True, slots=True)
class Stage:
    """One row of the EfficientNet table: kernel, stride of the first block, expansion."""

    kernel: int
    stride: int
    expansion: int


STAGES = (
    Stage(3, 1, 1),
    Stage(3, 2, 6),
    Stage(5, 2, 6),
    Stage(3, 2, 6),
    Stage(5, 1, 6),
    Stage(5, 2, 6),
    Stage(3, 1, 6),
)
"""Table 1 of Tan and Le, EfficientNet, ICML 2019."""
TAPPED_STAGES = (1, 2, 4, 6)
"""The last stage at each of `FEATURE_STRIDES`."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """The widths and depths of one encoder; `shrink` is the factor by which the input is averaged first."""

    name: str
    stem: int
    widths: tuple[int, ...]
    repeats: tuple[int, ...]
    embedding: int
    shrink: int = 2

    @property
    def feature_widths(self) -> tuple[int, ...]:
        """Channels of the feature maps at `FEATURE_STRIDES`."""
        return tuple(self.widths[stage] for stage in TAPPED_STAGES)

    def encoder(self) -> "Encoder":
        """A new encoder of this design, its weights random."""
        return Encoder(self)


_EFFICIENT_NETS = {
    "efficientnet_lite0": Architecture(
        "efficientnet_lite0", 32, (16, 24, 40, 80, 112, 192, 320), (1, 2, 2, 3, 3, 4, 1), 1280
    ),
    "efficientnet_lite2": Architecture(
        "efficientnet_lite2", 32, (16, 24, 48, 88, 120, 208, 352), (1, 3, 3, 4, 4, 5, 1), 1280
    ),
    "narrow": Architecture("narrow", 8, (8, 8, 8, 16, 16, 16, 32), (1, 1, 1, 1, 1, 1, 1), 32, shrink=8),
}
"""`narrow` exists for tests: it has no published weights and learns nothing worth keeping."""

ARCHITECTURES: dict[str, Design] = {
    **_EFFICIENT_NETS,
    **mobilenet.DESIGNS,
    **repvit.DESIGNS,
    **efficientvit.DESIGNS,
}
"""By the name in a recipe, which is timm's for every published one."""


def architecture_named(name: str) -> Design:
    """The design of a student, or of a supervised teacher, by its name in a recipe.

    Raises:
        InputError: No such architecture.
    """
    if name not in ARCHITECTURES:
        raise InputError(f"No architecture is named {name!r}.", f"Known: {', '.join(ARCHITECTURES)}.")
    return ARCHITECTURES[name]


class SamePaddedConv(nn.Conv2d):
    """A convolution with TensorFlow's SAME padding, which puts the odd pixel behind, for even input sizes."""

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102 - the class says it
        kernel, stride = self.kernel_size[0], self.stride[0]
        total = kernel - stride
        before, after = total // 2, total - total // 2
        if before != after:
            x = functional.pad(x, (before, after, before, after))
            return functional.conv2d(x, self.weight, self.bias, self.stride, 0, 1, self.groups)
        return functional.conv2d(x, self.weight, self.bias, self.stride, before, 1, self.groups)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=NORM_EPSILON, momentum=0.01)


class InvertedResidual(nn.Module):
    """Expand, convolve each channel, project; add the input where the shape allows."""

    def __init__(self, inputs: int, outputs: int, stage: Stage, *, first: bool) -> None:
        super().__init__()
        stride = stage.stride if first else 1
        hidden = inputs * stage.expansion
        self.residual = stride == 1 and inputs == outputs
        self.expand = nn.Identity() if stage.expansion == 1 else nn.Conv2d(inputs, hidden, 1, bias=False)
        self.expand_norm = nn.Identity() if stage.expansion == 1 else _norm(hidden)
        self.expands = stage.expansion != 1
        self.depthwise = SamePaddedConv(hidden, hidden, stage.kernel, stride, groups=hidden, bias=False)
        self.depthwise_norm = _norm(hidden)
        self.project = nn.Conv2d(hidden, outputs, 1, bias=False)
        self.project_norm = _norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] to [N, outputs, H / stride, W / stride]."""
        y = functional.relu6(self.expand_norm(self.expand(x))) if self.expands else x
        y = functional.relu6(self.depthwise_norm(self.depthwise(y)))
        y = self.project_norm(self.project(y))
        result: Tensor = x + y if self.residual else y
        return result


class Encoder(StudentEncoder):
    """UINT8 [N, 1, 512, 512] to an embedding [N, D] and feature maps at strides 4, 8, 16 and 32 of the shrunk image.

    The published three-channel stem is folded to one channel, which is exact for a grey picture.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__(architecture)
        self.stem = SamePaddedConv(1, architecture.stem, 3, 2, bias=False)
        self.stem_norm = _norm(architecture.stem)
        self.blocks = nn.ModuleList()
        self.taps: list[int] = []
        width = architecture.stem
        for index, stage in enumerate(STAGES):
            for repeat in range(architecture.repeats[index]):
                self.blocks.append(InvertedResidual(width, architecture.widths[index], stage, first=repeat == 0))
                width = architecture.widths[index]
            if index in TAPPED_STAGES:
                self.taps.append(len(self.blocks) - 1)
        self.head = nn.Conv2d(width, architecture.embedding, 1, bias=False)
        self.head_norm = _norm(architecture.embedding)

    def front(self, blocks: int) -> list[nn.Module]:
        """The stem and so many blocks behind it."""
        return [self.stem, self.stem_norm, *self.blocks[:blocks]]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return (embedding, feature maps in the order of `FEATURE_STRIDES`)."""
        x = functional.relu6(self.stem_norm(self.stem(self.normalised(image))))
        features: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.taps:
                features.append(x)
        pooled = functional.relu6(self.head_norm(self.head(x))).mean(dim=(2, 3))
        return (pooled, *features)


class TriageHead(nn.Module):
    """One logit out of the embedding."""

    def __init__(self, embedding: int, dropout: float = 0.2) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(embedding, 1)

    def forward(self, embedding: Tensor) -> Tensor:
        """[N, D] to logits [N, 1]."""
        logits: Tensor = self.linear(self.dropout(embedding))
        return logits


class LungDecoder(nn.Module):
    """A top-down decoder: each stride adds its own detail, the last step doubles the resolution by sub-pixels."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(width, DECODER_WIDTH, 1) for width in widths)
        self.smooth = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(DECODER_WIDTH, DECODER_WIDTH, 3, padding=1, groups=DECODER_WIDTH, bias=False),
                nn.Conv2d(DECODER_WIDTH, DECODER_WIDTH, 1, bias=False),
                nn.BatchNorm2d(DECODER_WIDTH),
                nn.ReLU6(),
            )
            for _ in widths
        )
        self.subpixels = nn.Conv2d(DECODER_WIDTH, 4, 3, padding=1)

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        """Feature maps at `FEATURE_STRIDES` to logits [N, 1, H / 2, W / 2] of the shrunk image's size H x W."""
        x: Tensor | None = None
        for feature, lateral, smooth in reversed(list(zip(features, self.laterals, self.smooth, strict=True))):
            y = lateral(feature)
            if x is not None:
                y = y + functional.interpolate(x, scale_factor=2.0, mode="nearest")
            x = smooth(y)
        return functional.pixel_shuffle(self.subpixels(x), 2)


@dataclass(frozen=True, slots=True)
class Outputs:
    """What one forward pass says: logits [N, 1] of both triage heads, lung logits [N, 1, h, w], embedding [N, D]."""

    adult: Tensor
    paediatric: Tensor
    lungs: Tensor
    embedding: Tensor


class MultiTaskNet(nn.Module):
    """One encoder, three heads: what is trained as teacher and as student."""

    def __init__(self, architecture: Design) -> None:
        super().__init__()
        self.encoder = architecture.encoder()
        self.adult = TriageHead(architecture.embedding)
        self.paediatric = TriageHead(architecture.embedding)
        self.lungs = LungDecoder(architecture.feature_widths)

    def forward(self, image: Tensor) -> Outputs:
        """UINT8 [N, 1, 512, 512] to logits."""
        embedding, *features = self.encoder(image)
        return Outputs(self.adult(embedding), self.paediatric(embedding), self.lungs(tuple(features)), embedding)


def use_channels_last(net: nn.Module) -> None:
    """Lay a net's weights out as the CPU convolves them fastest."""
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
