"""The prompt encoder and the mask decoder of the Segment Anything Model, for boxes as prompts.

Kirillov et al., Segment Anything, ICCV 2023, appendix A. Names of parameters are the published ones.
"""

import itertools
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from export.teachers.sam_encoder import ChannelNorm, LinearPair

HEADS = 8
"""Of every attention in the published mask decoder; no shape tells it."""
MASK_TOKENS = 4
"""One mask for an unambiguous prompt, and three for an ambiguous one."""
MASK_WIDTH = 16
"""Channels between a mask prompt and its embedding; mask prompts are not used here, but their weights are read."""
CORNERS = (2, 3)
"""Which of the four learned point kinds mark a box's first and second corner."""


class _Frequencies(nn.Module):
    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.zeros(2, width // 2))

    def forward(self, shares: Tensor) -> Tensor:
        """Points [..., 2] (x, y as shares of the picture) to their encoding [..., width]."""
        angles = 2.0 * math.pi * ((2.0 * shares - 1.0) @ self.positional_encoding_gaussian_matrix)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class PromptEncoder(nn.Module):
    """Boxes to tokens, and each place of the grid to its position's encoding."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pe_layer = _Frequencies(width)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, width) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, width)
        self.no_mask_embed = nn.Embedding(1, width)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, MASK_WIDTH // 4, 2, 2),
            ChannelNorm(MASK_WIDTH // 4),
            nn.GELU(),
            nn.Conv2d(MASK_WIDTH // 4, MASK_WIDTH, 2, 2),
            ChannelNorm(MASK_WIDTH),
            nn.GELU(),
            nn.Conv2d(MASK_WIDTH, width, 1),
        )

    def boxes(self, boxes: Tensor, side: int) -> Tensor:
        """Boxes [N, 4] as shares of a picture of `side` pixels to tokens [N, 2, D]."""
        corners = self.pe_layer(boxes.view(-1, 2, 2) + 0.5 / side)
        kinds = [module.weight for module in self.point_embeddings if isinstance(module, nn.Embedding)]
        marked: Tensor = corners + torch.cat([kinds[corner] for corner in CORNERS])
        return marked

    def grid(self, side: int) -> Tensor:
        """The positions of a grid of `side` x `side` places, [1, D, side, side]."""
        places = (torch.arange(side, device=self.no_mask_embed.weight.device) + 0.5) / side
        rows, columns = torch.meshgrid(places, places, indexing="ij")
        encoded: Tensor = self.pe_layer(torch.stack([columns, rows], dim=-1))
        return encoded.permute(2, 0, 1)[None]


class NarrowAttention(nn.Module):
    """Attention of one set of tokens to another, in fewer channels."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(width, inner)
        self.k_proj = nn.Linear(width, inner)
        self.v_proj = nn.Linear(width, inner)
        self.out_proj = nn.Linear(inner, width)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[N, T, D], [N, S, D] twice, to [N, T, D]."""
        parts = (self.q_proj(query), self.k_proj(key), self.v_proj(value))
        query, key, value = (part.unflatten(2, (HEADS, -1)).transpose(1, 2) for part in parts)
        y = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        result: Tensor = self.out_proj(y)
        return result


class TwoWayBlock(nn.Module):
    """Tokens attend to themselves and to the picture, then the picture attends to the tokens."""

    def __init__(self, width: int, inner: int, hidden: int, *, first: bool) -> None:
        super().__init__()
        self.first = first
        self.self_attn = NarrowAttention(width, width)
        self.norm1 = nn.LayerNorm(width)
        self.cross_attn_token_to_image = NarrowAttention(width, inner)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = LinearPair(width, hidden, nn.ReLU)
        self.norm3 = nn.LayerNorm(width)
        self.norm4 = nn.LayerNorm(width)
        self.cross_attn_image_to_token = NarrowAttention(width, inner)

    def forward(self, tokens: Tensor, picture: Tensor, marks: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [N, T, D] and picture [N, S, D], with the positions of both."""
        marked = tokens if self.first else tokens + marks
        attended = self.self_attn(marked, marked, tokens)
        tokens = self.norm1(attended if self.first else tokens + attended)
        tokens = self.norm2(tokens + self.cross_attn_token_to_image(tokens + marks, picture + places, picture))
        tokens = self.norm3(tokens + self.mlp(tokens))
        picture = self.norm4(picture + self.cross_attn_image_to_token(picture + places, tokens + marks, tokens))
        return tokens, picture


class TwoWayTransformer(nn.Module):
    """The two blocks, and a last look of the tokens at the picture."""

    def __init__(self, width: int, inner: int, hidden: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TwoWayBlock(width, inner, hidden, first=number == 0) for number in range(depth))
        self.final_attn_token_to_image = NarrowAttention(width, inner)
        self.norm_final_attn = nn.LayerNorm(width)

    def forward(self, picture: Tensor, places: Tensor, marks: Tensor) -> tuple[Tensor, Tensor]:
        """Picture and positions [N, S, D], tokens [N, T, D], to (tokens, picture)."""
        tokens = marks
        for layer in self.layers:
            tokens, picture = layer(tokens, picture, marks, places)
        tokens = tokens + self.final_attn_token_to_image(tokens + marks, picture + places, picture)
        return self.norm_final_attn(tokens), picture


class Perceptron(nn.Module):
    """Three linear layers with ReLU between."""

    def __init__(self, width: int, hidden: int, outputs: int) -> None:
        super().__init__()
        widths = (width, hidden, hidden, outputs)
        self.layers = nn.ModuleList(nn.Linear(one, other) for one, other in itertools.pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """[N, width] to [N, outputs]."""
        for layer in self.layers[:-1]:
            x = functional.relu(layer(x))
        result: Tensor = self.layers[-1](x)
        return result


class MaskDecoder(nn.Module):
    """A picture's embedding and the tokens of a prompt to the mask of what is meant."""

    def __init__(self, width: int, inner: int, hidden: int, depth: int, scored: int) -> None:
        super().__init__()
        self.transformer = TwoWayTransformer(width, inner, hidden, depth)
        self.iou_token = nn.Embedding(1, width)
        self.mask_tokens = nn.Embedding(MASK_TOKENS, width)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(width, width // 4, 2, 2),
            ChannelNorm(width // 4),
            nn.GELU(),
            nn.ConvTranspose2d(width // 4, width // 8, 2, 2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(Perceptron(width, width, width // 8) for _ in range(MASK_TOKENS))
        self.iou_prediction_head = Perceptron(width, scored, MASK_TOKENS)

    def forward(self, picture: Tensor, places: Tensor, prompt: Tensor) -> Tensor:
        """Embedding [N, D, g, g], positions [1, D, g, g] and tokens [N, T, D] to logits [N, 1, 4 g, 4 g]."""
        count, _, grid, _ = picture.shape
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        marks = torch.cat([own.expand(count, -1, -1), prompt], dim=1)
        flat = places.expand(count, -1, -1, -1).flatten(2).transpose(1, 2)
        tokens, seen = self.transformer(picture.flatten(2).transpose(1, 2), flat, marks)
        fine = self.output_upscaling(seen.transpose(1, 2).unflatten(2, (grid, grid)))
        weights = self.output_hypernetworks_mlps[0](tokens[:, 1])
        return torch.einsum("nc,nchw->nhw", weights, fine)[:, None]


def decoder_from_state(state: Mapping[str, Tensor]) -> MaskDecoder:
    """A decoder of the sizes of a published state; a missing key is a KeyError."""
    prefix = "mask_decoder.transformer.layers."
    inner, width = state[f"{prefix}0.cross_attn_token_to_image.q_proj.weight"].shape
    hidden = state[f"{prefix}0.mlp.lin1.weight"].shape[0]
    depth = 1 + max(int(key.removeprefix(prefix).split(".")[0]) for key in state if key.startswith(prefix))
    scored = state["mask_decoder.iou_prediction_head.layers.0.weight"].shape[0]
    return MaskDecoder(width, inner, hidden, depth, scored)
