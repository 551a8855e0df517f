"""Where a model's MLPs have their activation: between the first map (or gate) and what follows it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from adaptome.core.anatomy import Anatomy
from adaptome.core.errors import TargetError
from adaptome.core.nodes import Node

#: the modules of Python that activations are from; a softmax stands in them and is none
_HOMES = ("torch.nn.modules.activation", "transformers.activations")


@dataclass(frozen=True)
class MLP:
    """One MLP and its activation.

    Attributes:
        block: path of the MLP's module; of what holds both maps where it is no module of its own.
        activation: path of the module whose output is the activation: in a gated MLP, before the product.
        up, down: paths of its first maps (gate and up) and of the last.
        host: path of what `mlp-blocks` targets: the MLP, or its last map.
    """

    block: str
    activation: str
    up: tuple[str, ...]
    down: str
    host: str


def mlps(model: nn.Module) -> list[MLP]:
    """The MLPs whose activation is a module, in module order.

    Raises:
        TargetError: there is none.
    """
    anatomy, found = Anatomy(model), []
    for node in anatomy.mlps:
        inside = anatomy.subtree(node)
        maps = [n for n in inside if n.kind == "linear"]
        acts = [n for n in inside if is_activation(n)]
        downs = [n for n in maps if n.role == "down"]
        ups = tuple(n.path for n in maps if n.role in ("up", "gate", "gate-up"))
        if len(acts) == len(downs) == 1 and ups:
            found.append((node.order, MLP(node.path, acts[0].path, ups, downs[0].path, node.path)))
    for block, (up, down) in anatomy.pairs.items():
        acts = _beside(anatomy, up)
        if len(acts) == 1:
            found.append((block.order, MLP(block.path, acts[0].path, (up.path,), down.path, down.path)))
    if not found:
        raise TargetError(
            f"{type(model).__name__} has no MLP whose activation is a module: none of its activations can be looked at.\n"
            "  Look at what enters the last maps instead: targets=down, of=input."
        )
    return [mlp for _, mlp in sorted(found, key=lambda pair: pair[0])]


def is_activation(node: Node) -> bool:
    """Whether it is a module that applies a function to each number."""
    cls = type(node.module)
    return (
        cls.__module__ in _HOMES
        and not list(node.module.children())
        and not isinstance(node.module, (nn.Softmax, nn.LogSoftmax, nn.Softmin))
    )


def _beside(anatomy: Anatomy, up: Node) -> list[Node]:
    """The activations with the same parent as the first map."""
    return [n for n in anatomy.subtree(up.parent) if n.parent is up.parent and is_activation(n)]  # type: ignore[arg-type]
