"""Answers of a language model that is given embeddings in place of words: their loss, how likely given ones are, and its own.

embeddings [batch, n, D] with a mask [batch, n]; answers as token numbers [batch, length], -100 where nothing stands. An encoder-decoder (T5) reads the
embeddings in its encoder; a decoder alone (OPT) reads the answer behind them, and its rows are padded on the left, so that the two touch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

IGNORED = -100


def answer_loss(model: Any, embeddings: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of the answers' tokens."""
    logits = answer_logits(model, embeddings, mask, labels)
    return nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED)


def answer_scores(model: Any, embeddings: Tensor, mask: Tensor, options: Tensor) -> Tensor:
    """Log likelihood [batch, k] of each of the options [batch, k, length]; an option without tokens has -inf.

    Of options of one token, such as letters, the likeliest is the argmax over their numbers.
    """
    count, k = options.shape[:2]
    logits = answer_logits(model, embeddings, mask, options.flatten(0, 1), k)
    flat = options.flatten(0, 1)
    chosen = logits.gather(-1, flat.clamp_min(0)[..., None])[..., 0].float()
    likely = (chosen - logits.float().logsumexp(-1)).masked_fill(flat == IGNORED, 0.0).sum(-1)
    empty = (flat == IGNORED).all(-1)
    return likely.masked_fill(empty, float("-inf")).view(count, k)


def greedy_hits(model: Any, embeddings: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
    """Whether [batch] greedy decoding gives exactly these answers, their ends included: it does where each token is the likeliest after those before it."""
    likeliest = answer_logits(model, embeddings, mask, labels).argmax(-1)
    return ((likeliest == labels) | (labels == IGNORED)).all(-1)


def answer_logits(model: Any, embeddings: Tensor, mask: Tensor, labels: Tensor, each: int = 1) -> Tensor:
    """Logits [batch * each, length, vocabulary] of the answers' tokens, `each` answers for a row."""
    if model.config.is_encoder_decoder:
        encoder = model.get_encoder()
        state = encoder(inputs_embeds=embeddings, attention_mask=mask, return_dict=True).last_hidden_state
        state, mask = (one.repeat_interleave(each, 0) for one in (state, mask))
        found: Tensor = model(
            encoder_outputs=(state,), attention_mask=mask, labels=labels.contiguous()
        ).logits
        return found
    embeddings, mask = left_padded(embeddings, mask)
    embeddings, mask = (one.repeat_interleave(each, 0) for one in (embeddings, mask))
    words = model.get_input_embeddings()(labels.clamp_min(0)).to(embeddings.dtype)
    given = torch.cat([embeddings, words], 1)
    seen = torch.cat([mask, (labels != IGNORED).to(mask.dtype)], 1)
    first = embeddings.shape[1] - 1
    logits: Tensor = model(inputs_embeds=given, attention_mask=seen).logits
    return logits[:, first:-1]


def generated(model: Any, embeddings: Tensor, mask: Tensor, **settings: Any) -> Tensor:
    """Token numbers of the model's own answers."""
    if not model.config.is_encoder_decoder:
        embeddings, mask = left_padded(embeddings, mask)
    found: Tensor = model.generate(inputs_embeds=embeddings, attention_mask=mask, **settings)
    return found


def left_padded(embeddings: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The same with what is masked out moved to the front, the rest in its order."""
    return _in_order(embeddings, mask, mask.long())


def right_padded(embeddings: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The same with what is masked out moved to the end, so that a row reads as if nothing of it had been there."""
    return (embeddings, mask) if bool(mask.all()) else _in_order(embeddings, mask, 1 - mask.long())


def _in_order(embeddings: Tensor, mask: Tensor, by: Tensor) -> tuple[Tensor, Tensor]:
    order = by.argsort(dim=1, stable=True)
    moved = embeddings.gather(1, order[..., None].expand_as(embeddings))
    return moved, mask.gather(1, order)
