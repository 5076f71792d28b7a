"""A plain vision transformer: the trunk of RAD-DINO and of BiomedCLIP's image tower.

After Dosovitskiy et al., ICLR 2021, with the layer scale of Touvron et al., ICCV 2021, where a checkpoint has one.
Names of parameters are timm's. The classes are our own so that a published checkpoint can be read without the
publisher's library; tests compare them with it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class VitShape:
    """Sizes of a vision transformer; `side` and `patch` in pixels, `hidden` of the MLP in each block."""

    side: int
    patch: int
    width: int
    depth: int
    heads: int
    hidden: int
    epsilon: float
    scaled: bool

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.side // self.patch


class Attention(nn.Module):
    """Multi-head attention of tokens among themselves, one matrix for query, key and value."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, D] to [N, T, D]."""
        count, tokens, width = x.shape
        query, key, value = self.qkv(x).view(count, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        y = functional.scaled_dot_product_attention(query, key, value)
        result: Tensor = self.proj(y.transpose(1, 2).reshape(count, tokens, width))
        return result


class Mlp(nn.Module):
    """Two linear layers with GELU between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[…, D] to […, D]."""
        result: Tensor = self.fc2(functional.gelu(self.fc1(x)))
        return result


class LayerScale(nn.Module):
    """A learned factor for each channel of a residual branch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """[…, D] to […, D]."""
        return x * self.gamma


class Block(nn.Module):
    """Attention and MLP, each normalised before and added after."""

    def __init__(self, shape: VitShape) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(shape.width, eps=shape.epsilon)
        self.attn = Attention(shape.width, shape.heads)
        self.ls1 = LayerScale(shape.width) if shape.scaled else nn.Identity()
        self.norm2 = nn.LayerNorm(shape.width, eps=shape.epsilon)
        self.mlp = Mlp(shape.width, shape.hidden)
        self.ls2 = LayerScale(shape.width) if shape.scaled else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, D] to [N, T, D]."""
        x = x + self.ls1(self.attn(self.norm1(x)))
        result: Tensor = x + self.ls2(self.mlp(self.norm2(x)))
        return result


class PatchEmbedding(nn.Module):
    """Squares of pixels to tokens."""

    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, pixels: Tensor) -> Tensor:
        """[N, 3, side, side] to [N, grid², D]."""
        result: Tensor = self.proj(pixels).flatten(2).transpose(1, 2)
        return result


class Vit(nn.Module):
    """The trunk: pixels to normalised tokens, the class token first."""

    def __init__(self, shape: VitShape) -> None:
        super().__init__()
        self.shape = shape
        self.cls_token = nn.Parameter(torch.zeros(1, 1, shape.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + shape.grid**2, shape.width))
        self.patch_embed = PatchEmbedding(shape.patch, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.depth))
        self.norm = nn.LayerNorm(shape.width, eps=shape.epsilon)

    def forward(self, pixels: Tensor) -> Tensor:
        """[N, 3, side, side] to [N, 1 + grid², D]."""
        x = self.patch_embed(pixels)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        result: Tensor = self.norm(x)
        return result
