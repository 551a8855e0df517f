"""adaptome: parameter-efficient adaptation of foundation models.

    import adaptome as ad
    ad.attach(model, "lora", r=8, targets="attention")      # or ad.attach(model, ad.LoRA(r=8), ...)
    ...train...
    ad.save(model, "out/")

Every method's class is an attribute (`ad.LoRA`, `ad.DoRA`); `ad.list_methods()` lists them all.
"""

from typing import Any

from adaptome.core import errors
from adaptome.core.adapter import Adapter, Frozen
from adaptome.core.checkpoint import LoadReport, load, save
from adaptome.core.errors import AdaptomeError
from adaptome.core.hosts import Host
from adaptome.core.merging import MergeReport, merge, unmerge
from adaptome.core.method import Method, get_method, list_methods, option, register
from adaptome.core.model import (
    Attachment,
    activate,
    active,
    adapters,
    attach,
    check_gradients,
    detach,
    disabled,
    on_step,
    parameters_of,
    penalty,
    plan,
    set_trainable,
    trainable,
)
from adaptome.core.plan import Entry, Plan, Report
from adaptome.core.steer import steer, steered
from adaptome.interop.peft import ExportReport, export

__version__ = "0.1.0"

__all__ = [
    "Adapter", "AdaptomeError", "Attachment", "Entry", "ExportReport", "Frozen", "Host", "LoadReport", "MergeReport", "Method", "Plan", "Report",
    "activate", "active", "adapters", "attach", "check_gradients", "detach", "disabled", "errors", "export", "get_method", "list_methods", "load", "merge",
    "on_step", "option", "parameters_of", "penalty", "plan", "register", "save", "set_trainable", "steer", "steered", "trainable", "unmerge",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Method classes by name, found through the registry."""
    if name[:1].isupper():
        for method in list_methods().values():
            if method.__name__ == name:
                return method
    raise AttributeError(
        f"module 'adaptome' has no attribute {name!r}.{errors.did_you_mean(name, [*__all__, *(m.__name__ for m in list_methods().values())])}"
    )
