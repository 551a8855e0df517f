"""adaptome: parameter-efficient adaptation of foundation models.

    import adaptome as ad
    ad.attach(model, "lora", r=8, targets="attention")      # or ad.attach(model, ad.LoRA(r=8), ...)
    ...train...
    ad.save(model, "out/")

Every method's class is an attribute (`ad.LoRA`, `ad.DoRA`); `ad.list_methods()` lists them all.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from adaptome.core import discovery, errors
from adaptome.core.errors import AdaptomeError
from adaptome.core.version import __version__ as __version__

if TYPE_CHECKING:
    from adaptome.arithmetic import Combination, average, combine
    from adaptome.core.access import set_state, weight_of
    from adaptome.core.adapter import Adapter, Frozen
    from adaptome.core.attaching import attach, plan
    from adaptome.core.checkpoint import LoadReport, load, save
    from adaptome.core.dense import dequantize
    from adaptome.core.gradients import check_gradients
    from adaptome.core.hosts import Host
    from adaptome.core.merging import MergeReport, merge, unmerge
    from adaptome.core.method import Method, get_method, list_methods, option, register
    from adaptome.core.model import (
        activate,
        active,
        detach,
        disabled,
        on_step,
        parameters_of,
        penalty,
        set_trainable,
        trainable,
    )
    from adaptome.core.plan import Entry, Plan, Report
    from adaptome.core.rows import per_row
    from adaptome.core.state import Attachment, adapters
    from adaptome.core.steer import steer, steered, steered_again
    from adaptome.core.streams import TaskStreams
    from adaptome.forms.soft import plain_prompt, prompt_from
    from adaptome.forms.token_merging import merged_tokens
    from adaptome.interop.convert import Conversion, convert
    from adaptome.interop.formats import ExportReport, export
    from adaptome.interop.llama_cpp.models import save_gguf
    from adaptome.interop.merge_reports import MergedFile, MergedFolder
    from adaptome.interop.merged import save_merged
    from adaptome.interop.onnx_files import export_onnx
    from adaptome.interop.swapping import Swap, hot_swap
    from adaptome.methods.low_rank.cloq import cloq
    from adaptome.methods.low_rank.corda import corda
    from adaptome.methods.low_rank.eva import eva
    from adaptome.methods.low_rank.loftq import loftq
    from adaptome.methods.quantized.l4q import pack
    from adaptome.methods.quantized.qwha import qwha
    from adaptome.quantization.adopting import adopt
    from adaptome.quantization.checkpoints import save_gptq
    from adaptome.quantization.hub import load_quantized
    from adaptome.quantization.quantizing import QuantiseReport, quantize

__all__ = [
    "Adapter", "AdaptomeError", "Attachment", "Combination", "Conversion", "Entry", "ExportReport", "Frozen", "Host", "LoadReport", "MergeReport", "MergedFile", "MergedFolder", "Method", "Plan", "QuantiseReport", "Report", "Swap", "TaskStreams",
    "activate", "active", "adapters", "adopt", "attach", "average", "check_gradients", "cloq", "combine", "convert", "corda", "dequantize", "detach", "disabled", "errors", "eva", "export", "export_onnx", "get_method", "hot_swap", "list_methods", "load", "load_quantized", "loftq", "merge",
    "merged_tokens", "on_step", "option", "pack", "parameters_of", "penalty", "per_row", "plain_prompt", "plan", "prompt_from", "quantize", "qwha", "register", "save", "save_gguf", "save_gptq", "save_merged", "set_state", "set_trainable", "steer", "steered", "steered_again", "trainable", "unmerge", "weight_of",
]  # fmt: skip

# Floors whose parts register themselves: found by the core, which does not know that they are there.
discovery.home("methods", "adaptome.methods")
discovery.home("quantization", "adaptome.quantization")
discovery.home("interop", "adaptome.interop")

# Where the names above live. They are imported when first used, so that what needs none of them, as
# `adaptome --help`, does not wait for torch.
_HOMES = {
    "adaptome.arithmetic": ("Combination", "average", "combine"),
    "adaptome.core.access": ("set_state", "weight_of"),
    "adaptome.core.adapter": ("Adapter", "Frozen"),
    "adaptome.core.checkpoint": ("LoadReport", "load", "save"),
    "adaptome.core.gradients": ("check_gradients",),
    "adaptome.core.hosts": ("Host",),
    "adaptome.core.merging": ("MergeReport", "merge", "unmerge"),
    "adaptome.core.method": ("Method", "get_method", "hot_swap", "list_methods", "option", "register"),
    "adaptome.core.attaching": (
        "attach",
        "plan",
    ),
    "adaptome.core.model": (
        "activate",
        "active",
        "detach",
        "disabled",
        "on_step",
        "parameters_of",
        "penalty",
        "set_trainable",
        "trainable",
    ),
    "adaptome.core.rows": ("per_row",),
    "adaptome.core.state": (
        "Attachment",
        "adapters",
    ),
    "adaptome.core.plan": ("Entry", "Plan", "Report"),
    "adaptome.core.steer": ("steer", "steered", "steered_again"),
    "adaptome.core.streams": ("TaskStreams",),
    "adaptome.forms.token_merging": ("merged_tokens",),
    "adaptome.interop.convert": ("Conversion", "convert"),
    "adaptome.interop.llama_cpp.models": ("save_gguf",),
    "adaptome.interop.merge_reports": ("MergedFile", "MergedFolder"),
    "adaptome.interop.onnx_files": ("export_onnx",),
    "adaptome.interop.merged": ("save_merged",),
    "adaptome.interop.formats": ("ExportReport", "export"),
    "adaptome.interop.swapping": ("Swap", "hot_swap"),
    "adaptome.forms.soft": ("plain_prompt", "prompt_from"),
    "adaptome.core.dense": ("dequantize",),
    "adaptome.methods.low_rank.cloq": ("cloq",),
    "adaptome.methods.low_rank.corda": ("corda",),
    "adaptome.methods.quantized.l4q": ("pack",),
    "adaptome.methods.quantized.qwha": ("qwha",),
    "adaptome.quantization.adopting": ("adopt",),
    "adaptome.quantization.checkpoints": ("save_gptq",),
    "adaptome.quantization.hub": ("load_quantized",),
    "adaptome.quantization.quantizing": ("QuantiseReport", "quantize"),
    "adaptome.methods.low_rank.eva": ("eva",),
    "adaptome.methods.low_rank.loftq": ("loftq",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """A public name from its module; a method's class by its name, found through the registry."""
    if name in _HOME:
        value = globals()[name] = getattr(importlib.import_module(_HOME[name]), name)
        return value
    if name.startswith("_"):
        raise AttributeError(f"module 'adaptome' has no attribute {name!r}.")
    from adaptome.core.method import list_methods

    classes = {method.__name__: method for method in list_methods().values()}
    if name in classes:
        return classes[name]
    raise AttributeError(
        f"module 'adaptome' has no attribute {name!r}.{errors.did_you_mean(name, [*__all__, *classes])}"
    )


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
