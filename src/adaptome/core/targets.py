"""Which layers a method goes on: targets, exclusions and layer ranges, resolved against a model.

A target entry is one of
    a role        `attention`, `q`, `mlp`, `all-linear`, `blocks`, ... (`ROLES` lists them)
    a glob        on full paths, `*` crossing dots: `model.layers.*.mlp.*_proj`; a name without wildcards is a suffix
                  of whole path components: `q_proj`, `attn.q_proj`
    `<module>.<role>`  the role within that module, where no module has the whole path: `vision.attention`
    `re:<regex>`  which must match the full path
    `=<path>`     exactly that module or parameter
Paths of parameters are matched where the parameter stands for a layer (fused experts, the weights of
nn.MultiheadAttention), and otherwise when no module has that path. A role's name is always the role: a module
that is called `mlp` is written `*.mlp`.

Layers are counted within the innermost stack (ModuleList or Sequential) of blocks: encoder and decoder, Swin's stages
and a UNet's levels each count from 0, and negative indices count from each stack's own end. What is in no block
(embeddings, head) is in no layer.
"""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import nn

from adaptome.core.anatomy import Anatomy
from adaptome.core.errors import TargetError, nearest
from adaptome.core.nodes import Part, is_bypassed
from adaptome.core.roles import ROLES, guess_role

__all__ = ["ROLES", "Match", "Targets", "resolve", "role_of", "roles", "roles_of"]

Layers: TypeAlias = int | str | Sequence[int]
Targets: TypeAlias = str | Sequence[str]


@dataclass(frozen=True)
class Match:
    """One thing that was targeted.

    Args:
        path: the module's name in the model, '' for the model itself.
        module: the module.
        parameter: None for the module itself, else the name of a parameter of it that stands for a layer.
        role: its most specific role, such as 'q', 'qkv', 'gate-up', 'expert', 'norm', 'block' or 'other'.
        layer: the index of its block in the stack of blocks, None outside the blocks.
        read: whether the model reads its weight, beside or instead of calling it: what sits on it must change the parameter.
    """

    path: str
    module: nn.Module
    parameter: str | None
    role: str
    layer: int | None
    read: bool = False


def resolve(
    model: nn.Module,
    targets: str | Sequence[str],
    *,
    exclude: str | Sequence[str] | None = None,
    layers: Layers | None = None,
) -> list[Match]:
    """The modules and parameters that the targets name, in module order and each once.

    Args:
        model: any module; adapters on it are passed over.
        targets: one entry or several (see the module's docstring).
        exclude: entries of the same language; what they match is left out, with everything inside it.
        layers: 3, -1, [0, 5], a slice '4:8' or '-4:', or '0-5' with both ends.

    Raises:
        TargetError: an entry matches nothing, nothing is left of an entry, or the layers do not fit the model.
    """
    anatomy = Anatomy(model)
    chosen = {entry: _find(anatomy, entry, "targets") for entry in _entries(targets, "targets")}
    excluded: set[tuple[str, str | None]] = set()
    for entry in [] if exclude is None else _entries(exclude, "exclude"):
        excluded |= {(part.node.path, part.parameter) for part in _find(anatomy, entry, "exclude")}
    kept = {entry: [part for part in parts if not _inside(part, excluded)] for entry, parts in chosen.items()}
    for entry, parts in kept.items():
        _refuse_bypassed(entry, parts)
    if layers is not None:
        wanted = _layer_filter(layers, anatomy, [part for parts in kept.values() for part in parts])
        kept = {entry: [part for part in parts if wanted(part)] for entry, parts in kept.items()}
    for entry, parts in kept.items():
        if not parts:
            narrowed = {"exclude": exclude, "layers": layers}
            given = " and ".join(f"{name}={value!r}" for name, value in narrowed.items() if value is not None)
            raise TargetError(
                f"targets={entry!r} matches {len(chosen[entry])} places in {_name(anatomy)}, and {given} leaves none of them.\n"
                "  Leave the entry out, or narrow less."
            )
    return _matches(part for parts in kept.values() for part in parts)


def roles(model: nn.Module) -> dict[str, list[Match]]:
    """Every published role the model has, with what it matches: `resolve(model, role)` for each of them."""
    anatomy = Anatomy(model)
    found = {role: [part for part in anatomy.parts if role in part.groups] for role in ROLES}
    return {role: _matches(parts) for role, parts in found.items() if parts}


def roles_of(model: nn.Module) -> Callable[[str], str]:
    """A function from a path to its role, for reports over many paths (see `role_of`)."""
    known: dict[str, str] = {}
    for part in Anatomy(model).parts:
        known.update(dict.fromkeys(part.paths, part.role))
        # a module of fused experts is what its parameters are
        if part.parameter and part.node.role == "other":
            known.update(dict.fromkeys([part.node.path, *part.node.aliases], part.role))

    def role(path: str) -> str:
        names = path.split(".")
        if "adaptome_shared" in names:
            return "shared"
        names = names[: names.index("adaptome")] if "adaptome" in names else names
        while names and ".".join(names) not in known:
            names.pop()
        return known[".".join(names)]

    return role


