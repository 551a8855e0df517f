"""A causal transformer over a text's tokens and a picture's codes, and what retro-fits it to stories. Parts alone; see `models.story_decoder`.

    block   x + A(LN x),  then  x + M(LN x)                     A causal attention, M a GELU MLP of 4 d; 12 d^2 + 13 d numbers
    source  x + m * C(LN_q x, LN_c s)                           C attends to the source frame's embeddings s, without a mask; its last
                                                                layer is zero at the start; m is 0 before the last text position
    story   g = block(linear(e)),  e [B, L, E] sentence embeddings of L captions, causal over the captions
    prompt  p = linear(tanh(linear(E)))                         learned tokens, E [P, d]

minDALL-E's decoder (github.com/kakaobrain/minDALL-E) and StoryDALL-E, arXiv:2209.06192, section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: keys and values [B, H, T, d / H] of the positions so far
Cache = tuple[Tensor, Tensor]


class Attention(nn.Module):
    """Attention of `heads` heads, to x itself (causal) or to a context."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def keys(self, x: Tensor) -> Cache:
        return self.split(self.k_proj(x)), self.split(self.v_proj(x))

    def forward(self, x: Tensor, kept: Cache, causal: bool) -> Tensor:
        """Of x [B, T, d] to what is kept; causal where x are the last T of these positions."""
        q, (k, v) = self.split(self.q_proj(x)), kept
        causal = causal and q.shape[2] > 1  # one position sees all that came before
        found = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return self.out_proj(found.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attention_norm, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.mlp_norm, self.fc1, self.fc2 = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)  # fmt: skip

    def attend(self, x: Tensor, before: Cache | None = None, causal: bool = True) -> tuple[Tensor, Cache]:
        """x with its attention added; and the keys and values so far."""
        normed = self.attention_norm(x)
        kept = self.attention.keys(normed)
        if before is not None:
            kept = (torch.cat([before[0], kept[0]], 2), torch.cat([before[1], kept[1]], 2))
        return x + self.attention(normed, kept, causal), kept

    def think(self, x: Tensor) -> Tensor:
        found: Tensor = x + self.fc2(F.gelu(self.fc1(self.mlp_norm(x))))
        return found

    def forward(self, x: Tensor, causal: bool = True) -> Tensor:
        return self.think(self.attend(x, None, causal)[0])


class SourceAttention(nn.Module):
    """A block's look at the source frame; nothing at the start."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.query_norm, self.context_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        nn.init.zeros_(self.attention.out_proj.weight)
        nn.init.zeros_(self.attention.out_proj.bias)

    def keys(self, source: Tensor) -> Cache:
        """Of the source frame's embeddings [B, N, d]; once for a frame."""
        return self.attention.keys(self.context_norm(source))

    def forward(self, x: Tensor, kept: Cache, acts: Tensor) -> Tensor:
        """What is added to x [B, T, d], where `acts` [T] is 1."""
        found: Tensor = self.attention(self.query_norm(x), kept, causal=False)
        return found * acts.to(x)[:, None]


class Story(nn.Module):
    """A token for each caption that has seen those before it, or all (`causal` false)."""

    def __init__(self, width: int, heads: int, sentence: int, causal: bool = True):
        super().__init__()
        self.causal = causal
        self.linear, self.block = nn.Linear(sentence, width), Block(width, heads)

    def forward(self, sentences: Tensor) -> Tensor:
        """[B, L, E] -> [B, L, d]."""
        found: Tensor = self.block(self.linear(sentences), self.causal)
        return found


class Prompt(nn.Module):
    """Learned tokens through a small MLP."""

    def __init__(self, count: int, width: int, dropout: float = 0.2):
        super().__init__()
        self.embedding, self.dropout = nn.Embedding(count, width), nn.Dropout(dropout)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))

    def forward(self) -> Tensor:
        """[P, d]."""
        found: Tensor = self.dropout(self.mlp(self.embedding.weight))
        return found


class PictureDecoder(nn.Module):
    """The backbone: embeddings, blocks and heads.

    Args:
        width, heads, layers: d, and of the blocks.
        words, text_length: the text's vocabulary and positions.
        codes, length: a picture's, likewise.
    """

    def __init__(
        self, width: int, heads: int, layers: int, words: int, text_length: int, codes: int, length: int
    ):
        super().__init__()
        self.text_embedding, self.text_positions = (
            nn.Embedding(words, width),
            nn.Embedding(text_length, width),
        )
        self.image_embedding, self.image_positions = nn.Embedding(codes, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.text_head = nn.Linear(width, words, bias=False)
        self.image_head = nn.Linear(width, codes, bias=False)
        for embedding in (
            self.text_embedding,
            self.text_positions,
            self.image_embedding,
            self.image_positions,
        ):
            nn.init.normal_(embedding.weight, std=0.02)

    def text(self, ids: Tensor) -> Tensor:
        """[B, T] -> [B, T, d]."""
        found: Tensor = self.text_embedding(ids) + self.text_positions.weight[: ids.shape[1]]
        return found

    def image(self, codes: Tensor, first: int = 0) -> Tensor:
        """[B, N] -> [B, N, d], from position `first` on."""
        places = self.image_positions.weight[first : first + codes.shape[1]]
        found: Tensor = self.image_embedding(codes) + places
        return found
