"""T-LoRA: a low-rank update of a denoiser whose rank falls with the noise of the timestep."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from adaptome.core.errors import MethodError
from adaptome.core.hosts import Host
from adaptome.core.method import Method, option, register
from adaptome.core.steer import steered
from adaptome.forms.low_rank import LowRank
from adaptome.forms.per_sample import per_row, refuse_per_sample


@register(
    "t-lora",
    subcategory="low-rank, by timestep",
    export="low-rank",
    per_sample_routing=True,
    hosts=("linear", "conv"),
    source="Soboleva et al. 2025, arXiv:2507.05964",
)
class TLoRATimestep(Method):
    r"""T-LoRA: a low-rank update of a denoiser whose rank falls with the noise of the timestep.

        y = W x + s (B diag(d m_t) A - B_0 diag(d_0 m_t) A_0) x,    m_t = 1 for the first r_t of r, r_t = r_min + floor((r - r_min) (1 - t / T)^p)

    when        a diffusion model is to learn a subject from one or few images: noisy steps, where it would learn the layout by heart, get less
    shapes      A [r, in], d [r], B [out, r]; t [batch] or one number
    init        A, B the singular vectors of a drawn matrix ('random') or of W ('weight'), at the end of the spectrum that `which` names, d the
                singular values; the start is subtracted: starts as the base, and every direction is orthogonal to the others
    use         `ad.steer(timestep=t)`, one number or one per sample; nothing steered is t = 0, the full rank
    parameters  r (in + out + 1) per layer
    merge       exact for one timestep; refused for timesteps per sample. Export: peft-lora, exact (rank 2 r)
    names       not the `tlora` of tensor products, which was there before
    source      Soboleva et al. 2025, arXiv:2507.05964
    """

    r: int = option(64, at_least=1, help="rank at the last, noiseless step")
    r_min: int | None = option(None, at_least=1, help="rank at T; half of r when not given")
    steps: int = option(1000, at_least=1, help="T, the timesteps of the noise schedule")
    power: float = option(1.0, above=0, help="p")
    scale: float = option(1.0, help="s")
    start: Literal["random", "weight"] = option("random", help="whose singular vectors A and B start from")
    which: Literal["last", "middle", "first"] = option("last", help="which of them")

    def validate(self) -> None:
        if self.r_min is not None and self.r_min > self.r:
            raise MethodError(f"t-lora: r_min = {self.r_min} is above r = {self.r}.")

    def factorises(self) -> bool:
        return self.start == "weight"

    def admits(self, host: Host) -> str | None:
        reason = super().admits(host)
        if reason is None and self.r > min(host.fan_in, host.fan_out):
            reason = f"r = {self.r} is above its rank, {min(host.fan_in, host.fan_out)}"
        return reason

    def example_facts(self) -> tuple[dict[str, Any], ...]:
        return ({"timestep": 0}, {"timestep": self.steps // 2})

    def parameters(self, host: Host) -> int:
        return self.r * (host.fan_in + host.fan_out + 1)

    def adapter(self, host: Host, shared: nn.Module | None = None) -> TLoRATimestepAdapter:
        return TLoRATimestepAdapter(self, host)

    def rank(self, timestep: Tensor) -> Tensor:
        """r_t."""
        lowest = max(1, self.r // 2) if self.r_min is None else self.r_min
        left = (1 - timestep.double() / self.steps).clamp(0, 1)
        return lowest + ((self.r - lowest) * left**self.power).floor()


class TLoRATimestepAdapter(LowRank):
    """A, d and B of one layer, and their start."""

    rebuilt = ("A0", "d0", "B0")

    def __init__(self, method: TLoRATimestep, host: Host):
        super().__init__(host, method.scale)
        self.method = method
        W = host.weight() if method.start == "weight" else torch.randn(host.fan_out, host.fan_in) / method.r
        U, S, Vh = torch.linalg.svd(W.to(torch.promote_types(W.dtype, torch.float32)), full_matrices=False)
        first = {"first": 0, "middle": (len(S) - method.r) // 2, "last": len(S) - method.r}[method.which]
        part = slice(first, first + method.r)
        start = {"A": Vh[part].contiguous(), "d": S[part].contiguous(), "B": U[:, part].contiguous()}
        for name, value in start.items():
            self.register_buffer(f"{name}0", value.clone())
        self.A, self.d, self.B = (nn.Parameter(value) for value in start.values())

    def mask(self, timestep: Tensor) -> Tensor:
        """m_t twice, for the update and its start: `[..., 2 r]`."""
        m = (
            torch.arange(self.method.r, device=self.d.device)
            < self.method.rank(timestep.to(self.d.device))[..., None]
        )
        return torch.cat([m, m], -1)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Those of the steered timestep."""
        self.check_merge()
        A, B = self.whole()
        return A, B * self.mask(torch.as_tensor(steered("timestep", 0))).to(B.dtype)

    def whole(self) -> tuple[Tensor, Tensor]:
        """Those of full rank; the start is rounded as what it is subtracted from."""
        A0, d0, B0 = (self.get_buffer(f"{name}0").to(self.d.dtype) for name in "AdB")
        return torch.cat([self.A, A0]), torch.cat([self.B * self.d, -B0 * d0], -1)

    def add_product(self, y: Tensor, x: Tensor) -> Tensor:
        t = steered("timestep", 0)
        if not isinstance(t, Tensor) or t.dim() == 0:
            return super().add_product(y, x)
        A, B = self.whole()
        z = self.host.reduce(x.to(y.dtype), A)
        m = per_row(self.mask(t).to(z.dtype), z.shape[0], "timestep")
        m = m.repeat(1, getattr(self.host.layer, "groups", 1))
        spatial = len(self.host.layer.kernel_size) if self.host.kind == "conv" else 0
        m = m.view(m.shape[0], *[1] * (z.dim() - 2 - spatial), m.shape[1], *[1] * spatial)
        return self.host.add_expanded(y, z * m, B, self.scale * self.strength)

    def check_merge(self) -> None:
        refuse_per_sample(steered("timestep"), "timestep", self.host)
