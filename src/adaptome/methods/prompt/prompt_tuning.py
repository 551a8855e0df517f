"""Prompt tuning: a few trained vectors before the embedded tokens."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from adaptome.core.hosts import Host
from adaptome.core.method import option, register
from adaptome.forms.prompt import InputPrompts, Place, embedding_width, token_refusal
from adaptome.forms.soft import FromText, drawn_rows, rows_of, set_rows


@register(
    "prompt-tuning", category="prompt", subcategory="soft", merge="none", export="none", identity_at_init=False, budget_setting="p",
    inference_overhead="longer sequence", hosts=("backbone",), default_targets="backbones", source="Lester et al. 2021, arXiv:2104.08691",
)  # fmt: skip
class PromptTuning(FromText):
    r"""Prompt tuning: a few trained vectors before the embedded tokens.

        y = backbone([P; embed(x)]), without the places of P

    when        large models and many tasks, with the fewest numbers; small models learn little by it
    shapes      P [p, d]; the output has the length of x, so heads, losses and labels stay as they are
    init        'vocabulary': embeddings of p tokens drawn from the first 5,000; 'normal': N(0, 0.02^2); `ad.prompt_from(model, text, tokenizer)`
                starts it from words. None of them is the base
    positions   the tokens' come after the prompt's, as if it were text. With a cache the prompt enters it first; `generate`, beams and left
                padding work, a static cache and packed rows are refused
    parameters  p d per backbone: 81,920 for LLaMA-2-7B, p = 20
    merge       none: it is no change of weights
    source      Lester et al. 2021, arXiv:2104.08691. Encoders are cut to their tokens, so that a T5 decoder does not attend to the prompt's
                own outputs, as it does in the paper
    """

    p: int = option(20, at_least=1, help="how many vectors")
    init: Literal["vocabulary", "normal"] = option("vocabulary", help="where they start")
    place: Place = option(
        "auto", help="before the tokens or after the first; 'auto': after the first where a pooler reads it"
    )

    def admits(self, host: Host) -> str | None:
        return super().admits(host) or token_refusal(host)

    def parameters(self, host: Host) -> int:
        return self.p * embedding_width(host)

    def adapter(self, host: Host, shared: nn.Module | None = None) -> Prompt:
        return Prompt(self, host)


class Prompt(InputPrompts):
    """The vectors of one backbone."""

    def __init__(self, method: PromptTuning, host: Host):
        super().__init__(host, method.p, method.place)
        table = host.layer.get_input_embeddings()
        drawn = method.init == "vocabulary"
        self.P = nn.Parameter(
            drawn_rows(table, method.p) if drawn else torch.randn(method.p, embedding_width(host)) * 0.02
        )

    def prompts(self) -> Tensor:
        return self.P

    def start(self, ids: Tensor) -> None:
        """Set the vectors to the embeddings of tokens."""
        set_rows(self.P, rows_of(self.host.layer.get_input_embeddings(), ids), "prompt-tuning")
