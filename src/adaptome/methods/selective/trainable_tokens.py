"""Trainable tokens: train the embeddings of the tokens that are named, and nothing else of the table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptome.core.adapter import Frozen
from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register
from adaptome.forms.delta import Delta


class Rows(nn.Module):
    """D of every table; layers with one weight, as an embedding and the head tied to it, have one D."""

    def __init__(self, method: TrainableTokens, hosts: Sequence[Host]):
        super().__init__()
        self.table = method.tables(hosts)
        shapes = {self.table[host.name]: (len(method.trained(host)), _sides(host)[1]) for host in hosts}
        self.D = nn.ParameterList([nn.Parameter(torch.zeros(shapes[i])) for i in range(len(shapes))])


def _sides(host: Host) -> tuple[int, int]:
    """How many tokens a table has, and the width of their embeddings."""
    return (host.fan_in, host.fan_out) if host.kind == "embedding" else (host.fan_out, host.fan_in)


@register(
    "trainable-tokens", category="selective", subcategory="specific", hosts=("embedding", "linear"), default_targets="embeddings",
    source="PEFT, TrainableTokensModel",
)  # fmt: skip
class TrainableTokens(Method):
    r"""Trainable tokens: train the embeddings of the tokens that are named, and nothing else of the table.

        E'[t_i] = E[t_i] + D[i],    E' = E elsewhere

    when        tokens were added, or few of them have to mean something new; beside LoRA on the other layers
    shapes      E [tokens, d] frozen; D [k, d] for the k tokens that `ids` names, for all of a table when it names none
    heads       an output head is a table of rows too: name it as a target. One that is tied to the embedding has the same D
    init        D = 0: starts as the base
    parameters  k d per table: 8,192 for two tokens of LLaMA-2-7B
    forward     the rows of D are looked up, or multiplied by, beside the table
    merge       exact
    source      PEFT's TrainableTokensModel
    """

    ids: tuple[int, ...] = option(
        (), help="ids of the tokens, as in ids=[32000, 32001]; all when none are named"
    )

    def admits(self, host: Host) -> str | None:
        reason = super().admits(host)
        if reason is None and len(set(self.ids)) < len(self.ids):
            reason = f"ids = {list(self.ids)} names a token twice"
        if reason is None and self.ids and not 0 <= min(self.ids) <= max(self.ids) < _sides(host)[0]:
            reason = f"ids = {list(self.ids)} are not all among its {_sides(host)[0]} rows"
        return reason

    def trained(self, host: Host) -> tuple[int, ...]:
        """The rows of a table that train."""
        return self.ids or tuple(range(_sides(host)[0]))

    def tables(self, hosts: Sequence[Host]) -> dict[str, int]:
        """Which table each layer reads."""
        weights: list[Any] = []
        found = {}
        for host in hosts:
            W = host.stored("weight")
            known = [i for i, other in enumerate(weights) if other is W]
            found[host.name] = known[0] if known else len(weights)
            weights += [] if known else [W]
        return found

    def parameters(self, host: Host) -> int:
        return 0

    def shared(self, hosts: Sequence[Host]) -> nn.Module:
        return Rows(self, hosts)

    def shared_parameters(self, hosts: Sequence[Host]) -> int:
        tables = self.tables(hosts)
        return sum({tables[host.name]: len(self.trained(host)) * _sides(host)[1] for host in hosts}.values())

    def adapter(self, host: Host, shared: nn.Module | None = None) -> TrainableTokensAdapter:
        return TrainableTokensAdapter(self, host, shared)


class TrainableTokensAdapter(Delta):
    """Where the rows of D are in one table."""

    rebuilt = ("tokens", "row")

    def __init__(self, method: TrainableTokens, host: Host, shared: nn.Module | None):
        super().__init__(host, fast=True, shared=shared)
        tokens = torch.tensor(method.trained(host))
        k = len(tokens)
        self.register_buffer("tokens", tokens)
        # of every id its row in D, k for those that have none
        row = torch.full((_sides(host)[0],), k).index_copy(0, tokens, torch.arange(k))
        self.register_buffer("row", row if host.kind == "embedding" else None)

    @property
    def D(self) -> Tensor:
        """The table's rows `[k, d]`."""
        rows: Tensor = self.shared.D[self.shared.table[self.host.name]]
        return rows.to(self.get_buffer("tokens").device)

    def delta(self) -> Tensor:
        D, tokens = self.D, self.get_buffer("tokens")
        if self.host.kind == "embedding":
            return D.new_zeros(self.host.shape).index_copy(1, tokens, D.t())
        return D.new_zeros(self.host.shape).index_copy(0, tokens, D)

    def product(self, x: Tensor) -> Tensor:
        D = self.D
        return F.embedding(self.get_buffer("row")[x], torch.cat([D, D.new_zeros(1, D.shape[1])]))

    def forward(self, frozen: Frozen, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.host.kind == "embedding":
            return super().forward(frozen, x, *args, **kwargs)
        y: Tensor = frozen(x, *args, **kwargs)
        added = F.linear(x.to(y.dtype), self.D.to(y.dtype))
        return y.index_add(-1, self.get_buffer("tokens"), added, alpha=self.strength)
