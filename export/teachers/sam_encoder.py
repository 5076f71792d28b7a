"""The image encoder of the Segment Anything Model: a vision transformer with windows and relative positions.

Kirillov et al., Segment Anything, ICCV 2023; Li et al., ViTDet, ECCV 2022. Names of parameters are the published ones;
every size is read from the checkpoint, so that nothing but the layout is assumed.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

EPSILON = 1e-6
_PREFIX = "image_encoder."


@dataclass(frozen=True, slots=True)
class SamShape:
    """Sizes of the encoder; `spans` is the side, in patches, of what each block attends to: a window or the grid."""

    patch: int
    width: int
    grid: int
    hidden: int
    outputs: int
    heads: int
    spans: tuple[int, ...]

    @property
    def side(self) -> int:
        """Rows and columns of the picture, in pixels."""
        return self.patch * self.grid


def shape_from_state(state: Mapping[str, Tensor]) -> SamShape:
    """Read every size from the shapes of a published state; a missing key is a KeyError."""
    patch = state[f"{_PREFIX}patch_embed.proj.weight"]
    depth = 1 + max(int(key.split(".")[2]) for key in state if key.startswith(f"{_PREFIX}blocks."))
    positions = [state[f"{_PREFIX}blocks.{block}.attn.rel_pos_h"] for block in range(depth)]
    return SamShape(
        patch=patch.shape[-1],
        width=patch.shape[0],
        grid=state[f"{_PREFIX}pos_embed"].shape[1],
        hidden=state[f"{_PREFIX}blocks.0.mlp.lin1.weight"].shape[0],
        outputs=state[f"{_PREFIX}neck.0.weight"].shape[0],
        heads=patch.shape[0] // positions[0].shape[1],
        spans=tuple((table.shape[0] + 1) // 2 for table in positions),
    )


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of a map [N, C, h, w]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, h, w] to [N, C, h, w]."""
        normed = functional.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, EPSILON)
        return normed.permute(0, 3, 1, 2)


class LinearPair(nn.Module):
    """Two linear layers; GELU in the encoder, ReLU in the mask decoder."""

    def __init__(self, width: int, hidden: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.lin1 = nn.Linear(width, hidden)
        self.lin2 = nn.Linear(hidden, width)
        self.act = activation()

    def forward(self, x: Tensor) -> Tensor:
        """[…, D] to […, D]."""
        result: Tensor = self.lin2(self.act(self.lin1(x)))
        return result


class PositionedAttention(nn.Module):
    """Attention within a square of patches, with a learned term for each row and column offset."""

    def __init__(self, width: int, heads: int, span: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * span - 1, width // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * span - 1, width // heads))

    def forward(self, x: Tensor) -> Tensor:
        """[N, s, s, D] to [N, s, s, D]."""
        count, side, _, width = x.shape
        query, key, value = self.qkv(x).view(count, side * side, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        offsets = torch.arange(side, device=x.device)[:, None] - torch.arange(side, device=x.device) + side - 1
        squares = query.reshape(count, self.heads, side, side, -1)
        rows = torch.einsum("nhrcd,rkd->nhrck", squares, self.rel_pos_h[offsets])
        columns = torch.einsum("nhrcd,ckd->nhrck", squares, self.rel_pos_w[offsets])
        bias = (rows[..., :, None] + columns[..., None, :]).reshape(count, self.heads, side * side, side * side)
        y = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        result: Tensor = self.proj(y.transpose(1, 2).reshape(count, side, side, width))
        return result


class WindowedBlock(nn.Module):
    """Attention within windows of `span` patches (the last ones padded), then the MLP."""

    def __init__(self, shape: SamShape, span: int) -> None:
        super().__init__()
        self.span = span
        self.norm1 = nn.LayerNorm(shape.width, eps=EPSILON)
        self.attn = PositionedAttention(shape.width, shape.heads, span)
        self.norm2 = nn.LayerNorm(shape.width, eps=EPSILON)
        self.mlp = LinearPair(shape.width, shape.hidden, nn.GELU)

    def forward(self, x: Tensor) -> Tensor:
        """[N, g, g, D] to [N, g, g, D]."""
        x = x + self._attended(self.norm1(x))
        result: Tensor = x + self.mlp(self.norm2(x))
        return result

    def _attended(self, x: Tensor) -> Tensor:
        count, grid, _, width = x.shape
        span = self.span
        missing = -grid % span
        x = functional.pad(x, (0, 0, 0, missing, 0, missing))
        tiles = (grid + missing) // span
        windows = x.reshape(count, tiles, span, tiles, span, width).transpose(2, 3).reshape(-1, span, span, width)
        y: Tensor = self.attn(windows).view(count, tiles, tiles, span, span, width).transpose(2, 3)
        return y.reshape(count, tiles * span, tiles * span, width)[:, :grid, :grid]


class PatchGrid(nn.Module):
    """Squares of pixels to a grid of tokens."""

    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, pixels: Tensor) -> Tensor:
        """[N, 3, side, side] to [N, g, g, D]."""
        result: Tensor = self.proj(pixels).permute(0, 2, 3, 1)
        return result


class SamEncoder(nn.Module):
    """Pixels to the embedding that masks are decoded from."""

    def __init__(self, shape: SamShape) -> None:
        super().__init__()
        self.shape = shape
        self.pos_embed = nn.Parameter(torch.zeros(1, shape.grid, shape.grid, shape.width))
        self.patch_embed = PatchGrid(shape.patch, shape.width)
        self.blocks = nn.ModuleList(WindowedBlock(shape, span) for span in shape.spans)
        self.neck = nn.Sequential(
            nn.Conv2d(shape.width, shape.outputs, 1, bias=False),
            ChannelNorm(shape.outputs),
            nn.Conv2d(shape.outputs, shape.outputs, 3, padding=1, bias=False),
            ChannelNorm(shape.outputs),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """[N, 3, side, side] to [N, C, g, g]."""
        x = self.patch_embed(pixels) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        result: Tensor = self.neck(x.permute(0, 3, 1, 2))
        return result
