"""Schemes: how a linear layer becomes a quantised one. A scheme is a class here and nothing else."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from adaptome.core.errors import HostError, MethodError, MissingExtraError, did_you_mean, nearest
from adaptome.core.hosts import Host
from adaptome.quantization.feedback import gptq, magr
from adaptome.quantization.formats import Sketch, Uniform, Values, Zero
from adaptome.quantization.layers import PackedLinear
from adaptome.quantization.sketching import sketched


class Scheme:
    """What every scheme gives: the layer that replaces a linear one."""

    name: ClassVar[str]
    #: whether it needs the inputs' Gram matrix
    calibrates: ClassVar[bool] = False

    def layer(self, host: Host, G: Tensor | None) -> nn.Module:
        """The quantised layer of a linear host; G `[in, in]` where the scheme calibrates."""
        raise MethodError(f"{type(self).__name__} makes no layer.")

    def __str__(self) -> str:
        settings = ", ".join(f"{f.name}={getattr(self, f.name)!r}" for f in dataclasses.fields(self))  # type: ignore[arg-type]
        return f"{self.name}({settings})"


@dataclass(frozen=True)
class OwnFormat(Scheme):
    """A scheme that makes layers in one of our formats."""

    bits: int = field(default=4, metadata={"help": "of a code, 1 to 8"})
    values: Values = field(default="float16", metadata={"help": "type of scales or tables"})

    def form(self) -> Uniform | Sketch:
        """The format of its layers."""
        raise MethodError(f"{type(self).__name__} has no format.")

    def bytes_of(self, W: Tensor, G: Tensor | None) -> Tensor:
        """The bytes of a weight `[out, in]`."""
        return self.form().encode(W)

    def layer(self, host: Host, G: Tensor | None) -> PackedLinear:
        W, bias = host.weight(), host.layer._parameters.get("bias")
        made = PackedLinear(
            host.fan_in, host.fan_out, bias is not None, self.form(), device=W.device, dtype=host.dtype
        )
        if not W.is_meta:
            made.weight.data = self.bytes_of(W, G)
        if bias is not None:
            made.bias = nn.Parameter(bias.detach(), requires_grad=bias.requires_grad)
        return made.eval()


@dataclass(frozen=True)
class RoundToNearest(OwnFormat):
    """uniform: every number to its nearest value on the grid of its group; needs no data."""

    name = "uniform"
    group: int = field(default=64, metadata={"help": "inputs that share a scale"})
    zero: Zero = field(default="integer", metadata={"help": "'integer', 'none' (symmetric) or 'float'"})

    def form(self) -> Uniform:
        return Uniform(self.bits, self.values, self.group, self.zero)


@dataclass(frozen=True)
class GPTQ(RoundToNearest):
    """gptq: column by column, errors made up for by later columns; `magr` cuts outliers before."""

    name = "gptq"
    calibrates = True
    damping: float = field(default=0.01, metadata={"help": "share of the Gram matrix's mean diagonal"})
    act_order: bool = field(default=False, metadata={"help": "begin with the largest inputs"})
    magr: bool = field(default=False, metadata={"help": "MagR before"})
    magr_strength: float = field(default=1e-3, metadata={"help": "weight of the largest magnitudes in MagR"})

    def bytes_of(self, W: Tensor, G: Tensor | None) -> Tensor:
        assert G is not None
        W = W.double()
        if self.magr:
            W = magr(W, G, self.group, self.magr_strength)
        return gptq(W, G, self.form(), self.damping, self.act_order)


@dataclass(frozen=True)
class Sketching(OwnFormat):
    """sketch: tables of shared values by weighted clustering, codes rounded with feedback; without data plain clustering."""

    name = "sketch"
    tables: int = field(default=1, metadata={"help": "tables of a row; they divide the inputs"})
    damping: float = field(default=0.1, metadata={"help": "share of the Gram matrix's mean diagonal"})
    strength: float = field(
        default=4.0, metadata={"help": "how much more weights count whose rounding costs more"}
    )
    act_order: bool = field(default=True, metadata={"help": "begin with the largest inputs"})

    def form(self) -> Sketch:
        return Sketch(self.bits, self.values, self.tables)

    def bytes_of(self, W: Tensor, G: Tensor | None) -> Tensor:
        if G is None:
            return super().bytes_of(W, G)
        form = self.form()
        return sketched(W, G, form, self.damping, self.strength, self.act_order)


@dataclass(frozen=True)
class NormalFloat(Scheme):
    """nf4: bitsandbytes' 4-bit normal floats, in blocks of 64, their scales quantised again with `double`."""

    name = "nf4"
    BLOCK: ClassVar[int] = 64
    bits: int = field(default=4, metadata={"help": "4"})
    double: bool = field(default=True, metadata={"help": "quantise the scales as well"})

    def __post_init__(self) -> None:
        if self.bits != 4:
            raise MethodError(
                f"nf4 has 4 bits, not {self.bits}.\n  Choose scheme 'uniform', 'gptq' or 'sketch'."
            )

    def layer(self, host: Host, G: Tensor | None) -> nn.Module:
        try:
            from bitsandbytes.nn import Linear4bit, Params4bit
        except ImportError as error:
            raise MissingExtraError("bitsandbytes", "quant") from error
        if host.fan_in % self.BLOCK and host.device.type == "cpu":
            raise HostError(
                f"nf4: {host.name} has {host.fan_in} inputs, no multiple of {self.BLOCK}, and bitsandbytes' CPU kernels read such rows wrongly.\n"
                "  Leave it out (exclude=...), choose scheme 'uniform', or quantise on a GPU."
            )
        W, bias = host.weight(), host.layer._parameters.get("bias")
        compute = host.dtype if host.dtype in (torch.float16, torch.bfloat16) else torch.float32
        made = Linear4bit(
            host.fan_in, host.fan_out, bias is not None, compute, self.double, "nf4", device="meta"
        )
        weight: Any = Params4bit(
            W.contiguous(), requires_grad=False, quant_type="nf4", compress_statistics=self.double
        )
        made.weight = weight.to(W.device)
        if bias is not None:
            made.bias = nn.Parameter(bias.detach(), requires_grad=False)
        return made.eval()


