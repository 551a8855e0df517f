"""Two places where transformers and TRL know PEFT's models only, and what we do instead.

transformers' Trainer refuses a quantised model without PEFT's mark; TRL casts whatever trains on a quantised
model to bfloat16, exempting PEFT's names. Both happen in `__init__` and both are undone right after it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from adaptome.core.errors import TrainingError

_MARK = "_hf_peft_config_loaded"


@contextmanager
def accepted_quantized(model: nn.Module | None) -> Iterator[None]:
    """Within it the Trainer takes a quantised `model`; adapters must be attached, which its check is about.

    Raises:
        TrainingError: the kind of quantisation passes no gradient.
    """
    if model is None or not getattr(model, "is_quantized", False) or getattr(model, _MARK, False):
        yield
        return
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None and not quantizer.is_trainable:
        kind = getattr(quantizer.quantization_config, "quant_method", type(quantizer).__name__)
        raise TrainingError(
            f"a base quantised with {kind} passes no gradient to the adapters below the top.\n"
            f"  Use bitsandbytes or torchao quantisation, or an unquantised base."
        )
    setattr(model, _MARK, True)
    try:
        yield
    finally:
        delattr(model, _MARK)


@contextmanager
def kept_dtypes(model: nn.Module | None) -> Iterator[None]:
    """Trainable parameters end with the dtype they began with: adapters have the dtype `attach` gave them."""
    before = {} if model is None else {n: p.data for n, p in model.named_parameters() if p.requires_grad}
    yield
    if model is None:
        return
    for name, parameter in model.named_parameters():
        old = before.get(name)
        if old is not None and parameter.dtype != old.dtype:
            parameter.data = old.to(parameter.device)
