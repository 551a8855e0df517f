r"""The cross-entropy of a layer's outputs, made a few rows at a time, with its gradients at once.

While the logits z of a few rows are there, so is the gradient of the loss by them,

    dL/dz = softmax(z) - (1 - s) e_y - s / V,

and goes through the layer on the spot, for the loss of a step is one number: the backward only scales what was made. That is two products
with a frozen weight, where making the logits again in the backward takes three, and no logits are kept.
The order of work is that of Hsu et al. 2024, Liger Kernel, arXiv:2410.10989, section 3.2, for any layer that autograd can run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

#: numbers of the logits at hand: large enough for a product that does not wait for memory, small beside a step's activations
AT_HAND, ON_ACCELERATORS, LEAST_ROWS = 2**22, 2**26, 128

Head = Callable[[Tensor], Tensor]


def chunked_loss(
    rows: Tensor, targets: Tensor, run: Head, head: nn.Module, smoothing: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """The summed cross-entropy of `run(rows)` against targets, made a few rows at a time.

    Args:
        rows: `[n, in]`.
        targets: `[n]`, each in [0, V).
        run: rows -> logits `[rows, V]`.
        head: whose parameters that train are those of `run`.
        smoothing: share of the target spread over all V.

    Returns:
        the sum, with a derivative by rows and parameters; how many targets are the likeliest; the summed entropy. In at least float32.
    """
    trained = [p for p in head.parameters() if p.requires_grad]
    return _ChunkedLoss.apply(rows, targets, run, smoothing, torch.is_grad_enabled(), *trained)


class _ChunkedLoss(torch.autograd.Function):
    """The gradients are made in the forward, for the loss of a step is one number; the backward scales them."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, targets: Tensor, run: Head, smoothing: float, learns: bool, *trained: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        wanted = [rows.requires_grad, *(True for _ in trained)]
        learns = learns and any(wanted)
        exact = torch.promote_types(rows.dtype, torch.float32)
        sums = torch.zeros(3, dtype=exact, device=rows.device)
        dx = torch.zeros_like(rows) if learns and rows.requires_grad else None
        grads: list[Tensor | None] = [None for _ in trained]
        at, size = 0, LEAST_ROWS
        while at < len(rows):
            part = slice(at, at + size)
            x = rows[part].detach().requires_grad_(dx is not None)
            with torch.set_grad_enabled(learns):
                z = run(x)
            size = max(LEAST_ROWS, (AT_HAND if z.device.type == "cpu" else ON_ACCELERATORS) // z.shape[-1])
            measured, dz = fold(z.detach(), targets[part], smoothing, learns)
            sums += measured
            if learns:
                asked = [*([] if dx is None else [x]), *trained]
                found = list(torch.autograd.grad(z, asked, dz, allow_unused=True))
                if dx is not None:
                    dx[part] = found.pop(0)
                grads = [_sum(total, grad) for total, grad in zip(grads, found, strict=True)]
            at = part.stop
        ctx.save_for_backward(dx, *grads)
        ctx.dtypes = [rows.dtype, *(p.dtype for p in trained)]
        total, correct, entropy = (value.clone() for value in sums)
        ctx.mark_non_differentiable(correct, entropy)
        return total, correct, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> Any:
        # scaled in the loss's precision: in half, a factor such as 1 / tokens would be rounded
        made = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        scaled = [None if g is None else (g.to(grad.dtype) * grad).to(dtype) for g, dtype in made]
        return scaled[0], None, None, None, None, *scaled[1:]


def _sum(total: Tensor | None, grad: Tensor | None) -> Tensor | None:
    """Both, in at least float32."""
    if grad is None:
        return total
    return grad.to(torch.promote_types(grad.dtype, torch.float32)) if total is None else total.add_(grad)


def fold(z: Tensor, targets: Tensor, smoothing: float, learns: bool) -> tuple[Tensor, Tensor | None]:
    """Of a few rows' logits `[rows, V]`: loss, likeliest targets and entropy, each summed; and the loss's gradient by them."""
    wide = z.to(torch.promote_types(z.dtype, torch.float32))
    at = targets[:, None]
    below = wide - wide.amax(-1, keepdim=True)
    true, mean = below.gather(-1, at).squeeze(-1), below.mean(-1) if smoothing else 0.0
    p = below.exp()
    sums = p.sum(-1)
    log_sum = sums.log()
    entropy = log_sum - torch.bmm(p[:, None], below[..., None]).view(-1) / sums
    losses = log_sum - (1 - smoothing) * true - smoothing * mean
    hits = true == 0  # among several equal ones the first counts
    correct = (below[hits].argmax(-1) == targets[hits]).sum().to(losses.dtype)
    measured = torch.stack([losses.sum(), correct, entropy.sum()])
    if not learns:
        return measured, None
    p /= sums[:, None]
    if smoothing:
        p -= smoothing / z.shape[-1]
    p.scatter_add_(-1, at, p.new_full(at.shape, smoothing - 1))
    return measured, p.to(z.dtype)
