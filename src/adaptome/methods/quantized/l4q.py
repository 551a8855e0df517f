"""L4Q: LoRA inside the quantiser, trained together with its steps, to end as a quantised layer with nothing beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptome.core.adapter import Adapter, Frozen
from adaptome.core.errors import StateError
from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register
from adaptome.core.model import detach
from adaptome.core.state import attachment_of, find_root, state_of
from adaptome.forms.fused import shaped
from adaptome.forms.low_rank import kaiming
from adaptome.forms.reparametrization import Reparametrization
from adaptome.quantization.formats import Uniform, Values, grouped
from adaptome.quantization.layers import PackedLinear
from adaptome.quantization.quantizing import Quantised, QuantiseReport, describe_layers

Init = Literal["l4q", "lsq+", "symmetric", "asymmetric"]

#: steps are kept above this share of the largest one of the layer's start
LEAST = 1e-6


@register(
    "l4q", category="hybrid", subcategory="quantisation-aware", export="delta", hosts=("linear",), admits_packed=False,
    identity_at_init=False, structure_changed=False, source="Jeon et al. 2024, arXiv:2402.04902, section 3",
)  # fmt: skip
class L4Q(Method):
    r"""L4Q: LoRA inside the quantiser, trained together with its steps, to end as a quantised layer with nothing beside it.

        W' = clamp(round((W + s B A - b) / d), Qn, Qp) d + b,    s = alpha / r,  Qn = -2^(bits-1),  Qp = 2^(bits-1) - 1

    when        the model is to be served in few bits, with no 16-bit path beside them: end with `pack(model)`
    shapes      W [out, in] frozen, in full precision while training; A [r, in], B [out, r]; d, b [out, in / group]
    init        A ~ U(-1/sqrt(in), 1/sqrt(in)), B = 0: the start is W rounded to the grid, not the base. d and b from the group's weights:
                'l4q': d = max(min/Qn, max/Qp), b = 0, clips nothing; 'lsq+': d = max |mean -+ 3 std| / 2^(bits-1), b = 0;
                'symmetric': d = max |W| / 2^(bits-1), b = 0; 'asymmetric': d = (max - min) / (Qp - Qn), b = max - d Qp
    parameters  r (in + out) + 2 out ceil(in / group) per layer (once without train_bias): 9,994,240 + 2 * 50,593,792 for
                LLaMA-2-7B, all-linear, r = 4, group 128
    gradients   straight through the rounding: LoRA's where nothing is clipped; of the layer only x is kept, the rest is made again
    training    memory is LoRA's, not QLoRA's: W stays in its precision until the end. d is kept positive after every step
    merge       writes W' (exact); `pack` writes its codes and steps, and bits is then at most 8
    source      Jeon et al. 2024, arXiv:2402.04902, section 3 and appendix; LSQ's scale of d's gradient, 1/sqrt(group Qp), is an
                option, for the paper has none
    """

    r: int = option(4, at_least=1, help="rank of the update")
    alpha: float = option(16.0, help="the update is scaled by alpha / r")
    bits: int = option(4, at_least=2, at_most=16, help="of a weight")
    group: int = option(128, at_least=1, help="inputs that share a step")
    init: Init = option("l4q", help="how steps and offsets start")
    train_bias: bool = option(True, help="train the offsets b")
    lsq_grad_scale: bool = option(False, help="scale the gradient of the steps as LSQ does")

    def parameters(self, host: Host) -> int:
        groups = -(-host.fan_in // self.group)
        return self.r * (host.fan_in + host.fan_out) + (1 + self.train_bias) * host.fan_out * groups

    def adapter(self, host: Host, shared: nn.Module | None = None) -> L4QAdapter:
        return L4QAdapter(self, host)

    def on_step(
        self, adapters: Mapping[str, Adapter], shared: nn.Module | None, step: int, total: int
    ) -> None:
        for adapter in adapters.values():
            assert isinstance(adapter, L4QAdapter)
            with torch.no_grad():
                adapter.d.clamp_(min=adapter.least)


class L4QAdapter(Reparametrization):
    """A, B, the steps d and the offsets b of one layer."""

    b: Tensor

    def __init__(self, method: L4Q, host: Host):
        super().__init__(host)
        self.fast = True
        self.scale, self.bits, self.group = method.alpha / method.r, method.bits, method.group
        self.A = nn.Parameter(kaiming(torch.empty(method.r, host.fan_in)))
        self.B = nn.Parameter(torch.zeros(host.fan_out, method.r))
        d, b = steps(host.weight().float(), method.bits, method.group, method.init)
        self.d = nn.Parameter(d)
        if method.train_bias:
            self.b = nn.Parameter(b)
        else:
            self.register_buffer("b", b)
        self.least = 0.0 if d.is_meta else LEAST * float(d.max())
        self.rate = (method.group * (2 ** (method.bits - 1) - 1)) ** -0.5 if method.lsq_grad_scale else 1.0

    def steps(self) -> Tensor:
        """d, whose gradient is scaled."""
        if self.rate == 1.0:
            return self.d
        return self.d * self.rate + (self.d * (1 - self.rate)).detach()

    def weight(self, W: Tensor) -> Tensor:
        A, B, d, b = (p.to(W.dtype) for p in (self.A, self.B, self.steps(), self.b))
        return straight_through(W, A, B, d, b, self.scale, self.bits, self.group)

    def forward(self, frozen: Frozen, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        W, bias = frozen.weight(), frozen.bias()
        exact = torch.promote_types(W.dtype, torch.float32)
        plain = self.strength == 1.0 and not W.requires_grad and frozen.pristine
        if not plain or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            changed = torch.lerp(W.to(exact), self.weight(W.to(exact)), self.strength)
            return self.host.run_dense(changed, bias, x)
        settings = self.scale, self.bits, self.group
        y: Tensor = _L4Q.apply(x, W, bias, self.A, self.B, self.steps(), self.b, *settings)
        return y

    @torch.no_grad()
    def packed(self, values: Values = "float32") -> tuple[Uniform, Tensor]:
        """The format and the bytes of W'."""
        form = Uniform(self.bits, values, self.group, "float")
        W = self.host.weight().float()
        A, B, d, b = (p.float() for p in (self.A, self.B, self.d, self.b))
        q = _levels(W, A, B, d, b, self.scale, self.bits, self.group)[1]
        codes = (q + form.levels // 2).flatten(1)[:, : W.shape[1]]
        return form, form.write(codes.to(torch.uint8), self.d.float(), self.b.float())


def steps(W: Tensor, bits: int, group: int, init: Init) -> tuple[Tensor, Tensor]:
    """d and b `[out, groups]` for the weight `[out, in]`; a group of zeros has d = 1."""
    parts, half = grouped(W, group), 2 ** (bits - 1)
    low, high = parts.amin(-1), parts.amax(-1)
    b = torch.zeros_like(low)
    if init == "l4q":
        d = torch.maximum(low / -half, high / (half - 1))
    elif init == "lsq+":
        mean, std = parts.mean(-1), parts.std(-1, correction=0)
        d = torch.maximum((mean - 3 * std).abs(), (mean + 3 * std).abs()) / half
    elif init == "symmetric":
        d = torch.maximum(low.abs(), high.abs()) / half
    else:
        d = (high - low) / (2 * half - 1)
        b = high - d * (half - 1)
    return torch.where(d > 0, d, torch.ones_like(d)), b


def _levels(
    W: Tensor, A: Tensor, B: Tensor, d: Tensor, b: Tensor, scale: float, bits: int, group: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Per group `[out, groups, group]`: (W + s B A - b) / d, its level, and W' [out, in]."""
    half = 2 ** (bits - 1)
    w = (grouped(torch.addmm(W, B, A, alpha=scale), group) - b[..., None]) / d[..., None]
    q = w.clamp(-half, half - 1).round()
    return w, q, (q * d[..., None] + b[..., None]).flatten(1)[:, : W.shape[1]]


def straight_through(
    W: Tensor, A: Tensor, B: Tensor, d: Tensor, b: Tensor, scale: float, bits: int, group: int
) -> Tensor:
    """W', with the gradients that autograd gives when rounding counts as the identity."""
    half = 2 ** (bits - 1)
    w = (grouped(torch.addmm(W, B, A, alpha=scale), group) - b[..., None]) / d[..., None]
    inside = w.clamp(-half, half - 1)
    q = inside + (inside.round() - inside).detach()
    return (q * d[..., None] + b[..., None]).flatten(1)[:, : W.shape[1]]


class _L4Q(torch.autograd.Function):
    """`x W'^T + bias`, keeping x and the parameters alone."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, W: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, d: Tensor, b: Tensor, scale: float, bits: int, group: int
    ) -> Tensor:  # fmt: skip
        ctx.settings, ctx.bias = (scale, bits, group), None if bias is None else bias.dtype
        ctx.save_for_backward(x, W, A, B, d, b)
        exact = _exact(W, A, B, d, b)
        made = _levels(exact[0], exact[1], exact[2], exact[3], exact[4], scale, bits, group)[2]
        rows = x.reshape(-1, x.shape[-1])
        y = F.linear(rows, made.to(x.dtype), None if bias is None else bias.to(x.dtype))
        return shaped(y, x.shape[:-1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, *tensors = ctx.saved_tensors
        W, A, B, d, b = _exact(*tensors)
        w, q, made = _levels(W, A, B, d, b, *ctx.settings)
        g = grad.reshape(-1, grad.shape[-1])
        dx = dA = dB = dd = db = dbias = None
        if ctx.needs_input_grad[0]:
            dx = (grad @ made.to(grad.dtype)).to(x.dtype)
        if ctx.needs_input_grad[2]:
            dbias = g.sum(0).to(ctx.bias)
        if any(ctx.needs_input_grad[3:7]):
            scale, half = ctx.settings[0], 2 ** (ctx.settings[1] - 1)
            G = (g.t() @ x.reshape(-1, x.shape[-1]).to(g.dtype)).to(W.dtype)
            parts = grouped(G, w.shape[-1])
            inside = (w >= -half) & (w <= half - 1)
            dd = (parts * (q - w * inside)).sum(-1).to(tensors[3].dtype)
            db = (parts * ~inside).sum(-1).to(tensors[4].dtype)
            masked = (parts * inside).flatten(1)[:, : W.shape[1]]
            dA = (scale * (B.t() @ masked)).to(tensors[1].dtype)
            dB = (scale * (masked @ A.t())).to(tensors[2].dtype)
        return dx, None, dbias, dA, dB, dd, db, None, None, None


def _exact(W: Tensor, *tensors: Tensor) -> list[Tensor]:
    """All in at least float32: rounding to levels in half precision would differ between training and the packed layer."""
    exact = torch.promote_types(W.dtype, torch.float32)
    return [tensor.detach().to(exact) for tensor in (W, *tensors)]


def pack(model: nn.Module, name: str = "default", values: Values = "float32") -> QuantiseReport:
    """End a model's training with L4Q: its layers become quantised ones that own no A, B or full-precision weight.

    Args:
        model: with the adapter and no other one.
        name: of the adapter.
        values: type of steps and offsets; in 'float32' the layers compute bit for bit what they did in training.

    Raises:
        StateError: other adapters are attached, or the adapter is no L4Q.
        MethodError: more than 8 bits.
    """
    root = find_root(model)
    attachment = attachment_of(model, name)
    others = [n for n in state_of(model).attachments if n != name]
    if others or not isinstance(attachment.method, L4Q):
        what = f"{others} are attached too" if others else f"{name!r} is a {attachment.method.name}"
        raise StateError(
            f"pack ends the training of l4q alone; {what}.\n  Merge or detach what else there is."
        )
    made = []
    for adapter in attachment.adapters.values():
        assert isinstance(adapter, L4QAdapter)
        made.append((adapter.host, adapter.host.weight().float(), *adapter.packed(values)))
    detach(model, name)
    done = []
    for host, W, form, data in made:
        bias = host.layer._parameters["bias"]
        layer = PackedLinear(host.fan_in, host.fan_out, bias is not None, form, W.device, host.dtype)
        layer.weight.data, layer.bias = data, bias
        root.set_submodule(host.path, layer.train(host.layer.training))
        error = float((form.decode(data, host.fan_in) - W).norm() / W.norm().clamp_min(1e-30))
        size = W.numel() * host.dtype.itemsize
        done.append(Quantised(host.name, tuple(W.shape), error, None, size, data.numel(), 0.0))
    describe_layers(root)
    return QuantiseReport(f"l4q({attachment.method.bits} bits)", tuple(done))
