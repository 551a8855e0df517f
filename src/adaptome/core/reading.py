"""Which layers a model reads the weight of, beside or instead of calling them: told from its classes' code, without a forward.

WavLM's attention hands the weights of its projections to torch's multi-head attention; Mamba multiplies by `self.dt_proj.weight`, and in
generation by that of its convolution; many encoders add `self.position_embedding.weight`. What wraps around such a layer's forward
runs not at all, or on some of the ways through the model. What changes the parameter is right on all of them.
"""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any, TypeAlias

from torch import nn

from adaptome.core.nodes import Node

#: attributes of a weight that do not depend on its numbers
_ABOUT = {
    "data_ptr",
    "device",
    "dim",
    "dtype",
    "element_size",
    "is_cuda",
    "is_meta",
    "ndim",
    "numel",
    "requires_grad",
    "shape",
    "size",
}
#: a path, and the conditions on the module's own attributes (source, whether it holds) under which its weight is read
Guard: TypeAlias = tuple[str, bool]
Reading: TypeAlias = tuple[tuple[str, ...], tuple[Guard, ...]]
#: what a condition may be made of to be evaluated: attributes, numbers, comparisons
_PLAIN = (
    ast.Attribute, ast.Name, ast.Constant, ast.Compare, ast.BoolOp, ast.UnaryOp, ast.boolop, ast.unaryop, ast.cmpop, ast.Load,
)  # fmt: skip
#: where the classes' own code is trusted to call its layers, or is kept to its calls (`keep_off_fast_path`)
_PASSED_OVER = ("torch.", "transformers.modeling_utils", "transformers.generation")


def mark_read(nodes: list[Node]) -> None:
    """Set `read` on every layer whose weight the forward of a module above it reads. Needs the nodes' children."""
    for node in nodes:
        if not node.children:
            continue
        cls: Any = getattr(type(node.module), "_base", type(node.module))
        for path, guards in weights_read(cls):
            if all(_holds(guard, node.module) for guard in guards):
                for layer in _below(node, path):
                    layer.read = bool(layer.kind)


def _below(node: Node, path: tuple[str, ...]) -> Iterator[Node]:
    if not path:
        yield node
        return
    first, rest = path[0], path[1:]
    for name, child in node.children.items():
        if first in (name, "*"):
            yield from _below(child, rest)


@functools.cache
def weights_read(cls: type[nn.Module]) -> frozenset[Reading]:
    """Paths, below a module of this class, of the modules whose `weight` its forward, and what that calls on it, reads; and when.

    `*` stands for any member of a list. Looking at a weight's type or shape is no reading. Code without source tells nothing.
    """
    found: set[Reading] = set()
    waiting, seen = ["forward"], {"forward"}
    while waiting:
        function = inspect.getattr_static(cls, waiting.pop(), None)
        function = inspect.unwrap(getattr(function, "__func__", function))
        if not isinstance(function, FunctionType) or function.__module__.startswith(_PASSED_OVER):
            continue
        names = _names(function.__code__)
        if "weight" in names:
            found |= _read_in(function)
        for name in names - seen:
            if isinstance(inspect.getattr_static(cls, name, None), (FunctionType, staticmethod, classmethod)):
                waiting.append(name)
        seen |= names
    return frozenset(found)


def _names(code: CodeType) -> set[str]:
    """Every attribute that the code and the functions in it name."""
    inner = [_names(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*inner)


def _read_in(function: FunctionType) -> set[Reading]:
    try:
        source = inspect.getsource(function)
    except (OSError, TypeError):
        return set()
    tree = ast.parse(textwrap.dedent(source))
    above = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    own = function.__code__.co_varnames[:1]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr == "weight" and isinstance(node.ctx, ast.Load):
            path = _path(node.value, own)
            if path and not _only_looks(node, above[node]):
                found.add((path, tuple(_guards(node, above, own))))
    return found


def _guards(node: ast.AST, above: dict[ast.AST, ast.AST], own: tuple[str, ...]) -> Iterator[Guard]:
    """The conditions around a node that the module's own attributes decide."""
    while node in above:
        inside, node = node, above[node]
        if not isinstance(node, ast.If) or inside is node.test:
            continue
        names = [n.id for n in ast.walk(node.test) if isinstance(n, ast.Name)]
        if all(isinstance(n, _PLAIN) for n in ast.walk(node.test)) and set(names) == set(own):
            yield ast.unparse(node.test).replace(f"{own[0]}.", "self."), inside in node.body


def _holds(guard: Guard, module: nn.Module) -> bool:
    """Whether a condition of the class's own code is met on a module; unknown ones are taken to be."""
    source, wanted = guard
    try:
        return bool(eval(source, {"__builtins__": {}}, {"self": module})) is wanted
    except (AttributeError, TypeError, RuntimeError):
        return True


def _path(node: ast.expr, own: tuple[str, ...]) -> tuple[str, ...]:
    """('a', '*', 'b') of `self.a[i].b`; empty for anything else."""
    names: list[str] = []
    while isinstance(node, (ast.Attribute, ast.Subscript)):
        names.insert(0, node.attr if isinstance(node, ast.Attribute) else "*")
        node = node.value
    return tuple(names) if isinstance(node, ast.Name) and (node.id,) == own else ()


def _only_looks(node: ast.expr, above: ast.AST) -> bool:
    if isinstance(above, ast.Attribute):
        return above.attr in _ABOUT
    if isinstance(above, ast.Call):
        return isinstance(above.func, ast.Name) and above.func.id in (
            "isinstance",
            "hasattr",
            "type",
            "id",
            "len",
        )
    return isinstance(above, ast.Compare) and any(isinstance(op, (ast.Is, ast.IsNot)) for op in above.ops)
