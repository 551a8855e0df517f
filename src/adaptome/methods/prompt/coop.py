"""CoOp: trained context vectors among the words of a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptome.core.adapter import Adapter, Frozen
from adaptome.core.errors import MethodError
from adaptome.core.hosts import Host
from adaptome.core.method import option, register
from adaptome.core.state import attachment_of
from adaptome.forms.soft import FromText, rows_of, set_rows

Position = Literal["end", "middle", "front"]


@register(
    "coop", category="prompt", subcategory="soft", merge="none", export="none", identity_at_init=False, budget_setting="p",
    inference_overhead="longer sequence", hosts=("embedding",),
    default_targets=r"re:(?:.*\.)?(?:token_embedding|embed_tokens|word_embeddings|wte|shared)", source="Zhou et al. 2022, arXiv:2109.01134",
)  # fmt: skip
class CoOp(FromText):
    r"""CoOp: trained context vectors among the words of a text.

        embed(t) = C[t - first] where t is one of the ids first, first + 1, ...; the table's row for every other token

    when        few-shot classification with CLIP, where the wording of the prompts is the weak point
    shapes      C [classes p, d]: one context for all classes, or one for each. The ids say which vector stands where, so the text's length,
                mask, positions, cache and end token stay as they are
    init        N(0, 0.02^2); `ad.prompt_from(model, "a photo of a", tokenizer)` starts every context from words. Text without the ids is the base's
    use         `texts(model, names, ...)` gives the ids of '[start] context name [end]' for class names; `placeholders(model)` the ids
                alone, for texts of your own: soft prompts between hard ones, in any model with a token table
    parameters  classes p d: 8,192 for CLIP ViT-B/16, p = 16, one context
    merge       none: the ids are new words
    source      Zhou et al. 2022, arXiv:2109.01134, section 3
    """

    p: int = option(16, at_least=1, help="vectors of a context")
    classes: int = option(
        1, at_least=1, help="contexts: 1 for all classes together, or the number of classes"
    )
    placeholders: int = option(
        -100000,
        help="the first id that stands for a vector; none of the vocabulary's own that occurs in texts",
    )

    def validate(self) -> None:
        count = self.p * self.classes
        if self.placeholders < 0 <= self.placeholders + count + 100:
            raise MethodError(
                f"coop: ids from {self.placeholders} on for {count} vectors reach those that labels use (-100) or the vocabulary.\n"
                f"  Set placeholders={-100000 - count}, or to an id from 0 on whose {count} successors no text has."
            )

    def parameters(self, host: Host) -> int:
        return self.classes * self.p * host.fan_out

    def adapter(self, host: Host, shared: nn.Module | None = None) -> Context:
        return Context(self, host)


class Context(Adapter):
    """The context vectors beside one table."""

    def __init__(self, method: CoOp, host: Host):
        super().__init__(host)
        self.first, self.p = method.placeholders, method.p
        self.C = nn.Parameter(torch.randn(method.classes * method.p, host.fan_out) * 0.02)

    def forward(self, frozen: Frozen, ids: Tensor) -> Tensor:
        index, count = ids - self.first, self.C.shape[0]
        own = (index >= 0) & (index < count)
        embedded: Tensor = frozen(ids.masked_fill(own, 0))
        vectors = F.embedding(index.clamp(0, count - 1), self.C).to(embedded.dtype)
        return torch.where(own[..., None], vectors, embedded)

    def start(self, ids: Tensor) -> None:
        """Set every context to the embeddings of tokens."""
        rows = rows_of(self.host.layer, ids)
        if rows.shape[0] == self.p:
            rows = rows.repeat(self.C.shape[0] // self.p, 1)
        set_rows(self.C, rows, "coop")


def placeholders(model: nn.Module, name: str = "default") -> Tensor:
    """The ids `[classes, p]` that stand for the vectors of a model's contexts."""
    method: Any = attachment_of(model, name).method
    if not isinstance(method, CoOp):
        raise MethodError(f"{name!r} is {method.name}, which has no placeholders; coop has.")
    return torch.arange(method.classes * method.p).view(method.classes, method.p) + method.placeholders


def texts(
    model: nn.Module,
    names: Sequence[Sequence[int]],
    start: Sequence[int],
    end: Sequence[int],
    pad: int,
    position: Position = "end",
    name: str = "default",
) -> dict[str, Tensor]:
    """Ids and mask of one text per class: start, context and class name, end, and padding to the longest.

    Args:
        model: with the adapter.
        names: the token ids of every class's name.
        start: ids before the text, as CLIP's [49406].
        end: ids after it, as [49407].
        pad: the id to fill up with.
        position: of the name: after the context, in its middle, or before it.
        name: of the adapter.

    Raises:
        MethodError: another number of names than of contexts.
    """
    ids = placeholders(model, name)
    if len(ids) not in (1, len(names)):
        raise MethodError(
            f"coop has {len(ids)} contexts and was given {len(names)} names; attach it with classes={len(names)}, or 1."
        )
    cut = {"front": 0, "middle": ids.shape[1] // 2, "end": ids.shape[1]}[position]
    rows = []
    for own, words in zip(ids.expand(len(names), -1).tolist(), names, strict=True):
        rows.append([*start, *own[:cut], *words, *own[cut:], *end])
    length = max(map(len, rows))
    padded = [row + [pad] * (length - len(row)) for row in rows]
    mask = [[1] * len(row) + [0] * (length - len(row)) for row in rows]
    return {"input_ids": torch.tensor(padded), "attention_mask": torch.tensor(mask)}
