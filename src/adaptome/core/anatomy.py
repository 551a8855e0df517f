"""What each module of a model is: found from its structure, with names only where structure leaves a choice.

    attention   a module with linear maps for q and k (or a fused one), or an nn.MultiheadAttention; modules
                above it that are named attention belong to it (BERT's `attention` around `attention.self`)
    MLP         a module named or classed as one inside a stack, or beside an attention; else two maps written
                straight into a block (`fc1`, `fc2`)
    block       the smallest element of a ModuleList or Sequential that holds both; its siblings are blocks too
    backbone    the smallest module that holds a stack of blocks and, outside of the blocks, what embeds its input (a table, a
                convolution)
    head        named as one and outside every stack, without attention in it; or tied to an embedding

A *part* is what can be targeted: a module, or a parameter that stands for a layer (fused experts, the weights
of nn.MultiheadAttention, whose `out_proj.forward` torch never calls).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

from torch import nn

from adaptome.core.nodes import (
    LEAF,
    RESERVED,
    Node,
    Part,
    class_name,
    fused_experts,
    is_bypassed,
    is_expert,
    is_mlp,
    is_router,
    kind_of,
    mlp_roles,
    out_part,
)
from adaptome.core.reading import mark_read
from adaptome.core.roles import (
    ATTENTION_NAME,
    EXPERTS,
    HEAD_NAME,
    MLP_PAIRS,
    POSITIONS,
    SELECTS,
    attention_part,
    has_name,
    mlp_part,
)


class Anatomy:
    """The parts of a model and their roles. Made anew whenever it is needed: linear in the number of modules."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.nodes: list[Node] = []
        self._seen: dict[int, Node] = {}
        self._walk(model, "", None, None)
        mark_read(self.nodes)
        self.attentions = self._find_attentions()
        self.heads = self._find_heads()
        self._inside = self._cover(self.attentions)
        self._head_of = self._cover(self.heads)
        self.moes = {n for n in self.nodes if self._holds_experts(n)}
        self.mlps = self._find_mlps()
        self._mlp_of = self._cover(self.mlps)
        self._lone = self._find_lone_experts()
        self.pairs = self._find_pairs()
        self._last = {down for _, down in self.pairs.values()}
        self.blocks = self._find_blocks()
        self.backbones = self._find_backbones()
        self._label()
        self.parts = [part for node in self.nodes for part in self._parts_of(node)]
        for node in self.nodes:
            node.children = LEAF  # no cycles: the model must be freed with its last reference, not at some later collection

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
        name = path.rpartition(".")[2]
        node = Node(path, name, module, parent, len(self.nodes), LEAF, index, kind_of(module))
        self.nodes.append(node)
        self._seen[id(module)] = node
        children: dict[str, Node] = {}
        listed = isinstance(module, (nn.ModuleList, nn.Sequential))
        for position, (name, child) in enumerate(module._modules.items()):
            if child is None or name in RESERVED:
                continue
            below = f"{path}.{name}" if path else name
            first = self._seen.get(id(child))
            if first is None:
                children[name] = self._walk(child, below, node, position if listed else None)
            elif first.end:  # a shared module keeps its first place; 0 would be one of its own ancestors
                for shared in self.subtree(first):
                    shared.aliases += (below + shared.path[len(first.path) :],)
        node.children = children or LEAF
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
                if not has_name(ATTENTION_NAME, above.name):
                    break
                root = above
            roots[root] = None
        covered, holding = self._cover(roots), self._holding(roots)
        for node in self.nodes:  # attentions whose maps have names of their own
            known = node in covered or node in holding
            if (
                not known
                and has_name(ATTENTION_NAME, node.name)
                and "Att" in class_name(node.module)
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
            named = has_name(HEAD_NAME, node.name) and not self._stacked(node) and node not in in_attention
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
            has_name(EXPERTS, name) or fused_experts(child.module) for name, child in node.children.items()
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
                or not is_mlp(node)
            ):
                continue
            placed = any(above.index is not None for above in node.ancestors()) or self._beside_attention(
                node.parent
            )
            outermost = not any(above in mlps for above in node.ancestors())
            inside = self.subtree(node)  # one map alone is a layer, whatever its class is called
            useful = sum(n.kind == "linear" for n in inside) > 1 or any(
                fused_experts(n.module) for n in inside
            )
            if placed and outermost and useful:
                mlps[node] = None
        return mlps

    def _find_lone_experts(self) -> dict[Node, Node]:
        """What is in experts that stand in a list of their own, in no MLP's module: each node's expert."""
        taken = (self._inside, self._mlp_of, self._head_of)
        return self._cover(
            dict.fromkeys(n for n in self.nodes if is_expert(n) and not any(n in found for found in taken))
        )

    def _beside_attention(self, node: Node | None) -> bool:
        return node is not None and any(child in self.attentions for child in node.children.values())

    def _find_pairs(self) -> dict[Node, tuple[Node, Node]]:
        """MLPs written straight into a block: the block's node -> first and last map."""
        pairs = {}
        taken = (self._inside, self._mlp_of, self._head_of)
        for node in self.nodes:
            if node.index is None and not self._beside_attention(node):
                continue
            for first, last in MLP_PAIRS:
                if first.partition(".")[0] not in node.children:
                    continue
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
        inner -= self._inside.keys() | self._mlp_of.keys() | self._head_of.keys() | self._lone.keys()
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

    def _find_backbones(self) -> dict[Node, None]:
        in_block = self._cover(self.blocks)
        first: dict[str, int] = {}  # the path of what holds an embedding -> the first one's place
        for node in self.nodes:
            place = node.name if node.kind == "embedding" else node.path
            positions = has_name(POSITIONS, place)  # these alone do not embed an input
            if node.kind in ("embedding", "conv") and node not in in_block and not positions:
                for path in (node.path, *node.aliases):
                    while path:
                        path = path.rpartition(".")[0]
                        first.setdefault(path, node.order)
        stacks: dict[Node, int] = {}
        for stack in {block.parent: None for block in self.blocks if block.parent is not None}:
            for above in (stack, *stack.ancestors()):
                listed = above.index is not None or isinstance(above.module, (nn.ModuleList, nn.Sequential))
                if not listed and first.get(above.path, len(self.nodes)) < stack.order:
                    stacks[above] = stacks.get(above, 0) + 1
                    break
        return dict.fromkeys(node for node in stacks if self._is_outermost(node, stacks))

    def _is_outermost(self, node: Node, stacks: dict[Node, int]) -> bool:
        """Whether it is the backbone of its stacks: what is inside another gives way to it, unless it has more stacks of its own."""
        inside = sum(count for other, count in stacks.items() if node in other.ancestors())
        around = [stacks[above] for above in node.ancestors() if above in stacks]
        return inside <= stacks[node] if inside else all(stacks[node] >= count for count in around)

    # -- roles

    def _label(self) -> None:
        for node in self.nodes:
            if node in self.blocks and node.parent is not None:
                node.stack, node.layer = node.parent.path, node.index
            elif node.parent is not None:
                node.stack, node.layer = node.parent.stack, node.parent.layer
            if node in self.blocks:
                node.role = "block"
            elif node.kind:
                node.role = node.kind
            elif is_router(node) and node.module._parameters:
                node.role = "router"
            if node.kind == "embedding" and (node in self._inside or "bias" in node.name):
                node.role = "other"  # a table of position biases
        for attention in self.attentions:
            self._label_attention(attention)
        for up, down in self.pairs.values():
            up.role, down.role = "up", "down"
        for mlp in self.mlps:
            self._label_mlp(mlp)
        for expert in dict.fromkeys(self._lone.values()):
            linears = self._linears(expert)
            for node, role in zip(linears, mlp_roles(linears), strict=True):
                node.role = role
        for node in self._head_of:
            node.role = "head"
        for node in self.backbones:
            if node.role == "other":
                node.role = "backbone"

    def _label_attention(self, attention: Node) -> None:
        attention.role = "attention-block"
        roles = {}
        for node in self._linears(attention):
            # in_proj is a common name; inside an attention it makes q, k and v, as in nn.MultiheadAttention
            part = "qkv" if node.name == "in_proj" else attention_part(node.name)
            roles[node] = part or out_part(node, attention)
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
            while above is not mlp and above.parent and not (is_mlp(above) or is_expert(above)):
                above = above.parent
            owned.setdefault(above, []).append(node)
        for linears in owned.values():
            for node, role in zip(linears, mlp_roles(linears), strict=True):
                node.role = role

    # -- parts

    def _parts_of(self, node: Node) -> Iterator[Part]:
        groups = SELECTS[node.role]
        if node in self._head_of:
            groups = frozenset({"head"}) if self._is_head(node) else frozenset()
        elif node in self._last:  # of an MLP that is no module of its own
            groups |= {"mlp-blocks"}
        elif node in self.blocks:
            groups |= {"blocks"}
        if node in self.backbones:
            groups |= {"backbones"}
        if (
            node.kind in ("linear", "conv", "norm")
            and node not in self._head_of
            and node.module._parameters.get("bias") is not None
        ):
            groups |= {"biases"}
        expert = (
            node.kind == "linear"
            and (node in self._mlp_of or node in self._lone)
            and any(is_expert(above) for above in node.ancestors())
        )
        role = "expert" if expert else node.role
        bypassed = is_bypassed(node)
        yield Part(node, None, role, frozenset() if bypassed else groups | {"experts"} if expert else groups)
        if node in self._head_of:
            return
        if bypassed:
            yield Part(node, "weight", "o", SELECTS["o"])
        if isinstance(node.module, nn.MultiheadAttention):
            for name in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
                if node.module._parameters.get(name) is not None:
                    part = "qkv" if name == "in_proj_weight" else name[0]
                    yield Part(node, name, part, SELECTS[part])
        for name in fused_experts(node.module):
            own = mlp_part(node.name if name == "weight" else name) or "mlp"
            yield Part(node, name, "expert", SELECTS[own] | {"experts"})

    def _is_head(self, node: Node) -> bool:
        """The head itself, or its members where it is a list of heads."""
        lists = (nn.ModuleList, nn.ModuleDict)
        if node in self.heads:
            return not isinstance(node.module, lists)
        return node.parent in self.heads and isinstance(node.parent.module, lists)