def role_of(model: nn.Module, path: str) -> str:
    """The most specific role of a module, of a parameter, or of what an adapter below `.adaptome.` sits on.

    A parameter has its module's role. State that adapters share is 'shared', what has no role 'other'.
    """
    return roles_of(model)(path)


def _matches(parts: Iterable[Part]) -> list[Match]:
    unique = {(part.node.order, _position(part)): part for part in parts}
    ordered = [unique[key] for key in sorted(unique)]
    return [
        Match(p.node.path, p.node.module, p.parameter, p.role, p.node.layer, p.node.read) for p in ordered
    ]


def _position(part: Part) -> int:
    return -1 if part.parameter is None else list(part.node.module._parameters).index(part.parameter)


def _entries(value: str | Sequence[str], what: str) -> list[str]:
    entries = (
        [value] if isinstance(value, str) else list(value) if isinstance(value, (Sequence, set)) else [value]
    )
    if not entries:
        raise TargetError(
            f"{what} is empty.\n  Name at least one role or pattern, such as {what}='attention'."
        )
    for entry in entries:
        if not isinstance(entry, str) or not entry:
            raise TargetError(
                f"{what} holds {entry!r}; an entry is a role, a glob, or 're:' and a regex, as a string."
            )
    return list(dict.fromkeys(entries))


# -- what an entry matches


def _find(anatomy: Anatomy, entry: str, what: str) -> list[Part]:
    if entry.startswith("="):
        found = list(anatomy.by_path.get(entry[1:], ()))
    elif entry in ROLES:
        found = [part for part in anatomy.parts if entry in part.groups]
    else:
        fits = _pattern(entry, what)
        found = [part for part in anatomy.parts if _fits(part, fits, anatomy)]
        covered = {part.node for part in found if part.parameter}
        found = [
            part for part in found if not (_is_bypassed(part) and part.node in covered)
        ]  # its weight is there
        found = found or _role_within(anatomy, entry)
        found = found or [part for part in _plain_parameters(anatomy) if _fits(part, fits, anatomy)]
    if not found:
        raise TargetError(_nothing(anatomy, entry, what))
    return found


def _role_within(anatomy: Anatomy, entry: str) -> list[Part]:
    """What `<module>.<role>` names: the role within the module of that path, or end of a path."""
    module, _, role = entry.rpartition(".")
    if role not in ROLES or not module:
        return []
    fits = _pattern(module, "targets")
    roots = [node for node in anatomy.nodes if any(fits(path) for path in (node.path, *node.aliases) if path)]
    inside = {below for root in roots for below in anatomy.subtree(root)}
    return [part for part in anatomy.parts if role in part.groups and part.node in inside]


def _pattern(entry: str, what: str) -> Callable[[str], object]:
    if entry.startswith("re:"):
        try:
            return re.compile(entry[3:]).fullmatch
        except re.error as error:
            raise TargetError(f"{what}={entry!r} is not a regular expression: {error}.") from None
    if any(sign in entry for sign in "*?["):
        return re.compile(fnmatch.translate(entry)).match
    return lambda path: path == entry or path.endswith("." + entry)


def _fits(part: Part, fits: Callable[[str], object], anatomy: Anatomy) -> bool:
    if not part.node.path and part.parameter is None and len(anatomy.nodes) > 1:
        return False  # `*` means the modules in the model, not the model as well
    return any(fits(path) for path in part.paths)


def _plain_parameters(anatomy: Anatomy) -> Iterable[Part]:
    for node in anatomy.nodes:
        for name, parameter in node.module._parameters.items():
            if parameter is not None:
                yield Part(node, name, node.role, frozenset())


def _inside(part: Part, excluded: set[tuple[str, str | None]]) -> bool:
    if not excluded:
        return False
    if (part.node.path, part.parameter) in excluded:
        return True
    return any((node.path, None) in excluded for node in (part.node, *part.node.ancestors()))


def _is_bypassed(part: Part) -> bool:
    return part.parameter is None and is_bypassed(part.node)


def _refuse_bypassed(entry: str, parts: list[Part]) -> None:
    if paths := [part.node.path for part in parts if _is_bypassed(part)]:
        raise TargetError(
            f"targets={entry!r} names {paths[0]!r}, the output map of an nn.MultiheadAttention"
            + (f" (and {len(paths) - 1} more)" if len(paths) > 1 else "")
            + ": torch uses its weight and never calls it, so nothing put on it would run.\n"
            f"  Write targets='o' or targets={paths[0] + '.weight'!r} for the weight, or exclude={paths[0]!r}."
        )


# -- layers


