"""What models of several modalities share: their names, and inputs that are not there."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from adaptome.core.errors import ModelError

#: names that a module with submodules by name has itself
_TAKEN = frozenset(dir(nn.ModuleDict()))


def check_names(names: Sequence[str]) -> None:
    """Names of modalities are those of modules too.

    Raises:
        ModelError: fewer than two, or one that cannot be a module's name.
    """
    if len(names) < 2:
        raise ModelError(f"{list(names)} is no set of modalities; name two or more.")
    for name in names:
        if not re.fullmatch(r"[A-Za-z]\w*", name) or name in _TAKEN:
            raise ModelError(f"a modality cannot be called {name!r}; take letters, digits and '_', e.g. rgb.")


def check_given(given: Mapping[str, Any], names: Sequence[str]) -> None:
    """Inputs must be of the model's modalities, and of one at least.

    Raises:
        ModelError: names what is there and what could be.
    """
    stray = [name for name in given if name not in names]
    if stray or not given:
        raise ModelError(
            f"the model takes {', '.join(names)}, any of them but one at least; given: {', '.join(given) or 'nothing'}."
        )


def keep_statistics(model: nn.Module) -> None:
    """Batch norms that do not train use, and keep, the statistics they came with; called after `train`.

    A bank of one set of modalities would else change what the others, and the full set, see.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            own = [p for p in (module.weight, module.bias) if p is not None]
            if own and not any(p.requires_grad for p in own):
                module.training = False
