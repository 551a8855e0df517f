"""An attention seen from inside: its queries, keys and values, after norms, rotations and the cache, whatever the architecture.

transformers' attentions hand q, k and v to a function that their config names. While an adapter's forward runs, a stand-in for that config
names ours instead, and ours calls the one that was named before. Threads that run one model take turns at each of its attentions.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from adaptome.core.adapter import Adapter, Frozen
from adaptome.core.errors import HostError
from adaptome.core.hosts import Host, first_input
from adaptome.core.roles import attention_part
from adaptome.core.threads import alone

NAME = "adaptome"
#: the functions whose masks we know how to read
KNOWN = ("eager", "sdpa")
#: f(module, query [B, heads, q, dim], key [B, kv heads, k, dim], value, mask, **more) -> (output [B, q, heads, dim], weights or None)
Attention = Callable[..., tuple[Tensor, Tensor | None]]


class Attending(Adapter):
    """Base of adapters on an attention module that implement `attend`, where they call the attention below them.

    With a strength other than 1 the scores' result is moved by it from the attention's own; the maps and the cache run once.
    """

    own_strength = True

    def __init__(self, host: Host, shared: nn.Module | None = None):
        super().__init__(host, shared)
        reason = refusal(host)
        if reason:
            raise HostError(reason)
        # in a tuple, so that it is no submodule
        self._inner = (inner_attention(host.layer),)
        _register()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        _register()  # another process may read what was pickled

    def attend(
        self,
        attention: Attention,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        **more: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Compute the attention; `attention`, called with the same arguments, computes it as it was."""
        raise HostError(f"{type(self).__name__} defines no attend.")

    def attend_with_strength(
        self, attention: Attention, module: nn.Module, *args: Any, **more: Any
    ) -> tuple[Tensor, Tensor | None]:
        """`attend`, by the adapter's strength."""
        output, weights = self.attend(attention, module, *args, **more)
        if self.strength != 1.0:
            output = torch.lerp(attention(module, *args, **more)[0], output, self.strength)
        return output, weights

    def forward(self, frozen: Frozen, *args: Any, **kwargs: Any) -> Any:
        with (
            self.reading(first_input(self.host.layer, args, kwargs)),
            standing_in(self._inner[0], self.attend_with_strength),
        ):
            return frozen(*args, **kwargs)

    def reading(self, x: Tensor) -> AbstractContextManager[Any]:
        """Around the attention's forward, for adapters whose `attend` needs what the module takes in, x `[batch, ...]`."""
        return nullcontext()

    @classmethod
    def together(
        cls, members: Mapping[Any, Any], rows: Any, frozen: Frozen, *args: Any, **kwargs: Any
    ) -> Any:
        """The maps and the cache run once for all rows; inside of them each row's scores are computed by its own adapter."""
        inner: Any = next(iter(members.values()))._inner[0]

        def attend(
            attention: Attention, module: nn.Module, *given: Any, **more: Any
        ) -> tuple[Tensor, Tensor | None]:
            parts, weights = [], []
            for name, where in rows.spread.groups:
                a, k = _of_rows(given, where, len(given[0])), _of_rows(more, where, len(given[0]))
                own = members.get(name)
                run = attention if own is None else partial(own.attend_with_strength, attention)
                output, seen = run(module, *a, **k)
                parts.append(output)
                weights.append(seen)
            told = [w for w in weights if w is not None]
            alike = len(told) == len(weights) and len({w.shape[1:] for w in told}) == 1
            return rows.spread.joined(parts), rows.spread.joined(told) if alike else None

        x = first_input(frozen.layer, args, kwargs)
        with ExitStack() as around:
            for name, where in rows.spread.groups:
                if name in members:
                    around.enter_context(members[name].reading(x[where]))
            around.enter_context(standing_in(inner, attend))
            return frozen(*args, **kwargs)


@contextmanager
def standing_in(inner: Any, attend: Callable[..., tuple[Tensor, Tensor | None]]) -> Iterator[None]:
    """Let `attend` compute an attention for the time of the block."""
    with alone(inner):
        before = inner.config
        inner.config = StandIn(before, attend)
        try:
            yield
        finally:
            inner.config = before


def _of_rows(given: Any, where: Any, count: int) -> Any:
    """Of arguments those of some rows of the batch: queries, keys, values, masks and biases, unless they are the same for all."""

    def cut(value: Any) -> Any:
        own = isinstance(value, Tensor) and value.dim() == 4 and value.shape[0] == count
        return value[where] if own else value

    return (
        {key: cut(v) for key, v in given.items()} if isinstance(given, dict) else tuple(cut(v) for v in given)
    )


