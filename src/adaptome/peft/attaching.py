"""A configuration of PEFT's on a model, and a packed model made ready for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import adaptome as ad
from adaptome.core.errors import MethodError
from adaptome.core.state import attachment_of
from adaptome.peft.configs import PeftConfig
from adaptome.peft.targets import targets_of

#: heads that are trained with every adapter of a task
_HEADS = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}


def attach(model: nn.Module, config: PeftConfig, name: str, dtype: torch.dtype | None) -> ad.Plan:
    """What a configuration of PEFT's means, attached."""
    if not isinstance(config, PeftConfig):
        raise MethodError(
            f"{type(config).__name__} is none of the configurations here.\n  Import them from adaptome.peft; AdaptomeConfig(method=...) is any method."
        )
    config.check()
    method, settings = config.method()
    paths = targets_of(model, config)
    layer = getattr(config, "layer", None)
    modules = dict(model.named_modules())
    own = {f"={path}": layer(path, modules.get(path)) for path in paths or ()} if layer is not None else {}
    targets: Any = [f"={path}" for path in paths] if paths else getattr(config, "targets", None)
    there = {path.rpartition(".")[2] for path, _ in model.named_modules()}
    heads = [
        h for h in _HEADS.get(str(getattr(config.task_type, "value", config.task_type)), ()) if h in there
    ]
    train = list(dict.fromkeys([*(getattr(config, "modules_to_save", None) or ()), *heads]))
    plan = ad.attach(
        model, method, name, targets=targets, train=train, dtype=dtype,
        per_layer={path: changes for path, changes in own.items() if changes}, **settings,
    )  # fmt: skip
    if not config.starts_as_base:
        config.start(attachment_of(model, name))
    if config.inference_mode:
        ad.set_trainable(model, name, False)
    return plan


def dtype_of(model: nn.Module) -> torch.dtype | None:
    """The type of its first parameter of fractions."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), None)


def prepare_model_for_kbit_training(
    model: nn.Module,
    use_gradient_checkpointing: bool = True,
    gradient_checkpointing_kwargs: dict[str, Any] | None = None,
) -> nn.Module:
    """A quantised model made ready: frozen, what is not packed in float32, inputs that ask for gradients, and checkpointing."""
    any_model: Any = model
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        if parameter.dtype in (torch.float16, torch.bfloat16) and type(parameter) is nn.Parameter:
            parameter.data = parameter.data.to(torch.float32)
    if use_gradient_checkpointing:
        how = (
            {"use_reentrant": True}
            if gradient_checkpointing_kwargs is None
            else gradient_checkpointing_kwargs
        )
        if how.get("use_reentrant", True):
            any_model.enable_input_require_grads()
        any_model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=how)
    return model
