"""P-tuning: trained vectors before the embedded tokens, made by a small network."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptome.core.errors import MethodError
from adaptome.core.hosts import Host
from adaptome.core.method import Method, get_method, option, register
from adaptome.forms.prompt import InputPrompts, Place, embedding_width, token_refusal
from adaptome.forms.soft import drawn_rows


@register(
    "p-tuning", category="prompt", subcategory="soft", merge="none", export="none", identity_at_init=False, budget_setting="p",
    inference_overhead="longer sequence", hosts=("backbone",), default_targets="backbones", source="Liu et al. 2021, arXiv:2103.10385",
)  # fmt: skip
class PTuning(Method):
    r"""P-tuning: trained vectors before the embedded tokens, made by a small network.

        y = backbone([P; embed(x)]), without the places of P;    P = W2 relu(W1 E + b1) + b2         ('mlp')
                                                                 P = W2 relu(W1 LSTM(E) + b1) + b2   ('lstm')

    when        as `prompt-tuning`, where vectors that are trained directly do not settle
    shapes      E, P [p, d]; LSTM both ways, two layers, h = hidden / 2 each, so W1 [hidden, hidden], W2 [d, hidden]; 'mlp': W1 [hidden, d]
    init        E: embeddings of p tokens drawn from the first 5,000; the network as torch draws it. Not the base
    parameters  'mlp': p d + hidden (d + 1) + d (hidden + 1) per backbone; 'lstm': the same with hidden (hidden + 1), and
                8 h (d + hidden + 2 h + 4) for the LSTM. hidden = 0 is d: LLaMA-2-7B, p = 20, hidden = 256 has 5,923,072 with 'lstm'
    use         as prompt-tuning; `ad.plain_prompt(model)` turns it into that after training, without the network
    merge       none: it is no change of weights
    source      Liu et al. 2021, arXiv:2103.10385, sections 2 and 3; there prompts also stand within a template, see coop for vectors at any place
    """

    p: int = option(20, at_least=1, help="how many vectors")
    encoder: Literal["lstm", "mlp"] = option(
        "mlp", help="what makes them; the paper's 'lstm' has many times the parameters"
    )
    hidden: int = option(0, at_least=0, help="width of the network, even; 0 for that of the embeddings")
    place: Place = option(
        "auto", help="before the tokens or after the first; 'auto': after the first where a pooler reads it"
    )

    def validate(self) -> None:
        if self.hidden % 2:
            raise MethodError(
                f"p-tuning: hidden = {self.hidden} must be even, for half of it reads each way."
            )

    def admits(self, host: Host) -> str | None:
        return super().admits(host) or token_refusal(host)

    def widths(self, host: Host) -> tuple[int, int]:
        """d and hidden."""
        d = embedding_width(host)
        return d, self.hidden or d + d % 2

    def parameters(self, host: Host) -> int:
        d, hidden = self.widths(host)
        read = hidden if self.encoder == "lstm" else d
        h = hidden // 2
        recurrent = 8 * h * (d + hidden + 2 * h + 4) if self.encoder == "lstm" else 0
        return self.p * d + recurrent + hidden * (read + 1) + d * (hidden + 1)

    def plain(self) -> Method:
        """The method that stores what the network makes."""
        return get_method("prompt-tuning", p=self.p, place=self.place, init="normal")

    def adapter(self, host: Host, shared: nn.Module | None = None) -> EncodedPrompt:
        return EncodedPrompt(self, host)


class EncodedPrompt(InputPrompts):
    """E and the network of one backbone."""

    def __init__(self, method: PTuning, host: Host):
        super().__init__(host, method.p, method.place)
        d, hidden = method.widths(host)
        self.E = nn.Parameter(drawn_rows(host.layer.get_input_embeddings(), method.p))
        read = d
        # torch's own module keeps a list of its parameters, which goes stale when an adapter's are cast
        self.recurrent = nn.ParameterList()
        if method.encoder == "lstm":
            bound, h = (hidden // 2) ** -0.5, hidden // 2
            shapes = [(4 * h, width) for width in (d, hidden)]
            for shape in shapes:
                for _way in range(2):
                    for size in (shape, (4 * h, h), (4 * h,), (4 * h,)):
                        self.recurrent.append(nn.Parameter(torch.empty(size).uniform_(-bound, bound)))
            read = hidden
        first, second = nn.Linear(read, hidden), nn.Linear(hidden, d)
        self.W1, self.b1, self.W2, self.b2 = first.weight, first.bias, second.weight, second.bias

    def prompts(self) -> Tensor:
        z: Tensor = self.E
        if len(self.recurrent):
            start = z.new_zeros(4, 1, self.W1.shape[1] // 2)
            z = torch.lstm(
                z[None], (start, start), list(self.recurrent), True, 2, 0.0, self.training, True, True
            )[0][0]
        return F.linear(F.relu(F.linear(z, self.W1, self.b1)), self.W2, self.b2)

    def made(self) -> dict[str, Tensor]:
        """P."""
        return {"P": self.prompts()}