def _layer_filter(layers: Layers, anatomy: Anatomy, parts: list[Part]) -> Callable[[Part], bool]:
    """Whether a part is in the layers asked for; its stack's own length counts for negative and open ends."""
    length: dict[str, int] = {}
    for block in anatomy.blocks:
        if block.parent is not None and block.index is not None:
            length[block.parent.path] = max(length.get(block.parent.path, 0), block.index + 1)
    stacks = {part.node.stack: length[part.node.stack] for part in parts if part.node.stack is not None}
    if not stacks:
        raise TargetError(
            f"layers={layers!r}: nothing that was targeted in {_name(anatomy)} is in a stack of blocks.\n  Leave layers out."
        )
    indices = _parse_layers(layers)
    longest = max(stacks.values())
    if indices is None:
        raise TargetError(
            f"layers={layers!r} is no choice of layers.\n"
            "  Write an index (3, -1), a list of them ([0, 5]), a slice ('4:8', '-4:') or a range with both ends ('0-5')."
        )
    chosen, within = indices(longest)
    if not within or not chosen:
        shown = ", ".join(f"{size} in {path or 'the model'}" for path, size in list(stacks.items())[:6])
        raise TargetError(
            f"layers={layers!r} does not fit {_name(anatomy)}: it has {shown}.\n"
            f"  Layers count from 0 to {longest - 1}, or from the end, -1 to {-longest}."
        )
    allowed = {path: indices(size)[0] for path, size in stacks.items()}
    return lambda part: part.node.stack is not None and part.node.layer in allowed[part.node.stack]


def _parse_layers(layers: Layers) -> Callable[[int], tuple[set[int], bool]] | None:
    """A function from a stack's length to the indices chosen and whether all that was written is in range."""
    if isinstance(layers, str):
        if cut := re.fullmatch(r"\s*(-?\d+)?\s*:\s*(-?\d+)?\s*", layers):
            start, stop = (None if bound is None else int(bound) for bound in cut.groups())
            bounds = [bound for bound in (start, stop) if bound is not None]
            return lambda n: (set(range(n)[start:stop]), all(-n <= bound <= n for bound in bounds))
        if both := re.fullmatch(r"\s*(\d+)\s*-\s*(\d+)\s*", layers):
            first, last = map(int, both.groups())
            return lambda n: (set(range(first, min(last + 1, n))), first <= last < n)
        if not re.fullmatch(r"\s*-?\d+\s*", layers):
            return None
        layers = int(layers)
    wanted = [layers] if isinstance(layers, int) else list(layers) if isinstance(layers, Iterable) else [None]
    if not wanted or any(isinstance(index, bool) or not isinstance(index, int) for index in wanted):
        return None
    return lambda n: ({i % n for i in wanted if -n <= i < n}, all(-n <= i < n for i in wanted))


# -- when nothing matches


def _name(anatomy: Anatomy) -> str:
    return type(anatomy.model).__name__


def _nothing(anatomy: Anatomy, entry: str, what: str) -> str:
    """The message for an entry without a match: what the model has instead, and what to write."""
    names = Counter(
        _leaf(part) for part in anatomy.parts if part.groups - {"blocks", "norms"} and part.paths[0]
    )
    maps = [_leaf(part) for part in anatomy.parts if "all-linear" in part.groups and part.paths[0]]
    word = entry.removeprefix("re:").removeprefix("=").rstrip("$").rpartition(".")[2].strip("*?\\()")
    near = [] if entry in ROLES else nearest(word, names)
    holds = ", ".join(f"{names[name]} {name}" for name in list(dict.fromkeys([*near, *maps]))[:8])
    here = [role for role in ROLES if any(role in part.groups for part in anatomy.parts)]
    ways = _advice(anatomy, entry, word, near, here, what)
    problem = "is a role that nothing in {} has" if entry in ROLES else "matches no module of {}"
    lines = [
        f"{what}={entry!r} {problem.format(_name(anatomy))}.",
        f"  It has {holds or 'no linear maps inside it'}; its roles: {', '.join(here) or 'none'}.",
    ]
    if ways:
        choices = " or ".join(f"{what}={way!r}" for way in ways)
        lines.append(f"  Write {choices}; `adaptome inspect` lists every layer.")
    return "\n".join(lines)


def _advice(
    anatomy: Anatomy, entry: str, word: str, near: list[str], here: list[str], what: str
) -> list[str]:
    """What to write instead: the role that was meant and how this model calls it, or the nearest name."""
    meant = guess_role(word)
    if meant in here and entry not in ROLES:
        called = [_leaf(part) for part in anatomy.parts if meant in part.groups]
        return list(dict.fromkeys([meant, *called]))[:2]
    broader = {
        "gate": "up",
        "experts": "mlp",
        "router": "mlp",
        "mlp-blocks": "blocks",
        "attention-blocks": "blocks",
    }
    close = [broader[entry]] if entry in broader else nearest(entry, ROLES)
    general = ["all-linear", "convs"] if what == "targets" and not near else []
    return [*[role for role in [*close, *general] if role in here][:1], *near[:1]]


def _leaf(part: Part) -> str:
    """The last name of a part's path that says something: `to_out.0`, not `0`."""
    names = part.paths[0].split(".")
    return ".".join(names[-2:]) if names[-1].isdigit() or names[-1] == "weight" else names[-1]
