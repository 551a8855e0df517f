"""Whether training reaches every adapter: the check of the first gradients."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import nn

from adaptome.core.errors import GradientError
from adaptome.core.state import STATE, State, find_root

#: backwards that a model in training mode is given until a gradient has reached every adapter: of layers that are left out of half of the
#: forwards, one in 256 is not run in so many
PATIENCE = 8


def check_gradients(model: nn.Module, left: int | None = None) -> bool:
    """After a backward: make sure that a gradient reached every adapter that should train.

    Experts are left out: one that no token was routed to has none; so are adapters that steering leaves out of some forwards.

    Args:
        model: with adapters.
        left: optimizer steps that are still to come after this one. In training mode layers may be skipped at random (LayerDrop): an adapter
            that no gradient has reached is then looked at again in the next steps, and judged after the eighth or the last of them.
            None: judge now, by the gradients that are there.

    Returns:
        Whether it is settled; False asks for a call after the next backward.

    Raises:
        GradientError: naming the adapters without.
    """
    root = find_root(model)
    state: State = root.__dict__[STATE]
    missing, total = [], 0
    for key, has_gradient in _training(state):
        total += 1
        if has_gradient:
            state.reached.add(key)
        elif key not in state.reached:
            missing.append(key)
    state.looks += 1
    # a model that is known to skip layers is not judged by fewer steps, for they tell nothing
    waiting = (
        left is not None and root.training and state.looks < PATIENCE and (left > 0 or _skips_layers(root))
    )
    if missing and waiting:
        return False
    looks, state.looks, state.reached, state.unsettled = state.looks, 0, set(), False
    if missing:
        shown = ", ".join(missing[:6]) + (f" and {len(missing) - 6} more" if len(missing) > 6 else "")
        steps = f" in {looks} steps" if looks > 1 else ""
        raise GradientError(
            f"no gradient reached {len(missing)} of {total} adapters{steps}: {shown}.\n"
            "  Usual causes: the layer is not run in this forward; it is skipped at random (LayerDrop: look at more steps, or set it to 0);\n"
            "  its weight is read by code that does not call it; its output is detached; or gradient checkpointing with use_reentrant=True\n"
            "  on a frozen embedding (call model.enable_input_require_grads(), or use_reentrant=False)."
        )
    return True


def _training(state: State) -> Iterator[tuple[str, bool]]:
    """Every active adapter that trains and cannot idle, and whether it has a gradient."""
    for name in state.active:
        for path, adapter in state.attachments[name].all().items():
            training = [p for p in adapter.parameters() if p.requires_grad]
            has_gradient = any(p.grad is not None for p in training)
            if training and (has_gradient or not (adapter.may_idle or "expert" in adapter.host.role)):
                yield f"{name}: {path}", has_gradient


def _skips_layers(root: nn.Module) -> bool:
    """Whether the configuration says that layers are skipped at random (`layerdrop`, `encoder_layerdrop`, ...)."""
    config: Any = getattr(root, "config", None)
    return hasattr(config, "to_dict") and _positive_layerdrop(config.to_dict())


def _positive_layerdrop(settings: dict[str, Any]) -> bool:
    return any(
        _positive_layerdrop(value)
        if isinstance(value, dict)
        else bool(re.search("layer_?drop$", str(key)) and isinstance(value, float) and value > 0)
        for key, value in settings.items()
    )
