"""What the tensors of one layer are: LoRA (LoCon), DoRA, LoHa, LoKr and IA3, each one of our methods, read and written.

LoRA    lora_down [r, in, *k], lora_up [out, r, 1..]; alpha (r where it is missing); with lora_mid [r, r, *k] the kernel stands apart:
        dW = up mid down, a product of r ranks still
DoRA    the same with dora_scale [out, 1..], the magnitude of every output
LoHa    dW = (w1_a w1_b) * (w2_a w2_b) alpha / r; with t1, t2 [r, r, *k] the kernels stand apart, w1_a is [r, out] and w1_b [r, in]
LoKr    dW = w1 (x) w2 alpha / r, either whole or a product w_a w_b (then alpha / r is 1 where both are whole); t2 as in LoHa
IA3     W (1 + weight), rows or, with on_input, columns; the bias is left alone
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from adaptome.core.errors import KeyMismatchError, MergeError
from adaptome.core.hosts import Host

Roles = dict[str, Tensor]


class Algorithm(ABC):
    """One form of adapter in a file.

    Attributes:
        method: ours.
        mark: a role that only it has.
        roles: that it takes.
        rows: our tensors that have a row for every output, so that a part of a fused layer has some of them.
    """

    method: ClassVar[str]
    marks: ClassVar[tuple[str, ...]]
    roles: ClassVar[tuple[str, ...]]
    needed: ClassVar[tuple[str, ...]]
    rows: ClassVar[tuple[str, ...]] = ()

    def takes(self, roles: Roles) -> bool:
        """Whether the tensors of a layer are of this form."""
        return any(mark in roles for mark in self.marks)

    def check(self, roles: Roles, layer: nn.Module, where: str) -> None:
        """Raise KeyMismatchError for what is missing, too much, or on a layer of another kind."""
        missing = [r for r in self.needed if r not in roles]
        extra = [r for r in roles if r not in self.roles]
        if missing or extra:
            words = [f"{', '.join(missing)} missing"] * bool(missing) + [f"{', '.join(extra)} unexpected"] * bool(extra)  # fmt: skip
            raise KeyMismatchError(f"{where}: {self.method} with {'; '.join(words)}.\n  Nothing was loaded.")
        if not isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            raise KeyMismatchError(
                f"{where}: {self.method} is on linear layers and convolutions; this is a {type(layer).__name__}."
            )

    @abstractmethod
    def read(self, roles: Roles, layer: nn.Module, where: str) -> tuple[dict[str, Any], Roles]:
        """Our settings for the layer and our tensors, those of a fused layer with all its rows."""

    @abstractmethod
    def write(self, adapter: Any) -> Roles:
        """The tensors of an adapter of ours; alpha among them."""

    def join(self, parts: Sequence[tuple[Roles | None, Host]], where: str) -> Roles:
        """The tensors of a fused layer from those of its parts; None for a part that has no adapter."""
        raise MergeError(
            f"{where} is one layer in this format and {len(parts)} here: {self.method} of a part is none of the whole.\n  Export as 'diffusers', or with rank= as LoRA."
        )


def kernel(layer: Any) -> tuple[int, ...]:
    """A convolution's kernel; () of a linear layer."""
    return tuple(layer.weight.shape[2:])


def wide(layer: Any) -> int:
    """Inputs of one tap: channels in a group."""
    return int(layer.weight.shape[1])


def number(roles: Roles, role: str, default: float, where: str) -> float:
    """A tensor that is one number."""
    if role not in roles:
        return default
    if roles[role].numel() != 1 or abs(float(roles[role])) > 1e9:
        raise KeyMismatchError(f"{where}: {role} is not one number.\n  Nothing was loaded.")
    return float(roles[role])


def matrix(value: Tensor, where: str, role: str) -> Tensor:
    """`[rows, the rest]`, in float32 at least."""
    if value.dim() < 2:
        raise KeyMismatchError(
            f"{where}: {role} has the shape {list(value.shape)}, which is no matrix.\n  Nothing was loaded."
        )
    return value.flatten(1).to(torch.promote_types(value.dtype, torch.float32))


def with_kernel(core: Tensor, inner: Tensor, layer: Any, where: str) -> Tensor:
    """`[r, in * k]` of a core `[r, s, *k]` and `[s, in]`, whose sizes must be the layer's before they are multiplied."""
    fits = core.dim() > 2 and tuple(core.shape[2:]) == kernel(layer) and inner.shape[1] == wide(layer)
    fits = fits and core.shape[0] <= sum(
        layer.weight.shape
    )  # more ranks than the weight has would only fill the memory
    if not fits or core.shape[1] != inner.shape[0]:
        raise KeyMismatchError(
            f"{where}: a core {list(core.shape)} and {list(inner.shape)} do not make a kernel of {list(layer.weight.shape)}.\n  Nothing was loaded."
        )
    return torch.einsum("rs...,si->ri...", core.to(inner.dtype), inner).flatten(1)


class LoRA(Algorithm):
    """down and up."""

    method = "lora"
    marks: ClassVar[tuple[str, ...]] = ("down", "up")
    roles: ClassVar[tuple[str, ...]] = ("down", "up", "mid", "alpha")
    needed = ("down", "up")
    rows: ClassVar[tuple[str, ...]] = ("B",)

    def read(self, roles: Roles, layer: nn.Module, where: str) -> tuple[dict[str, Any], Roles]:
        A, B = (matrix(roles[role], where, role) for role in ("down", "up"))
        if "mid" in roles:
            A = with_kernel(roles["mid"], A, layer, where)
        r = A.shape[0]
        return {"r": r, "alpha": number(roles, "alpha", r, where)}, {"A": A, "B": B}

    def write(self, adapter: Any) -> Roles:
        raise TypeError("LoRA is written from factors")  # pragma: no cover

    def join(self, parts: Sequence[tuple[Roles | None, Host]], where: str) -> Roles:
        downs = [roles["down"] for roles, _ in parts if roles is not None]
        shared = len(downs) == len(parts) and all(torch.equal(downs[0], down) for down in downs[1:])
        down = downs[0] if shared else torch.cat(downs)
        up, at = [], 0
        for roles, host in parts:
            B = torch.zeros(host.fan_out, down.shape[0]) if roles is None else roles["up"]
            if roles is not None and not shared:
                wider = torch.zeros(B.shape[0], down.shape[0])
                wider[:, at : at + B.shape[1]] = B
                B, at = wider, at + B.shape[1]
            up.append(B)
        return {"down": down, "up": torch.cat(up), "alpha": torch.tensor(float(down.shape[0]))}