class StandIn:
    """Stands for a module's config, and names our function as the one that computes the attention."""

    def __init__(self, config: Any, attend: Callable[..., tuple[Tensor, Tensor | None]]):
        self.config, self.attend = config, attend
        self.thread = None if torch.compiler.is_compiling() else threading.get_ident()

    @property
    def _attn_implementation(self) -> str:
        """Ours; in threads that run the module now without the adapter, for their rows have none, what it was."""
        ours = self.thread is None or self.thread == threading.get_ident()
        return NAME if ours else str(self.config._attn_implementation or "eager")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.config, name)

    def __call__(self, module: nn.Module, *args: Any, **more: Any) -> tuple[Tensor, Tensor | None]:
        return self.attend(self.below(module), module, *args, **more)

    def below(self, module: nn.Module) -> Attention:
        """The attention without this adapter: another's stand-in, or the function that the config names."""
        if isinstance(self.config, StandIn):
            return self.config
        name = self.config._attn_implementation or "eager"
        if name not in KNOWN:
            raise HostError(
                f"{type(module).__name__} computes its attention by {name!r}, whose masks cannot be extended.\n"
                "  Use model.set_attn_implementation('sdpa'), or 'eager'."
            )
        names = _forward(module).__globals__
        found: Attention = names["ALL_ATTENTION_FUNCTIONS"].get_interface(
            name, names["eager_attention_forward"]
        )
        return found


def _dispatch(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None, **more: Any
) -> tuple[Tensor, Tensor | None]:
    """Some models give the mask by name."""
    made: tuple[Tensor, Tensor | None] = module.config(module, query, key, value, attention_mask, **more)
    return made


def _register() -> None:
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _dispatch)


def _forward(module: nn.Module) -> Any:
    """The function in which a module's forward is written, without what decorates it."""
    return inspect.unwrap(type(module).forward)


def _calls_interface(module: nn.Module) -> bool:
    code = getattr(_forward(module), "__code__", None)
    named = code is not None and {"ALL_ATTENTION_FUNCTIONS", "eager_attention_forward"} <= set(code.co_names)
    return named and hasattr(module, "config")


def inner_attention(layer: nn.Module) -> nn.Module | None:
    """The one module in an attention block that computes the attention; None where there is none, or not by the common interface."""
    found = [module for module in layer.modules() if _calls_interface(module)]
    return found[0] if len(found) == 1 else None


def refusal(host: Host) -> str | None:
    """Why the attention of a host cannot be seen from inside; None when it can."""
    if host.role != "attention-block":
        return f"it works on attention modules (targets='attention-blocks'); this is a {type(host.layer).__name__}"
    inner: Any = inner_attention(host.layer)
    if inner is None:
        return (
            f"{type(host.layer).__name__} does not compute its attention by transformers' attention interface"
        )
    if getattr(inner, "reorder_and_upcast_attn", False):
        return f"{type(inner).__name__} upcasts its scores by a way of its own; set reorder_and_upcast_attn=False in the config"
    return None


def heads(module: Any) -> tuple[int, int, int]:
    """Heads of the queries, heads of the keys and values, and the width of a head.

    Raises:
        HostError: an attention whose names are not understood.
    """
    config = getattr(module, "config", None)
    dim = _first(module, "head_dim", "attention_head_size", "key_value_proj_dim")
    count = _first(module, "num_heads", "num_attention_heads", "n_heads", "n_head")
    count = count or _first(config, "num_attention_heads", "n_head")
    width = _first(config, "hidden_size", "d_model", "n_embd", "dim")
    if dim is None and count and width:
        dim = width // count
    keys = part(module, "k")
    if dim is None or (keys is None and count is None):
        raise HostError(
            f"{type(module).__name__} has no known name for the number or the width of its heads."
        )
    if keys is not None:
        queries = part(module, "q")
        own = width_of(keys) // dim
        return (width_of(queries) // dim if queries is not None else own), own, dim
    grouped = _first(module, "num_key_value_heads", "num_kv_heads")
    grouped = grouped or _first(config, "num_key_value_heads", "num_kv_heads") or count
    return count or grouped, grouped, dim  # type: ignore[return-value]


def unknown_heads(host: Host) -> str | None:
    """Why the heads of a host's attention cannot be told; None when they can."""
    inner = inner_attention(host.layer)
    if hasattr(inner, "kv_lora_rank"):
        return f"{type(inner).__name__} compresses keys and values into latents; use prompt-tuning"
    try:
        heads(inner)
    except HostError as error:
        return str(error).rstrip(".")
    return None


def part(module: nn.Module, name: str) -> nn.Module | None:
    """The map of an attention that makes its queries ('q'), keys ('k') or values ('v') alone; None where they are fused."""
    return next((child for key, child in module.named_children() if attention_part(key) == name), None)


def width_of(linear: nn.Module) -> int:
    """The output features of a linear layer, or of the one that a module wraps (Gemma 4 clips what goes in and out of it).

    Raises:
        HostError: nothing in it tells them.
    """
    for module in linear.modules():
        width = _first(module, "out_features", "nf")
        if width is not None:
            return width
    raise HostError(f"{type(linear).__name__} does not tell the width of its output.")


def _first(owner: Any, *names: str) -> int | None:
    return next((value for name in names if isinstance(value := getattr(owner, name, None), int)), None)
