"""Search on two levels: numbers that are trained on one batch, and weights on another, in turn (Liu et al. 2019, DARTS, arXiv:1806.09055)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from adaptome.core.errors import StateError
from adaptome.core.steer import require
from adaptome.forms.sharded import still


class Bilevel(nn.Module):
    """Says which of the two the coming step trains, and what weights are read in it.

    Args:
        what: the method, as messages call it.
        lookahead: xi, the step on the training loss by which the numbers look ahead; 0 is the first order.
    """

    def __init__(self, what: str, lookahead: float):
        super().__init__()
        self.what, self.lookahead = what, lookahead
        #: what the coming step trains
        self.phase: Literal["both", "adapters", "logits", "ahead", "behind"] = "both"
        self._held: list[tuple[nn.Parameter, Tensor]] = []
        #: of the second order: the loss that was looked ahead on, and what stands for each of the weights
        self._train_loss: Callable[[], Tensor] | None = None
        self._ahead: dict[int, Tensor] = {}

    def hold(self, parameters: Iterable[nn.Parameter]) -> None:
        """Remember what the step must not move: without a gradient, momentum still may."""
        self._held = [(p, p.detach().clone()) for p in parameters]

    @torch.no_grad()
    def put_back(self) -> None:
        """Undo what moved all the same."""
        for parameter, value in self._held:
            parameter.copy_(value)
        self._held = []
        self._train_loss, self._ahead = None, {}

    def seen(self, parameter: nn.Parameter) -> Tensor:
        """A tensor of an adapter as the coming step reads it: itself, itself without gradient, or where a step on the training loss leads."""
        if self.phase in ("both", "adapters"):
            return parameter
        if not self.lookahead or not torch.is_grad_enabled():
            return still(parameter)
        if self.phase == "behind":
            raise StateError(
                f"{self.what} with lookahead: gradient checkpointing would run the training step again with other adapters.\n"
                "  Turn it off for the search, or set lookahead=0."
            )
        if self.phase == "logits":
            train_loss = require("train_loss", f"{self.what} with lookahead")
            if train_loss is not self._train_loss:
                self._look_ahead(train_loss)
        return self._ahead[id(parameter)]

    def _look_ahead(self, train_loss: Callable[[], Tensor]) -> None:
        """Make `w - xi dL_train(w, a) / dw` of all the adapters' tensors w, differentiable in a."""
        w = [parameter for parameter, _ in self._held]
        leaves = [p.detach().requires_grad_() for p in w]
        self.phase, self._ahead = "ahead", {id(p): leaf for p, leaf in zip(w, leaves, strict=True)}
        try:
            with sdpa_kernel(SDPBackend.MATH):  # the other kernels cannot be differentiated twice
                loss, self.phase = train_loss(), "behind"
                steps = torch.autograd.grad(loss, leaves, create_graph=True, materialize_grads=True)
        finally:
            self.phase, self._train_loss = "logits", None
        self._ahead = {id(p): still(p) - self.lookahead * step for p, step in zip(w, steps, strict=True)}
        self._train_loss = train_loss

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles leave out what belongs to a running graph."""
        return {**self.__dict__, "_train_loss": None, "_ahead": {}}
