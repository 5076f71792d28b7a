"""BiomedCLIP's text tower: BERT's encoder (Devlin et al., NAACL 2019) in the layout of transformers' `BertModel`."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class BertShape:
    """Sizes of the encoder, and the token that fills up short texts."""

    words: int
    width: int
    depth: int
    heads: int
    hidden: int
    positions: int
    kinds: int
    epsilon: float
    padding: int


class _Embeddings(nn.Module):
    def __init__(self, shape: BertShape) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(shape.words, shape.width)
        self.position_embeddings = nn.Embedding(shape.positions, shape.width)
        self.token_type_embeddings = nn.Embedding(shape.kinds, shape.width)
        self.LayerNorm = nn.LayerNorm(shape.width, eps=shape.epsilon)

    def forward(self, tokens: Tensor) -> Tensor:
        positions = self.position_embeddings.weight[: tokens.shape[1]]
        x = self.word_embeddings(tokens) + positions + self.token_type_embeddings.weight[0]
        result: Tensor = self.LayerNorm(x)
        return result


class _Queries(nn.Module):
    def __init__(self, shape: BertShape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.query = nn.Linear(shape.width, shape.width)
        self.key = nn.Linear(shape.width, shape.width)
        self.value = nn.Linear(shape.width, shape.width)

    def forward(self, x: Tensor, known: Tensor) -> Tensor:
        parts = (self.query(x), self.key(x), self.value(x))
        query, key, value = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts)
        y = functional.scaled_dot_product_attention(query, key, value, attn_mask=known[:, None, None, :])
        return y.transpose(1, 2).flatten(2)


class _Added(nn.Module):
    """A linear layer whose output is added to what came before, and normalised."""

    def __init__(self, inputs: int, shape: BertShape) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, shape.width)
        self.LayerNorm = nn.LayerNorm(shape.width, eps=shape.epsilon)

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        result: Tensor = self.LayerNorm(self.dense(x) + before)
        return result


class _Layer(nn.Module):
    def __init__(self, shape: BertShape) -> None:
        super().__init__()
        self.attention = nn.ModuleDict({"self": _Queries(shape), "output": _Added(shape.width, shape)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(shape.width, shape.hidden)})
        self.output = _Added(shape.hidden, shape)

    def forward(self, x: Tensor, known: Tensor) -> Tensor:
        attended = self.attention["output"](self.attention["self"](x, known), x)
        result: Tensor = self.output(functional.gelu(self.intermediate["dense"](attended)), attended)
        return result


class Bert(nn.Module):
    """Tokens to one vector each."""

    def __init__(self, shape: BertShape) -> None:
        super().__init__()
        self.shape = shape
        self.embeddings = _Embeddings(shape)
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(_Layer(shape) for _ in range(shape.depth))})

    def forward(self, tokens: Tensor) -> Tensor:
        """Token numbers [N, T] to [N, T, D]; padding is neither read nor counted."""
        known = tokens != self.shape.padding
        x = self.embeddings(tokens)
        for layer in self.encoder["layer"]:  # type: ignore[attr-defined]
            x = layer(x, known)
        return torch.as_tensor(x)
