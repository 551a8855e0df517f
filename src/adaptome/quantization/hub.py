"""transformers' side: quantised models are saved by `save_pretrained` and loaded by `from_pretrained`, as those of its own quantisers.

`register` makes transformers know our format; loading a model through adaptome does that by itself.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

from adaptome.core.errors import ModelError
from adaptome.core.hosts import host_of
from adaptome.quantization import checkpoints
from adaptome.quantization.formats import format_from
from adaptome.quantization.layers import PackedLinear

METHOD = "adaptome"


@functools.cache
def register() -> tuple[type[Any], type[Any]]:
    """Let transformers load our format, and GPTQ's and AWQ's where it cannot; gives the classes of our configuration and quantiser. Does nothing the second time."""
    from transformers.quantizers import HfQuantizer
    from transformers.quantizers.auto import register_quantization_config, register_quantizer
    from transformers.utils.quantization_config import QuantizationConfigMixin

    @register_quantization_config(METHOD)
    class AdaptomeConfig(QuantizationConfigMixin):
        """Which modules are packed, and how: name -> format."""

        def __init__(self, modules: dict[str, dict[str, Any]], **kwargs: Any):
            self.quant_method: Any = METHOD
            self.modules = modules

    @register_quantizer(METHOD)
    class AdaptomeQuantizer(HfQuantizer):
        """Puts empty packed layers in place; their bytes are then loaded as any other weights."""

        requires_calibration = True  # it loads what `quantize` made; it quantises nothing itself

        def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:
            config: Any = self.quantization_config
            for path, settings in config.modules.items():
                model.set_submodule(path, _empty(model, path, settings))

        def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
            return model

        def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
            return True

        @property
        def is_trainable(self) -> bool:
            return True

    checkpoints.register(describe)
    return AdaptomeConfig, AdaptomeQuantizer


def _empty(model: nn.Module, path: str, settings: dict[str, Any]) -> PackedLinear:
    try:
        old = model.get_submodule(path)
    except AttributeError as error:
        raise ModelError(
            f"the folder's quantised layer {path!r} has no place in {type(model).__name__}; load it as the model that was quantised."
        ) from error
    host = host_of(old, path)
    bias = old._parameters.get("bias")
    dtype = None if bias is None else bias.dtype
    form = dict(settings)
    ordered = bool(form.pop("ordered", False))
    device = host.stored("weight").device
    return PackedLinear(
        host.fan_in,
        host.fan_out,
        bias is not None,
        format_from(form),
        device=device,
        dtype=dtype,
        ordered=ordered,
    )


def describe(model: Any) -> None:
    """Set the model's quantisation configuration from its layers: ours, or bitsandbytes' where its layers were put in."""
    ours = {name: _settings(m) for name, m in model.named_modules() if isinstance(m, PackedLinear)}
    settings = _described(ours) if ours else _bitsandbytes(model)
    if settings is None:
        return
    from transformers.quantizers.auto import AutoHfQuantizer

    model.config.quantization_config = settings
    model.hf_quantizer = AutoHfQuantizer.from_config(settings, pre_quantized=True)
    model.is_quantized = True
    model.quantization_method = settings.quant_method


def _settings(layer: PackedLinear) -> dict[str, Any]:
    return layer.form.to_dict() | ({} if layer.order is None else {"ordered": True})


def _described(modules: dict[str, dict[str, Any]]) -> Any:
    config, _ = register()
    return config(modules)


def _bitsandbytes(model: Any) -> Any:
    found = {n: m for n, m in model.named_modules() if type(m).__name__ == "Linear4bit"}
    if not found:
        return None
    from transformers import BitsAndBytesConfig

    first: Any = next(iter(found.values()))
    kept = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n not in found]
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=first.weight.quant_state.nested,
        bnb_4bit_compute_dtype=first.compute_dtype or torch.float32,
        llm_int8_skip_modules=kept or ["lm_head"],
    )
    model.is_loaded_in_4bit = True
    return settings


def load_quantized(folder: Any, auto: Any = None, **settings: Any) -> Any:
    """A model from a folder that `adaptome quantize` or `save_pretrained` wrote, or a tool for GPTQ or AWQ.

    Args:
        folder: the folder, or a hub id.
        auto: transformers' class to load it with; None for AutoModelForCausalLM.
        settings: of `from_pretrained`.
    """
    from transformers import AutoModelForCausalLM

    register()
    return (auto or AutoModelForCausalLM).from_pretrained(folder, **settings)
