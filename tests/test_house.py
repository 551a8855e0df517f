"""The house: imports point down, and no files import each other in a circle. Computed from the source."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

SOURCE = Path(__file__).parents[1] / "src"
LIBRARY = "adaptome"

#: floor -> the floors it may import from. A floor is a folder of the library, or a file at its top; `adaptome` is the
#: facade, the library's root, which every user imports. What has no import of its own yet stands here for what is coming.
FLOORS: dict[str, set[str]] = {
    "core": set(),
    # what families of methods share, and the methods; nobody below the facade knows these
    "forms": {"core", "quantization"},
    "quantization": {"core"},
    "methods": {"core", "forms", "quantization"},
    "interop": {"core", "forms"},
    "peft": {LIBRARY, "core", "interop"},
    LIBRARY: {"arithmetic", "core", "forms", "interop", "methods", "quantization"},
    # parts of systems: they know nothing of methods, and of each other only what is named
    "data": {"core"},
    "report": {"core"},
    "architectures": {"core"},
    "graphs": {"core"},
    "grammar": {"core"},
    "traces": {"core"},
    "blackbox": {"core"},
    "proteins": {"core"},
    "models": {"core", "graphs", "objectives"},
    "decoding": {"core"},
    "objectives": {"core"},
    "tasks": {
        "blackbox", "core", "data", "decoding", "grammar", "graphs", "models", "proteins", "quantization", "report", "traces",
    },
    "continual": {"core", "data", "objectives", "tasks"},
    # tools on any model
    "arithmetic": {"core", "forms", "interop"},
    "memory": {"core"},
    "sparsity": {"core"},
    "example_inputs": {"core"},
    "inspection": {"core", "architectures", "example_inputs", "memory"},
    "interpretation": {"core", "forms", "report"},
    # recipes, and what carries them out
    "recipe": {LIBRARY, "blackbox", "core", "objectives", "tasks"},
    "callbacks": {LIBRARY, "core"},
    "optim": {"core"},
    "equivalents": set(),
    "training": {
        LIBRARY, "blackbox", "callbacks", "continual", "core", "data", "decoding", "models", "objectives", "optim", "recipe", "report", "tasks",
    },
    "compare": {LIBRARY, "architectures", "core", "inspection", "memory", "quantization", "recipe", "report", "tasks", "traces", "training"},
    "quickstart": {LIBRARY, "core", "data", "recipe", "report", "tasks", "training"},
    "cli": {
        LIBRARY, "compare", "continual", "core", "data", "equivalents", "grammar", "inspection", "interop", "interpretation", "models", "objectives", "quantization", "quickstart", "recipe", "report", "tasks",
        "training",
    },
    "__main__": {"cli"},
}  # fmt: skip


class Arrow(NamedTuple):
    """`source` imports `target` in this line."""

    source: str
    target: str
    line: int

    def __str__(self) -> str:
        return f"{self.source}:{self.line} imports {self.target}"


def read(source: Path) -> dict[str, ast.Module]:
    """Every module of the library, by its dotted name."""
    found = {}
    for file in sorted(source.rglob("*.py")):
        parts = file.relative_to(source).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(file.read_text())
    return found


def arrows(modules: dict[str, ast.Module]) -> list[Arrow]:
    """Every import of one module by another, wherever it stands but under TYPE_CHECKING.

    The full name of a module as a string is one too: `import_module("adaptome.methods")` hides no arrow.
    """
    return [
        Arrow(source, target, line)
        for source, tree in modules.items()
        for name, line in _named(tree)
        for target in [_module(name, modules)]
        if target is not None
        and target != source
        # a registry's file names its own package, whose files it imports to find what they register
        and not (name == f"{target}." and source.startswith(name))
    ]


def _named(node: ast.AST) -> Iterator[tuple[str, int]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for other in child.orelse:
                yield from _named(other)
            continue
        if isinstance(child, ast.Import):
            yield from ((alias.name, child.lineno) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute in this library"
            yield from ((f"{child.module}.{alias.name}", child.lineno) for alias in child.names)
        elif isinstance(child, ast.Constant) and f"{LIBRARY}." in str(child.value):
            yield f"{child.value}.", child.lineno  # with the dot it is a module or nothing, not a name in one
        yield from _named(child)


def _module(name: str, modules: dict[str, ast.Module]) -> str | None:
    """The module that a name is, or is in (`from package import name` names either)."""
    if name.partition(".")[0] != LIBRARY:
        return None
    return (
        name if name in modules else name.rpartition(".")[0] if name.rpartition(".")[0] in modules else None
    )


def floor(module: str) -> str:
    return module.split(".")[1] if "." in module else module


def lost(modules: dict[str, ast.Module]) -> list[str]:
    """`from` imports of the library's modules that are none, such as one that was moved."""
    return [
        f"{source}:{node.lineno} imports from {node.module}"
        for source, tree in modules.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        and str(node.module).partition(".")[0] == LIBRARY
        and node.module not in modules
    ]


