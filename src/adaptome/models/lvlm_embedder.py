r"""lvlm-embedder: a vision-language model that writes, as one that gives a picture and a text a vector each.

    picture   [before; image tokens; p_v (; long caption u)]  ->  f_v = state at the last place of p_v: the summary
    text      [before; caption; p_t]                          ->  f_t = state at the last place
    nll_k     -sum_i log p(u_i | picture k, p_v, u_<i),       u_1 is told by the summary: one forward gives f_v and nll

prompts   p = embed(hand-written prompt) + o, o [n, d] in `prompts.image` and `prompts.text`, 0 at first: the model starts as the hand-prompted
          one, bit for bit, and what trains these tables (a method on `prompts`) trains soft prompts
states    those after the last norm (`last_hidden_state`); similarity is the cosine of two of them
shapes    ids [batch, L], slots [batch, L] the prompt's row at each place, -1 elsewhere; texts [batch, C, T]; f [batch, d]
source    VladVA (Ouali et al.), arXiv:2412.04378, section 3
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from adaptome.core.errors import ModelError
from adaptome.models.base import CompositeModel, CompositeSettings, Part, register_model

#: what takes no part in the loss
NOTHING = -100


class LvlmEmbedderSettings(CompositeSettings):
    lvlm: Part = Field(
        description="a model of transformers' AutoModelForImageTextToText that reads `input_ids`"
    )
    image_prompt: list[int] = Field(default=[], description="tokens after a picture; the task knows them")
    text_prompt: list[int] = Field(default=[], description="tokens after a text; the task knows them")


@register_model("lvlm-embedder")
class LvlmEmbedder(CompositeModel):
    """Gives pictures and texts vectors, and writes on from a picture's."""

    Settings = LvlmEmbedderSettings
    loaders: ClassVar = {"lvlm": "AutoModelForImageTextToText"}
    lvlm: nn.Module

    def build(self) -> None:
        own, width = self.settings, self.table.embedding_dim
        if not (own.image_prompt and own.text_prompt):
            raise ModelError(
                "model: image_prompt and text_prompt are the tokens whose last one sums up; neither can be empty."
            )
        self.prompts = nn.ModuleDict(
            {
                name: nn.Embedding(len(ids), width, dtype=self.table.weight.dtype)
                for name, ids in self._ids().items()
            }
        )
        for table in self.prompts.values():
            nn.init.zeros_(table.weight)  # type: ignore[arg-type]

    def change_prompts(self, image_prompt: list[int], text_prompt: list[int]) -> None:
        """Take other hand-written prompts.

        Raises:
            ModelError: those there are have been trained.
        """
        if any(bool(weight.any()) for weight in self.prompts.parameters()):
            raise ModelError("the model's soft prompts were trained from other words. Give task.image_prompt and task.text_prompt as they were.")  # fmt: skip
        self.settings = self.settings.model_copy(
            update={"image_prompt": image_prompt, "text_prompt": text_prompt}
        )
        self.build()

    def _ids(self) -> dict[str, list[int]]:
        return {"image": self.settings.image_prompt, "text": self.settings.text_prompt}

    @property
    def table(self) -> nn.Embedding:
        """The frozen embeddings of the vocabulary."""
        found: nn.Embedding = self.lvlm.get_input_embeddings()  # type: ignore[operator]
        return found

    @contextmanager
    def prompted(self, name: str, slots: Tensor | None) -> Iterator[None]:
        """Within it the embeddings of tokens at the prompt's places have its offsets added; of other lengths, as in later steps of `generate`, none."""
        if slots is None:
            yield
            return
        rows = self.prompts[name](slots.clamp(min=0))
        # a sum with zero is the same number, so that an untrained prompt is the hand-written one bit for bit
        offset = torch.where((slots >= 0)[..., None], rows, rows.new_zeros(()))

        def put(module: nn.Module, args: Any, embedded: Tensor) -> Tensor:
            return embedded + offset.to(embedded.dtype) if embedded.shape == offset.shape else embedded

        hook = self.table.register_forward_hook(put)
        try:
            yield
        finally:
            hook.remove()

    # -- vectors -------------------------------------------------------------------------------------------------------

    def states(self, name: str, ids: Tensor, mask: Tensor, slots: Tensor | None, **pixels: Tensor) -> Tensor:
        """The states after the last norm [batch, L, d]."""
        with self.prompted(name, slots):
            made: Any = self.lvlm.model(input_ids=ids, attention_mask=mask, use_cache=False, **flat(pixels))  # type: ignore[operator]
        states: Tensor = made.last_hidden_state
        return states

    def texts(self, ids: Tensor, mask: Tensor, slots: Tensor) -> Tensor:
        """f_t [batch, d] of texts [batch, T], padded on the right."""
        states = self.states("text", ids, mask, slots)
        return states[torch.arange(len(ids), device=ids.device), mask.sum(1) - 1]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        slots: Tensor | None = None,
        summary: Tensor | None = None,
        targets: Tensor | None = None,
        text_ids: Tensor | None = None,
        text_mask: Tensor | None = None,
        text_slots: Tensor | None = None,
        **pixels: Tensor,
    ) -> dict[str, Tensor]:
        """`image_embeds` [batch, d], `text_embeds` [batch, d] of the first of each example's texts, `candidates` [batch, C, d] of all of them;
        with targets `caption_nll` and `caption_tokens` [batch] and, as `loss`, their ratio. Each side may be left out."""
        made: dict[str, Tensor] = {}
        if input_ids is not None:
            assert attention_mask is not None and summary is not None
            states = self.states("image", input_ids, attention_mask, slots, **pixels)
            made["image_embeds"] = states[torch.arange(len(states), device=states.device), summary]
        if text_ids is not None:
            assert text_mask is not None and text_slots is not None
            each = [one.flatten(0, 1) for one in (text_ids, text_mask, text_slots)]
            made["candidates"] = self.texts(*each).unflatten(0, text_ids.shape[:2])
            made["text_embeds"] = made["candidates"][:, 0]
        if input_ids is not None and targets is not None:
            nll, count = self.told(states, targets)
            made |= {"caption_nll": nll, "caption_tokens": count}
            made = {"loss": nll.sum() / count.sum().clamp(min=1), **made}
        return made

    def told(self, states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Negative log-likelihood [batch] of the tokens that are targets, each told by the state before it, and how many they are; no logits of others are made."""
        before, right = states[:, :-1], targets[:, 1:]
        kept = right != NOTHING
        logits = self.lvlm.get_output_embeddings()(before[kept])  # type: ignore[operator]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        each = F.cross_entropy(logits, right[kept], reduction="none")
        row = kept.nonzero()[:, 0]
        return each.new_zeros(len(targets)).index_add(0, row, each), kept.sum(1)

    # -- words ---------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def answer(self, ids: Tensor, mask: Tensor, most: int = 32, **pixels: Tensor) -> Tensor:
        """New tokens [batch, n], greedily, after a question on a picture, padded on the left: the model as it writes, without the soft prompts."""
        found: Tensor = self.lvlm.generate(  # type: ignore[operator]
            input_ids=ids, attention_mask=mask, max_new_tokens=most, do_sample=False, **flat(pixels)
        )
        return found[:, ids.shape[1] :]

    def entropy(self, states: Tensor) -> Tensor:
        """Entropy in nats [batch] of the next token's distribution at summaries [batch, d]: the higher, the more words a vector stands for."""
        logits = self.lvlm.get_output_embeddings()(states).float()  # type: ignore[operator]
        return torch.special.entr(logits.softmax(-1)).sum(-1)


def flat(pixels: dict[str, Tensor]) -> dict[str, Tensor]:
    """Pixels as the model takes them: patches of pictures of several sizes [batch, P, width] stand one after another (Qwen2-VL)."""
    grid = pixels.get("image_grid_thw")
    if grid is None or pixels["pixel_values"].dim() != 3:
        return pixels
    counts = grid.prod(-1).tolist()
    patches = torch.cat([one[:count] for one, count in zip(pixels["pixel_values"], counts, strict=True)])
    return {**pixels, "pixel_values": patches}


def variance_curve(vectors: Tensor) -> Tensor:
    """Share of the variance of vectors [n, d] that their first k directions hold, k from 1: of rank k it is 1 from there on."""
    values = torch.linalg.svdvals((vectors - vectors.mean(0)).double()).square()
    return values.cumsum(0) / values.sum()
