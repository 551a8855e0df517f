"""The frozen base held in evaluation mode while its adapters and head train."""

from __future__ import annotations

from torch import nn

from adaptome.core.state import is_ours


def hold_base(model: nn.Module) -> None:
    """Put what is frozen of a model in training mode back into evaluation mode: its dropout, layer drop, own masking.

    The adapters, with their batch norms, and what stands outside the base (the head and its dropout) keep training. Modules
    that recompute their activations stay in training mode too, for only then do they. Called after every `model.train()`.
    """
    prefix = getattr(model, "base_model_prefix", "")
    base = getattr(model, prefix, None) if prefix else None
    root = base if isinstance(base, nn.Module) else model
    for name, module in root.named_modules():
        if module is not model and not is_ours(name) and not getattr(module, "gradient_checkpointing", False):
            module.training = False
