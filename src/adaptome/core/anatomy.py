"""What each module of a model is: found from its structure, with names only where structure leaves a choice.

    attention   a module with linear maps for q and k (or a fused one), or an nn.MultiheadAttention; modules
                above it that are named attention belong to it (BERT's `attention` around `attention.self`)
    MLP         a module named or classed as one inside a stack, or beside an attention; else two maps written
                straight into a block (`fc1`, `fc2`)
    block       the smallest element of a ModuleList or Sequential that holds both; its siblings are blocks too
    head        named as one and outside every stack, without attention in it; or tied to an embedding

A *part* is what can be targeted: a module, or a parameter that stands for a layer (fused experts, the weights
of nn.MultiheadAttention, whose `out_proj.forward` torch never calls).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from adaptome.core.roles import (
    ATTENTION_NAME,
    ATTENTION_OUT,
    EXPERTS,
    GROUPS,
    HEAD_NAME,
    MLP_CLASS,
    MLP_NAME,
    MLP_PAIRS,
    ROUTER_CLASS,
    attention_part,
    groups_of,
    mlp_part,
)

# Children that are no part of the base model: adapters on a layer, what they share, torch's parametrizations.
RESERVED = frozenset({"adaptome", "adaptome_shared", "parametrizations"})


@dataclass(eq=False, slots=True)
class Node:
    """A module in its place; `index` is its position in the ModuleList or Sequential that holds it."""

    path: str
    name: str
    module: nn.Module
    parent: Node | None
    order: int
    index: int | None = None
    kind: str = ""
    children: dict[str, Node] = field(default_factory=dict)
    aliases: list[str] = field(default_factory=list)
    end: int = 0  # the nodes of its subtree are nodes[order:end]
    role: str = "other"
    block: Node | None = None

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

    @property
    def layer(self) -> int | None:
        """The index of its block in the stack that holds the block."""
        return self.node.block.index if self.node.block else None


def kind_of(module: nn.Module) -> str:
    """'linear', 'conv', 'norm', 'embedding', or '' for anything else."""
    if is_linear(module):
        return "linear"
    if isinstance(module, _ConvNd):
        return "conv"
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return "embedding"
    named = "norm" in type(module).__name__.lower()
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


class Anatomy:
    """The parts of a model and their roles. Made anew whenever it is needed: linear in the number of modules."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.nodes: list[Node] = []
        self._seen: dict[int, Node] = {}
        self._walk(model, "", None, None)
        self.attentions = self._find_attentions()
        self.heads = self._find_heads()
        self._inside = self._cover(self.attentions)
        self._head_of = self._cover(self.heads)
        self.moes = {n for n in self.nodes if self._holds_experts(n)}
        self.mlps = self._find_mlps()
        self._mlp_of = self._cover(self.mlps)
        self.pairs = self._find_pairs()
        self._last = {down for _, down in self.pairs.values()}
        self.blocks = self._find_blocks()
        self._label()
        self.parts = [part for node in self.nodes for part in self._parts_of(node)]

    @functools.cached_property
    def by_path(self) -> dict[str, list[Part]]:
        """Parts by every path they have."""
        found: dict[str, list[Part]] = {}
        for part in self.parts:
            for path in part.paths:
                found.setdefault(path, []).append(part)
        return found

    # -- the tree

    def _walk(self, module: nn.Module, path: str, parent: Node | None, index: int | None) -> Node:
        node = Node(path, path.rpartition(".")[2], module, parent, len(self.nodes), index, kind_of(module))
        self.nodes.append(node)
        self._seen[id(module)] = node
        listed = isinstance(module, (nn.ModuleList, nn.Sequential))
        for position, (name, child) in enumerate(module._modules.items()):
            if child is None or name in RESERVED:
                continue
            below = f"{path}.{name}" if path else name
            first = self._seen.get(id(child))
            if first is None:
                node.children[name] = self._walk(child, below, node, position if listed else None)
            elif first.end:  # a shared module keeps its first place; 0 would be one of its own ancestors
                for shared in self.subtree(first):
                    shared.aliases.append(below + shared.path[len(first.path) :])
        node.end = len(self.nodes)
        return node

    def subtree(self, node: Node) -> list[Node]:
        """The node and everything below it, in module order."""
        return self.nodes[node.order : node.end]

    def _cover(self, roots: dict[Node, None]) -> dict[Node, Node]:
        return {node: root for root in roots for node in self.subtree(root)}

    def _holding(self, found: dict[Node, None]) -> set[Node]:
        return {above for node in found for above in (node, *node.ancestors())}

    def _linears(self, node: Node) -> list[Node]:
        return [n for n in self.subtree(node) if n.kind == "linear"]

    # -- attention, heads, MLPs, blocks

    def _find_attentions(self) -> dict[Node, None]:
        """The outermost module of each attention, in module order."""
        seeds: dict[Node, None] = {}
        for node in self.nodes:
            parts = {attention_part(name) for name, child in node.children.items() if child.kind == "linear"}
            split = "q" in parts and ("k" in parts or "kv" in parts)
            if split or "qkv" in parts or isinstance(node.module, nn.MultiheadAttention):
                seeds[node] = None
        roots: dict[Node, None] = {}
        for seed in seeds:
            root = seed
            for above in seed.ancestors():
                if not ATTENTION_NAME.fullmatch(above.name):
                    break
                root = above
            roots[root] = None
        covered, holding = self._cover(roots), self._holding(roots)
        for node in self.nodes:  # attentions whose maps have names of their own
            known = node in covered or node in holding
            if (
                not known
                and ATTENTION_NAME.fullmatch(node.name)
                and "Att" in type(node.module).__name__
                and self._linears(node)
            ):
                roots[node] = None
                covered.update(dict.fromkeys(self.subtree(node), node))
        return dict.fromkeys(sorted(roots, key=lambda n: n.order))

    def _find_heads(self) -> dict[Node, None]:
        with_attention, in_attention = self._holding(self.attentions), self._cover(self.attentions)
        tables = {id(n.module._parameters.get("weight")) for n in self.nodes if n.kind == "embedding"}
        tables.discard(id(None))
        heads: dict[Node, None] = {}
        for node in self.nodes:
            named = HEAD_NAME.fullmatch(node.name) and not self._stacked(node) and node not in in_attention
            tied = node.kind == "linear" and id(node.module._parameters.get("weight")) in tables
            if (
                not (named or tied)
                or node in with_attention
                or any(above in heads for above in node.ancestors())
            ):
                continue
            if any(n.module._parameters for n in self.subtree(node)):
                heads[node] = None
        return heads

    def _stacked(self, node: Node) -> bool:
        return node.index is not None or any(above.index is not None for above in node.ancestors())

    def _holds_experts(self, node: Node) -> bool:
        """Whether it is a mixture of experts: it has a child `experts`, or shared experts, or fused ones."""
        return any(
            EXPERTS.fullmatch(name) or fused_experts(child.module) for name, child in node.children.items()
        )

    def _find_mlps(self) -> dict[Node, None]:
        holding = self._holding(self.attentions)
        mlps: dict[Node, None] = {}
        for node in self.nodes:
            if (
                node.kind
                or node in holding
                or node in self._inside
                or node in self._head_of
                or not self._is_mlp(node)
            ):
                continue
            placed = any(above.index is not None or above in holding for above in node.ancestors())
            outermost = not any(above in mlps for above in node.ancestors())
            useful = any(n.kind == "linear" or fused_experts(n.module) for n in self.subtree(node))
            if placed and outermost and useful:
                mlps[node] = None
        return mlps

    def _is_mlp(self, node: Node) -> bool:
        return bool(MLP_NAME.fullmatch(node.name) or MLP_CLASS.fullmatch(type(node.module).__name__))

    def _find_pairs(self) -> dict[Node, tuple[Node, Node]]:
        """MLPs written straight into a block: the block's node -> first and last map."""
        holding = self._holding(self.attentions)
        pairs = {}
        taken = (self._inside, self._mlp_of, self._head_of)
        for node in self.nodes:
            if node.index is None and node not in holding:
                continue
            for first, last in MLP_PAIRS:
                up, down = node.below(first), node.below(last)
                if (
                    up
                    and down
                    and up.kind == down.kind == "linear"
                    and not any(up in t or down in t for t in taken)
                ):
                    pairs[node] = up, down
        return pairs

    def _find_blocks(self) -> dict[Node, None]:
        attention, mlp = (
            self._holding(self.attentions),
            self._holding(self.mlps) | self._holding(dict.fromkeys(self.pairs)),
        )
        inner = {n for n in self.nodes if n.index is not None and n.children and not n.kind}
        inner -= self._inside.keys() | self._mlp_of.keys() | self._head_of.keys()
        maps = self._holding(dict.fromkeys(n for n in self.nodes if n.kind in ("linear", "conv")))
        for candidates in (inner & attention & mlp, inner & (attention | mlp), inner & maps):
            outer = {above for node in candidates for above in node.ancestors()}
            found = {node for node in candidates if node not in outer}
            if found:
                stacks = {node.parent for node in found}
                return dict.fromkeys(
                    n for n in self.nodes if n.parent in stacks and (n in found or n in inner)
                )
        return {}

    # -- roles

    def _label(self) -> None:
        for node in self.nodes:
            above = node.parent.block if node.parent else None
            node.block = node if node in self.blocks else above
            if node in self.blocks:
                node.role = "block"
            elif node.kind:
                node.role = node.kind
            elif is_router(node) and node.module._parameters:
                node.role = "router"
            if node.kind == "embedding" and node in self._inside:
                node.role = "other"  # a table of position biases
        for attention in self.attentions:
            self._label_attention(attention)
        for up, down in self.pairs.values():
            up.role, down.role = "up", "down"
        for mlp in self.mlps:
            self._label_mlp(mlp)
        for node in self._head_of:
            node.role = "head"

    def _label_attention(self, attention: Node) -> None:
        attention.role = "attention-block"
        linears = self._linears(attention)
        start = len(attention.path) + 1 if attention.path else 0
        roles = {
            n: attention_part(n.name) or ("o" if ATTENTION_OUT.fullmatch(n.path[start:]) else None)
            for n in linears
        }
        understood = any(role not in (None, "o") for role in roles.values())
        understood = understood or isinstance(attention.module, nn.MultiheadAttention)
        for node, role in roles.items():
            node.role = (role or "linear") if understood else "attention"

    def _label_mlp(self, mlp: Node) -> None:
        mlp.role = "mlp-block"
        owned: dict[Node, list[Node]] = {}
        for node in self._linears(mlp):
            above = node.parent
            assert above is not None  # the MLP itself is above
            if above in self.moes or is_router(above):
                node.role = "router"
                continue
            while above is not mlp and above.parent and above.index is None and not self._is_mlp(above):
                above = above.parent
            owned.setdefault(above, []).append(node)
        for linears in owned.values():
            for node, role in zip(linears, mlp_roles(linears), strict=True):
                node.role = role

    # -- parts

    def _parts_of(self, node: Node) -> Iterator[Part]:
        groups = groups_of([node.role])
        if node in self._head_of:
            groups = frozenset({"head"}) if self._is_head(node) else frozenset()
        elif node in self._last:  # of an MLP that is no module of its own
            groups |= {"mlp-blocks"}
        elif node in self.blocks:
            groups |= {"blocks"}
        if (
            node.kind in ("linear", "conv", "norm")
            and node not in self._head_of
            and node.module._parameters.get("bias") is not None
        ):
            groups |= {"biases"}
        expert = node.kind == "linear" and node in self._mlp_of and self._is_expert(node)
        role = "expert" if expert else node.role
        bypassed = is_bypassed(node)
        yield Part(node, None, role, frozenset() if bypassed else groups | {"experts"} if expert else groups)
        if node in self._head_of:
            return
        if bypassed:
            yield Part(node, "weight", "o", groups_of(["o"]))
        if isinstance(node.module, nn.MultiheadAttention):
            for name in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
                if node.module._parameters.get(name) is not None:
                    part = "qkv" if name == "in_proj_weight" else name[0]
                    yield Part(node, name, part, frozenset(GROUPS[part]))
        for name in fused_experts(node.module):
            own = mlp_part(node.name if name == "weight" else name) or "mlp"
            yield Part(node, name, "expert", groups_of([own]) | {"experts"})

    def _is_head(self, node: Node) -> bool:
        """The head itself, or its members where it is a list of heads."""
        lists = (nn.ModuleList, nn.ModuleDict)
        if node in self.heads:
            return not isinstance(node.module, lists)
        return node.parent in self.heads and isinstance(node.parent.module, lists)

    def _is_expert(self, node: Node) -> bool:
        return any(
            above.index is not None and above.parent and EXPERTS.fullmatch(above.parent.name)
            for above in node.ancestors()
        )


def is_bypassed(node: Node) -> bool:
    """Whether it is nn.MultiheadAttention's `out_proj`: torch uses its weight and never calls its forward."""
    return (
        node.name == "out_proj"
        and node.parent is not None
        and isinstance(node.parent.module, nn.MultiheadAttention)
    )


def is_router(node: Node) -> bool:
    """Whether its class is one that chooses experts."""
    return bool(ROUTER_CLASS.fullmatch(type(node.module).__name__))


def fused_experts(module: nn.Module) -> list[str]:
    """The names of the 3-D parameters ([experts, out, in] or [experts, in, out]) in which a module fuses experts."""
    if "xpert" not in type(module).__name__:
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
