"""PEFT's functions: a model with a new adapter, and an adapter's tensors read and set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from adaptome.core.errors import StateError
from adaptome.core.state import attachment_of
from adaptome.peft import state
from adaptome.peft.attaching import attach
from adaptome.peft.configs import PeftConfig
from adaptome.peft.model import Loaded, PeftModel, class_of
from adaptome.peft.tuner import Tuner


def get_peft_model(
    model: nn.Module,
    peft_config: PeftConfig,
    adapter_name: str = "default",
    mixed: bool = False,
    autocast_adapter_dtype: bool = True,
    revision: str | None = None,
    low_cpu_mem_usage: bool = False,
) -> PeftModel:
    """The model with a new adapter; the base is frozen.

    Args:
        model: any module; its layers get the adapters in place.
        peft_config: PEFT's configuration, or `AdaptomeConfig(method=...)`.
        adapter_name: its name.
        mixed: for PEFT's signature; adapters of different types mix in every model here.
        autocast_adapter_dtype: hold half-precision adapters in float32.
        revision: of the base, noted in the configuration.
        low_cpu_mem_usage: for PEFT's signature.

    Raises:
        TargetError: the targets match nothing. MethodError, HostError: as `ad.attach`.
    """
    settings = getattr(model, "config", None)
    peft_config.base_model_name_or_path = getattr(settings, "_name_or_path", None) or model.__dict__.get(
        "name_or_path"
    )
    peft_config.revision = revision or peft_config.revision
    return class_of(peft_config.task_type)(model, peft_config, adapter_name, autocast_adapter_dtype)


def inject_adapter_in_model(
    peft_config: PeftConfig, model: nn.Module, adapter_name: str = "default", low_cpu_mem_usage: bool = False
) -> nn.Module:
    """Attach what a configuration says to the model itself, which is returned.

    Raises:
        TargetError, MethodError, HostError: as `ad.attach`.
    """
    attach(model, peft_config, adapter_name, None)
    return model


def get_peft_model_state_dict(
    model: nn.Module, state_dict: Mapping[str, Tensor] | None = None, adapter_name: str = "default", **_: Any
) -> dict[str, Tensor]:
    """The adapter's tensors by PEFT's keys, on the CPU.

    Args:
        model: a PeftModel.
        state_dict: for PEFT's signature; the adapter's tensors are read from the model.
        adapter_name: of the adapter.

    Raises:
        StateError: no adapter has that name. MergeError: PEFT has no such adapter on a layer.
    """
    attachment = attachment_of(model, adapter_name)
    return state.read(model, attachment, _config(model, adapter_name))


def set_peft_model_state_dict(
    model: nn.Module, peft_model_state_dict: Mapping[str, Tensor], adapter_name: str = "default", **_: Any
) -> Loaded:
    """Set the adapter's tensors from what `get_peft_model_state_dict` gave.

    Raises:
        KeyMismatchError: one is missing, unexpected or misshapen; nothing is set then.
    """
    attachment = attachment_of(model, adapter_name)
    state.write(model, attachment, _config(model, adapter_name), peft_model_state_dict)
    return Loaded([], [])


def _config(model: nn.Module, name: str) -> PeftConfig:
    configs: dict[str, PeftConfig] | None = getattr(model, "peft_config", None)
    if not isinstance(model, (PeftModel, Tuner)) or configs is None:
        raise StateError(f"{type(model).__name__} is no PeftModel: make it one with get_peft_model.")
    config: PeftConfig = configs[name]
    return config
