"""The tree that roles are read from: one node for each module, and what a single module is by itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from adaptome.core.roles import (
    ATTENTION_NAME,
    ATTENTION_OUT,
    EXPERTS,
    MLP_CLASS,
    MLP_NAME,
    ROUTER_CLASS,
    has_name,
    mlp_part,
)

# Children that are no part of the base model: adapters on a layer, what they share, torch's parametrizations.
RESERVED = frozenset({"adaptome", "adaptome_shared", "parametrizations"})


# What a node without children has; shared, as a model may have tens of thousands of them.
LEAF: Mapping[str, Node] = MappingProxyType({})


@dataclass(eq=False, slots=True)
class Node:
    """A module in its place; `index` is its position in the ModuleList or Sequential that holds it."""

    path: str
    name: str
    module: nn.Module
    parent: Node | None
    order: int
    children: Mapping[str, Node]
    index: int | None = None
    kind: str = ""
    aliases: tuple[str, ...] = ()
    end: int = 0  # the nodes of its subtree are nodes[order:end]
    role: str = "other"
    stack: str | None = None  # the path of the stack that holds its block, None outside the blocks
    layer: int | None = None  # the index of its block there
    read: bool = False  # whether the model reads its weight, beside or instead of calling it

    def ancestors(self) -> Iterator[Node]:
        """From the parent up to the root."""
        node = self.parent
        while node is not None:
            yield node
            node = node.parent

    def below(self, path: str) -> Node | None:
        """The node at a path relative to this one."""
        node: Node | None = self
        for name in path.split("."):
            node = node.children.get(name) if node is not None else None
        return node


@dataclass(eq=False, slots=True)
class Part:
    """Something that can be targeted: `node`'s module, or the parameter of it that is named."""

    node: Node
    parameter: str | None
    role: str
    groups: frozenset[str]

    @property
    def paths(self) -> list[str]:
        """Every path it has in the model (more than one where a module is shared)."""
        paths = [self.node.path, *self.node.aliases]
        if self.parameter is None:
            return paths
        return [f"{path}.{self.parameter}".lstrip(".") for path in paths]


def class_name(module: nn.Module) -> str:
    """The name of the module's class; of an adapted one, of the class it had before."""
    return getattr(type(module), "_base", type(module)).__name__


def kind_of(module: nn.Module) -> str:
    """'linear', 'conv', 'norm', 'embedding', or '' for anything else."""
    if is_linear(module):
        return "linear"
    if isinstance(module, _ConvNd):
        return "conv"
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return "embedding"
    named = "norm" in class_name(module).lower()
    if named or isinstance(module, (nn.LayerNorm, nn.GroupNorm, _NormBase)):
        owned = [p for p in module._parameters.values() if p is not None]
        plain = owned and not module._modules.keys() - RESERVED and all(p.dim() == 1 for p in owned)
        return "norm" if plain else ""
    return ""


def is_linear(module: nn.Module) -> bool:
    """Whether it is one matrix product: nn.Linear, transformers' Conv1D, or a quantiser's linear layer."""
    if isinstance(module, nn.Linear):
        return True
    names = [base.__name__ for base in type(module).__mro__[:-2]]
    if "Conv1D" in names:
        return hasattr(module, "nf")
    features = getattr(module, "in_features", None), getattr(module, "out_features", None)
    return any("Linear" in name for name in names) and all(isinstance(f, int) for f in features)


def out_part(node: Node, attention: Node) -> str | None:
    """'o' for an attention's output map, by its path below the attention."""
    names = [node.name]
    for above in node.ancestors():
        if above is attention or has_name(ATTENTION_NAME, above.name):
            break
        names.insert(0, above.name)
    return "o" if has_name(ATTENTION_OUT, ".".join(names)) else None


def is_expert(node: Node) -> bool:
    """Whether it is one expert in a list of them."""
    listed = node.parent is not None and isinstance(
        node.parent.module, (nn.ModuleList, nn.ModuleDict, nn.Sequential)
    )
    return listed and node.parent is not None and has_name(EXPERTS, node.parent.name)


def is_bypassed(node: Node) -> bool:
    """Whether it is nn.MultiheadAttention's `out_proj`: torch uses its weight and never calls its forward."""
    return (
        node.name == "out_proj"
        and node.parent is not None
        and isinstance(node.parent.module, nn.MultiheadAttention)
    )


def is_mlp(node: Node) -> bool:
    """Whether it is named, or its class is named, as an MLP or a mixture of them."""
    return has_name(MLP_NAME, node.name) or has_name(MLP_CLASS, class_name(node.module))


def is_router(node: Node) -> bool:
    """Whether its class is one that chooses experts."""
    return has_name(ROUTER_CLASS, class_name(node.module))


def fused_experts(module: nn.Module) -> list[str]:
    """The names of the 3-D parameters ([experts, out, in] or [experts, in, out]) in which a module fuses experts."""
    if "xpert" not in class_name(module):
        return []
    return [
        name
        for name, p in module._parameters.items()
        if p is not None and p.dim() == 3 and "bias" not in name
    ]


def mlp_roles(linears: list[Node]) -> list[str]:
    """The roles of one MLP's maps, in order: by name; where no name tells, the first goes up and the last down."""
    roles = [mlp_part(node.name) for node in linears]
    if "gate" in roles and "up" not in roles:
        roles = ["up" if role == "gate" else role for role in roles]  # w1 of two maps, w1 and w2
    unknown = [i for i, role in enumerate(roles) if role is None]
    if unknown and "down" not in roles and len(roles) > 1:
        roles[unknown.pop()] = "down"
    if unknown and "up" not in roles and "gate-up" not in roles:
        roles[unknown.pop(0)] = "up"
    if roles.count("up") == roles.count("down") == 1 and "gate" not in roles:
        up, down = linears[roles.index("up")], linears[roles.index("down")]
        if features(up.module)[1] == 2 * features(down.module)[0]:
            roles[roles.index("up")] = "gate-up"
    return [role or "mlp" for role in roles]


def features(module: nn.Module) -> tuple[int, int]:
    """The input and output width of a linear layer (transformers' Conv1D stores [in, out])."""
    if hasattr(module, "in_features"):
        return int(module.in_features), int(module.out_features)  # type: ignore[arg-type]
    return int(module.nx), int(module.nf)  # type: ignore[arg-type]