def upward(found: list[Arrow], floors: dict[str, set[str]]) -> list[Arrow]:
    """Arrows to a floor that their own does not stand on."""
    return [
        arrow
        for arrow in found
        if floor(arrow.source) != floor(arrow.target)
        and floor(arrow.target) not in floors[floor(arrow.source)]
    ]


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups whose members all reach each other (Kosaraju's algorithm)."""

    def walk(node: str, edges: dict[str, set[str]], seen: set[str]) -> list[str]:
        """What is reached from a node and was not seen, each after what it leads to."""
        seen.add(node)
        stack, order = [(node, iter(sorted(edges.get(node, ()))))], []
        while stack:
            at, ahead = stack[-1]
            following = next((n for n in ahead if n not in seen), None)
            if following is None:
                order.append(at)
                stack.pop()
            else:
                seen.add(following)
                stack.append((following, iter(sorted(edges.get(following, ())))))
        return order

    seen: set[str] = set()
    order = [n for node in sorted(graph) if node not in seen for n in walk(node, graph, seen)]
    back: dict[str, set[str]] = {}
    for source, targets in graph.items():
        for target in targets:
            back.setdefault(target, set()).add(source)
    seen = set()
    groups = [walk(node, back, seen) for node in reversed(order) if node not in seen]
    return [sorted(group) for group in groups if len(group) > 1]


def graph_of(found: list[Arrow]) -> dict[str, set[str]]:
    graph: dict[str, set[str]] = {}
    for arrow in found:
        graph.setdefault(arrow.source, set()).add(arrow.target)
        graph.setdefault(arrow.target, set())
    return graph


MODULES = read(SOURCE)
ARROWS = arrows(MODULES)


def test_every_floor_has_a_place():
    """A new folder says here what it stands on."""
    assert {floor(name) for name in MODULES} <= set(FLOORS)


def test_the_floors_lie_above_each_other():
    assert circles(FLOORS) == []
    assert set().union(*FLOORS.values()) <= set(FLOORS)


def test_every_module_that_is_imported_is_there():
    """Those within functions too, which nothing else would find before they are called."""
    assert lost(MODULES) == []


def test_no_import_points_up():
    assert list(map(str, upward(ARROWS, FLOORS))) == []


def test_no_files_import_each_other_in_a_circle():
    assert circles(graph_of(ARROWS)) == []


@pytest.mark.parametrize("part", ["tasks", "objectives", "models", "decoding", "continual", "data", "report"])
def test_parts_of_systems_know_nothing_of_methods(part):
    reached, ahead = set(), [part]
    while ahead:
        at = ahead.pop()
        reached.add(at)
        ahead += FLOORS[at] - reached
    assert not reached & {"methods", "forms", LIBRARY}


# -- the checks themselves -----------------------------------------------------------------------------------------

SAMPLE = {
    "adaptome": "",
    "adaptome.core": "",
    "adaptome.core.a": "def f():\n    from adaptome.core import b",
    "adaptome.core.b": "import adaptome.core.c as c",
    "adaptome.core.c": "from adaptome.core.a import f",
    "adaptome.core.typed": "if TYPE_CHECKING:\n    from adaptome.methods import m",
    "adaptome.core.hidden": "import_module('adaptome.methods')",
    "adaptome.methods": "",
    "adaptome.methods.m": "from adaptome.core.a import f\nimport torch",
}


def test_the_checks_see_what_they_are_for():
    found = arrows({name: ast.parse(text) for name, text in SAMPLE.items()})
    assert circles(graph_of(found)) == [["adaptome.core.a", "adaptome.core.b", "adaptome.core.c"]]
    assert list(map(str, upward(found, FLOORS))) == ["adaptome.core.hidden:1 imports adaptome.methods"]
    assert Arrow("adaptome.core.a", "adaptome.core.b", 2) in found  # inside a function too
    assert Arrow("adaptome.methods.m", "adaptome.core.a", 1) in found
    assert not any(arrow.source == "adaptome.core.typed" for arrow in found)


def test_a_module_that_was_moved_is_found():
    sample = {**SAMPLE, "adaptome.core.late": "def f():\n    from adaptome.core.gone import a"}
    found = lost({name: ast.parse(text) for name, text in sample.items()})
    assert found == ["adaptome.core.late:2 imports from adaptome.core.gone"]