SCHEMES: dict[str, type[Scheme]] = {
    scheme.name: scheme for scheme in (RoundToNearest, GPTQ, Sketching, NormalFloat)
}


def get_scheme(scheme: str | Scheme, **settings: Any) -> Scheme:
    """A scheme from its name and settings.

    Raises:
        MethodError: an unknown name or setting.
    """
    if isinstance(scheme, Scheme):
        return dataclasses.replace(scheme, **settings) if settings else scheme  # type: ignore[type-var]
    cls = SCHEMES.get(scheme)
    if cls is None:
        near = nearest(scheme, SCHEMES) or list(SCHEMES)
        raise MethodError(
            f"no scheme is called {scheme!r}. Nearest: {', '.join(near)}; there are {', '.join(SCHEMES)}."
        )
    known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in settings:
        if key not in known:
            raise MethodError(
                f"scheme {scheme!r} has no setting {key!r}.{did_you_mean(key, known)}\n  It has: {', '.join(sorted(known))}."
            )
    made = cls(**settings)
    if isinstance(made, OwnFormat):
        made.form()  # whose checks are the settings'
    return made


def check_host(host: Host, scheme: Scheme) -> None:
    """Raise HostError for what is no plain linear layer."""
    if host.kind != "linear" or host.packed:
        what = "quantised already" if host.packed else f"a {host.kind} ({type(host.layer).__name__})"
        raise HostError(
            f"{scheme.name} quantises linear layers; {host.name or 'the root'} is {what}.\n  Name other targets."
        )
