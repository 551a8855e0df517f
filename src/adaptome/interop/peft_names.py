"""What PEFT calls things and takes: its files, its modules by name (a whole one, what it ends in after a dot, or one regular expression)."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator

from adaptome.core.errors import MergeError
from adaptome.core.hosts import Host

CONFIG, TENSORS, PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."


def has_form(host: Host, format: str = "peft-lora") -> bool:
    """Whether PEFT computes the same on this layer: its convolutions know neither groups, dilation nor padding modes.

    Parameters by name (fused experts) have a form as LoRA alone, and not those of the model itself.
    """
    conv = host.layer
    plain = host.kind != "conv" or (
        conv.groups == 1 and set(conv.dilation) == {1} and conv.padding_mode == "zeros"
    )
    return plain and (
        host.kind not in ("experts", "parameter") or (format == "peft-lora" and bool(host.path))
    )


def target_modules(targets: Collection[str], names: Iterable[str]) -> list[str] | str:
    """What selects these targets and no other module: the shortest endings, which servers expect ('q_proj'); else a regular expression.

    Args:
        targets: full names.
        names: of all modules of the model.
    """
    taken = {ending for name in set(names) - set(targets) for ending in _endings(name)}
    own = [next((e for e in _endings(target) if e not in taken), None) for target in targets]
    if None in own:  # a target's whole name is what another module's ends in
        return "|".join(re.escape(target) for target in sorted(targets))
    return sorted({ending for ending in own if ending is not None})


def _endings(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[first:]) for first in reversed(range(len(parts))))


def check_heads(heads: Collection[str], targets: Collection[str]) -> None:
    """Raise MergeError when PEFT would leave a target out, because some part of its name is that of a head."""
    for head in heads:
        inside = [
            target for target in targets if re.match(rf"(^|.*\.){head}($|\..*)", target)
        ]  # PEFT's own rule
        if inside:
            raise MergeError(
                f"PEFT adapts nothing under a name that is trained whole: {head!r} is a head here, and so {inside[0]} would be left out.\n"
                "  Merge into the model instead, or leave one of them out."
            )
