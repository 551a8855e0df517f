"""`base_model` of PEFT's models: what is done to the adapters on a model."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import nn

import adaptome as ad
from adaptome.core.errors import StateError, did_you_mean
from adaptome.core.state import find_root, rearrange, state_of
from adaptome.peft.attaching import attach
from adaptome.peft.configs import PeftConfig
from adaptome.peft.mixed import add_weighted


class AdapterNameError(StateError, ValueError):
    """No adapter has that name, or it cannot be deleted as it is."""


class Tuner(nn.Module):
    """`base_model` of a PeftModel: the model with its adapters, in `model`, and what is done to them."""

    #: stands in the name of every parameter of an adapter
    prefix: ClassVar[str] = "adaptome."

    def __init__(self, model: nn.Module, peft_config: dict[str, PeftConfig]):
        super().__init__()
        self.model = model
        self.peft_config = peft_config

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model":
                raise
            return getattr(self.model, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model."""
        return self.model(*args, **kwargs)

    # -- which adapters run ----------------------------------------------------------------------------------------

    @property
    def active_adapters(self) -> list[str]:
        """The names of those that run."""
        return ad.active(self.model) if self.peft_config else []

    @property
    def active_adapter(self) -> str | list[str]:
        """The name of the one that runs; all names where there are several."""
        names = self.active_adapters
        return names[0] if len(names) == 1 else names

    def add(self, config: PeftConfig, name: str, dtype: torch.dtype | None = None) -> None:
        """Attach what a configuration says; those that ran go on running and nothing else, unless it is the first."""
        running = self.active_adapters
        attach(self.model, config, name, dtype)
        self.peft_config[name] = config
        if running:
            ad.activate(self.model, running)

    def set_adapter(self, adapter_name: str | Sequence[str], inference_mode: bool = False) -> None:
        """Run these and no other, and train them unless `inference_mode`.

        Raises:
            AdapterNameError: an unknown name.
        """
        names = [adapter_name] if isinstance(adapter_name, str) else list(adapter_name)
        self._check_names(names)
        ad.activate(self.model, names)
        for name in names:
            ad.set_trainable(self.model, name, not inference_mode)

    def _check_names(self, names: Sequence[str]) -> None:
        unknown = [name for name in names if name not in self.peft_config]
        if unknown:
            raise AdapterNameError(
                f"Adapter {unknown[0]} does not exist.{did_you_mean(unknown[0], self.peft_config)} There are {', '.join(self.peft_config)}."
            )

    def enable_adapter_layers(self) -> None:
        """Run the active adapters again."""
        self._disable(False)

    def disable_adapter_layers(self) -> None:
        """Run the base alone until they are enabled again."""
        self._disable(True)

    def _disable(self, disabled: bool) -> None:
        state_of(self.model).disabled = disabled
        rearrange(find_root(self.model), rest=False)

    def delete_adapter(self, adapter_name: str) -> None:
        """Take one off; where it ran, the first that is left runs.

        Raises:
            AdapterNameError: an unknown name, or it is merged.
        """
        self._check_names([adapter_name])
        if adapter_name in self.merged_adapters:
            raise AdapterNameError(
                f"Cannot delete adapter(s) [{adapter_name!r}] while they are merged. Please unmerge them first."
            )
        ad.detach(self.model, adapter_name)
        del self.peft_config[adapter_name]
        if self.peft_config and not self.active_adapters:
            self.set_adapter(next(iter(self.peft_config)))

    def add_weighted_adapter(
        self,
        adapters: Sequence[str],
        weights: Sequence[float],
        adapter_name: str,
        combination_type: str = "svd",
        svd_rank: int | None = None,
    ) -> None:
        """Add a LoRA that is a sum of others: 'cat' the exact sum, 'svd' the same cut to `svd_rank` (None: the largest rank), 'linear' of the factors themselves.

        Raises:
            MethodError: another type of adapter, or another rule. StateError: the numbers of names and weights differ, or ranks for 'linear'.
        """
        self._check_names(adapters)
        add_weighted(self, adapters, weights, adapter_name, combination_type, svd_rank)

    # -- merging ---------------------------------------------------------------------------------------------------

    @property
    def merged_adapters(self) -> list[str]:
        """The names of those that are in the weights."""
        return [name for name, a in ad.adapters(self.model).items() if a.merged]

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Write adapters into the weights; `unmerge_adapter` gives the old bits back.

        Args:
            adapter_names: None for those that run.
            safe_merge: compare the whole model's outputs too; every layer's are compared in any case.

        Raises:
            MergeError: an adapter has no merged form, or the result is not finite or not the same.
        """
        wanted = [n for n in adapter_names or self.active_adapters if n not in self.merged_adapters]
        if not wanted:
            warnings.warn("All adapters are already merged, nothing to do.", UserWarning, stacklevel=2)
            return
        ad.merge(self.model, wanted, inputs=None if safe_merge else False)

    def unmerge_adapter(self) -> None:
        """Take every merge back."""
        ad.unmerge(self.model)

    def merge_and_unload(
        self, progressbar: bool = False, safe_merge: bool = False, adapter_names: list[str] | None = None
    ) -> nn.Module:
        """The model with adapters (None: those that run) in its weights and nothing else of them.

        Raises:
            MergeError: as `merge_adapter`.
        """
        wanted = self.active_adapters if adapter_names is None else list(adapter_names)
        for name in [n for n in ad.adapters(self.model) if n not in wanted]:
            ad.detach(self.model, name)
        if wanted:
            ad.merge(self.model, wanted, keep=False, inputs=None if safe_merge else False)
        self.peft_config.clear()
        return self.model

    def unload(self) -> nn.Module:
        """The model as it was before."""
        if self.peft_config:
            ad.detach(self.model)
        self.peft_config.clear()
        return self.model
