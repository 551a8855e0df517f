"""`W' = W R`, R orthogonal and block-diagonal up to permutations: the activations are rotated, not the weight.

`W R x = W (R x)`: a linear layer runs on rotated activations, at `in * b` products a token and factor; other kinds read W R.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from adaptome.core.adapter import Frozen
from adaptome.core.hosts import Host, autocasting
from adaptome.forms.reparametrization import Reparametrization


class Rotation(Reparametrization):
    """Base of adapters that rotate the layer's input; subclasses implement `blocks` and may scale the output.

    Args:
        host: where it sits.
        dropout: share of blocks that a training pass leaves unturned where activations are turned.
    """

    def __init__(self, host: Host, dropout: float = 0.0):
        super().__init__(host)
        self.fast, self.dropout = host.kind == "linear", dropout

    def blocks(self, dtype: torch.dtype, dropout: float = 0.0) -> list[tuple[Tensor, Tensor | None]]:
        """The factors of R, first applied first: blocks `[*, in / b, b, b]` and the order in which they take the inputs."""
        raise TypeError(f"{type(self).__name__} defines no blocks.")

    def rotated(self, x: Tensor) -> Tensor:
        """`R x` for x `[..., in]`, under autocast in its type: the backward, outside of it, must meet one type."""
        if autocasting(x) and x.dtype != torch.float64:
            x = x.to(torch.get_autocast_dtype(x.device.type))
        for R, order in self.blocks(x.dtype, self.dropout if self.training else 0.0):
            x = _Rotated.apply(x, R, order)
        return x

    def forward(self, frozen: Frozen, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        z = self.rotated(x)
        if self.strength != 1.0:
            z = torch.lerp(x.to(z.dtype), z, self.strength)
        y: Tensor = frozen(z, *args, **kwargs)
        return y

    def weight(self, W: Tensor) -> Tensor:
        # the rows of W R are R^T applied to W's rows: the factors' transposes, last first
        for R, order in reversed(self.blocks(W.dtype)):
            W = turned(W, R.mT, order)
        return W


def skew(upper: Tensor, b: int) -> Tensor:
    """The skew matrices `[*, b, b]` whose entries above the diagonal are `upper` `[*, b (b - 1) / 2]`, row by row."""
    rows, columns = torch.triu_indices(b, b, 1, device=upper.device)
    Q = upper.new_zeros(*upper.shape[:-1], b * b).index_add(-1, rows * b + columns, upper)
    Q = Q.unflatten(-1, (b, b))
    return Q - Q.mT


def cayley(Q: Tensor) -> Tensor:
    """`(I + Q) (I - Q)^-1`: orthogonal for skew Q, the identity for 0; in at least float32."""
    exact = Q.to(torch.promote_types(Q.dtype, torch.float32))
    eye = torch.eye(Q.shape[-1], dtype=exact.dtype, device=Q.device)
    return torch.linalg.solve(eye - exact, eye + exact)  # they commute


def cayley_series(Q: Tensor, terms: int) -> Tensor:
    """`(I + Q) (I + Q + ... + Q^terms)`, which is `cayley` up to `Q^(terms + 1)`; in at least float32."""
    exact = Q.to(torch.promote_types(Q.dtype, torch.float32))
    eye = torch.eye(Q.shape[-1], dtype=exact.dtype, device=Q.device)
    inverse = eye + exact
    for _ in range(terms - 1):
        inverse = eye + exact @ inverse
    return inverse + exact @ inverse


def within(upper: Tensor, eps: float) -> Tensor:
    """Entries `[*, n, b (b - 1) / 2]` of skew matrices of which none has a Frobenius norm above `eps / sqrt(n)`: longer ones are cut to it."""
    norm = 2**0.5 * upper.detach().norm(dim=-1, keepdim=True)
    most = eps / upper.shape[-2] ** 0.5
    return upper * torch.where(norm > most, most / norm, 1.0)


def dropped(R: Tensor, p: float, alone: bool = False) -> Tensor:
    """Rotations `[*, n, b, b]` of which a share p, drawn anew, is the identity; with `alone`, of one of the `[*, m, n, b, b]` factors.

    Where `p n` is no whole number, the number of blocks is drawn from the two beside it, so that p is the mean.
    """
    n, device = R.shape[-3], R.device
    count = (p * n + torch.rand((), device=device)).floor()
    left = torch.rand(n, device=device).argsort() < count
    if alone:
        m = R.shape[-4]
        left = left & (torch.arange(m, device=device) == torch.randint(m, (1,), device=device))[:, None]
    return torch.where(left[..., None, None], torch.eye(R.shape[-1], dtype=R.dtype, device=device), R)


def turned(x: Tensor, R: Tensor, order: Tensor | None) -> Tensor:
    """Each block of the rows of x `[*, rows, in]` times its rotation `[*, in / b, b, b]`; an order takes the inputs and puts them back."""
    z = (x if order is None else x[..., order]).unflatten(-1, (-1, R.shape[-1]))
    z = torch.einsum("...tnb,...ncb->...tnc", z, R).flatten(-2)
    return z if order is None else torch.empty_like(z).index_copy_(-1, order, z)


class _Rotated(torch.autograd.Function):
    """`turned` of activations, saving x as it is and R: no permuted copy is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, R: Tensor, order: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, R, order)
        return turned(x.reshape(-1, x.shape[-1]), R, order).reshape(x.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, R, order = ctx.saved_tensors
        G, X = grad.reshape(-1, x.shape[-1]), x.reshape(-1, x.shape[-1])
        gx = turned(G, R.mT, order).reshape(x.shape) if ctx.needs_input_grad[0] else None
        if order is not None:
            G, X = G[:, order], X[:, order]
        G, X = (t.unflatten(-1, (-1, R.shape[-1])).transpose(0, 1) for t in (G, X))
        return gx, G.mT @ X, None