class DoRA(LoRA):
    """LoRA and a magnitude of every output."""

    method = "dora"
    marks = ("dora_scale", "magnitude")
    roles = (*LoRA.roles, "dora_scale", "magnitude")
    rows = ("B", "m")

    def read(self, roles: Roles, layer: nn.Module, where: str) -> tuple[dict[str, Any], Roles]:
        settings, ours = super().read(roles, layer, where)
        value = roles.get("dora_scale", roles.get("magnitude"))
        assert value is not None  # its mark
        if "dora_scale" in roles and (value.dim() < 2 or value.numel() != value.shape[0]):
            raise KeyMismatchError(
                f"{where}: dora_scale has the shape {list(value.shape)}, a magnitude of every input; `dora` has one of every output (LyCORIS' wd_on_out).\n  Nothing was loaded."
            )
        return settings, ours | {"m": value.flatten().float()}

    def write(self, adapter: Any) -> Roles:
        A, B = adapter.A.detach().float().cpu(), adapter.B.detach().float().cpu() * adapter.scale
        roles = {"down": A, "up": B, "alpha": torch.tensor(float(A.shape[0]))}
        return roles | {"dora_scale": adapter.m.detach().float().cpu().clone()}

    def join(self, parts: Sequence[tuple[Roles | None, Host]], where: str) -> Roles:
        # what has no adapter keeps its norms
        m = [
            host.weight().float().norm(dim=-1).cpu() if roles is None else roles["dora_scale"]
            for roles, host in parts
        ]
        return super().join(parts, where) | {"dora_scale": torch.cat(m)}


class LoHa(Algorithm):
    """Two products, entry by entry."""

    method = "loha"
    marks = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    roles = (*marks, "hada_t1", "hada_t2", "alpha")
    needed = marks
    rows = ("B1", "B2")

    def read(self, roles: Roles, layer: nn.Module, where: str) -> tuple[dict[str, Any], Roles]:
        ours: Roles = {}
        for i in ("1", "2"):
            B, A = (matrix(roles[f"hada_w{i}_{side}"], where, f"hada_w{i}_{side}") for side in "ab")
            if f"hada_t{i}" in roles:
                A, B = with_kernel(roles[f"hada_t{i}"], A, layer, where), B.t().contiguous()
            ours |= {f"A{i}": A, f"B{i}": B}
        r = ours["A1"].shape[0]
        return {"r": r, "alpha": number(roles, "alpha", r, where)}, ours

    def write(self, adapter: Any) -> Roles:
        roles = {f"hada_w{i}_{side}": adapter.get_parameter(f"{ours}{i}").detach().float().cpu().clone() for i in "12" for side, ours in (("a", "B"), ("b", "A"))}  # fmt: skip
        return roles | {"alpha": torch.tensor(float(adapter.scale * adapter.strength * adapter.A1.shape[0]))}

    def join(self, parts: Sequence[tuple[Roles | None, Host]], where: str) -> Roles:
        """Rows of one part have only its own ranks: both products are of blocks."""
        joined: Roles = {}
        lora = LoRA()
        for i in ("1", "2"):
            halves = [
                None if roles is None else {"down": roles[f"hada_w{i}_b"], "up": roles[f"hada_w{i}_a"] * (float(roles["alpha"]) / len(roles["hada_w1_b"]) if i == "1" else 1.0)}
                for roles, _ in parts
            ]  # fmt: skip
            made = lora.join([(half, host) for half, (_, host) in zip(halves, parts, strict=True)], where)
            joined |= {f"hada_w{i}_a": made["up"], f"hada_w{i}_b": made["down"]}
        return joined | {"alpha": torch.tensor(float(len(joined["hada_w1_b"])))}


class IA3(Algorithm):
    """A factor of every channel."""

    method = "ia3"
    marks = ("on_input",)
    roles = ("weight", "on_input")
    needed = roles

    def read(self, roles: Roles, layer: nn.Module, where: str) -> tuple[dict[str, Any], Roles]:
        on_input = bool(number(roles, "on_input", 0, where))
        if not on_input and layer.bias is not None:
            raise KeyMismatchError(
                f"{where}: LyCORIS' IA3 scales a layer's weight and not its bias; `ia3` scales its output, bias and all. It is not read on a layer with a bias.\n  Nothing was loaded."
            )
        return {"side": "input" if on_input else "output"}, {"l": 1 + roles["weight"].float().flatten()}

    def write(self, adapter: Any) -> Roles:
        if not adapter.on_input and adapter.host.has("bias"):
            raise MergeError(
                f"{adapter.host.name} has a bias, which LyCORIS' IA3 does not scale and `ia3` does.\n  Merge into the model instead."
            )
        value = (adapter.factor() - 1).detach().float().cpu()
        if adapter.host.kind == "conv":
            value = value.view(1, -1, *[1] * len(adapter.host.layer.kernel_size))
        return {"weight": value, "on_input": torch.tensor(int(adapter.on_input))}
