"""PEFT's models: a model of any kind with adapters of ours, under PEFT's names."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from safetensors.torch import save as dump_tensors
from torch import Tensor, nn

import adaptome as ad
from adaptome.core.errors import CheckpointError, MethodError, MissingExtraError, StateError, did_you_mean
from adaptome.core.files import atomic_folder
from adaptome.core.state import attachment_of, find_root, rearrange, state_of
from adaptome.interop.peft_names import CONFIG, TENSORS
from adaptome.interop.peft_reading import load_peft
from adaptome.peft import state
from adaptome.peft.config import PeftConfig, TaskType
from adaptome.peft.targets import targets_of

#: heads that are trained with every adapter of a task
_HEADS = {"SEQ_CLS": ("classifier", "score"), "TOKEN_CLS": ("classifier", "score"), "QUESTION_ANS": ("qa_outputs",)}


class AdapterNameError(StateError, ValueError):
    """No adapter has that name, or it cannot be deleted as it is."""


class Loaded(NamedTuple):
    """What a load left out: nothing, for one that does not fit is refused."""

    missing_keys: list[str]
    unexpected_keys: list[str]


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


class PeftModel(nn.Module):
    """A model with adapters.

    Args:
        model: any module; its layers get the adapters in place.
        peft_config: of the first adapter.
        adapter_name: its name.
        autocast_adapter_dtype: hold half-precision adapters in float32.
        low_cpu_mem_usage: for PEFT's signature; loading makes no copy that it would save.
    """

    def __init__(
        self,
        model: nn.Module,
        peft_config: PeftConfig,
        adapter_name: str = "default",
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
    ):
        super().__init__()
        self.base_model = Tuner(model, {})
        self.add_adapter(adapter_name, peft_config, autocast_adapter_dtype=autocast_adapter_dtype)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_model":
                raise
            return getattr(self.base_model, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model."""
        return self.base_model(*args, **kwargs)

    def get_base_model(self) -> nn.Module:
        """The model, with its adapters on it."""
        model: nn.Module = self.base_model.model
        return model

    # -- adapters --------------------------------------------------------------------------------------------------

    @property
    def active_peft_config(self) -> PeftConfig:
        """The configuration of the first adapter that runs."""
        config: PeftConfig = self.peft_config[self.active_adapters[0]]
        return config

    @property
    def peft_type(self) -> Any:
        """Its type."""
        return self.active_peft_config.peft_type

    def add_adapter(
        self,
        adapter_name: str,
        peft_config: PeftConfig,
        low_cpu_mem_usage: bool = False,
        autocast_adapter_dtype: bool = True,
    ) -> None:
        """Attach another adapter, which runs once it is set.

        Raises:
            TargetError: it matches nothing. MethodError, HostError, StateError: as `ad.attach`.
        """
        self.base_model.add(peft_config, adapter_name, None if autocast_adapter_dtype else dtype_of(self))

    def set_adapter(self, adapter_name: str | Sequence[str], inference_mode: bool = False) -> None:
        """As the tuner's."""
        self.base_model.set_adapter(adapter_name, inference_mode)

    def delete_adapter(self, adapter_name: str) -> None:
        """As the tuner's."""
        self.base_model.delete_adapter(adapter_name)

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Run the base alone for the time of the block; the weights too are those of before a merge."""
        merged = self.base_model.merged_adapters
        if merged:
            self.base_model.unmerge_adapter()
        with ad.disabled(self.base_model.model):
            yield
        if merged:
            self.base_model.merge_adapter(merged)

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """How many numbers train, and how many there are."""
        report = ad.trainable(self)
        return report.count, report.total

    def print_trainable_parameters(self) -> None:
        """Print both, and their ratio."""
        count, total = self.get_nb_trainable_parameters()
        print(f"trainable params: {count:,d} || all params: {total:,d} || trainable%: {100 * count / total:.4f}")

    # -- files -----------------------------------------------------------------------------------------------------

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        safe_serialization: bool = True,
        selected_adapters: list[str] | None = None,
        **_: Any,
    ) -> None:
        """Write each adapter as PEFT does: 'default' into the folder, others into folders in it of their names.

        Raises:
            StateError: an unknown name, or `safe_serialization=False`: nothing is pickled here.
            CheckpointError: a folder holds something else.
        """
        if not safe_serialization:
            raise StateError("safe_serialization=False would write a pickle; only safetensors are written.")
        for name in selected_adapters or list(self.peft_config):
            folder = Path(save_directory) / ("" if name == "default" else name)
            save_adapter(self.base_model.model, folder, name, self.peft_config[name])

    @classmethod
    def from_pretrained(
        cls,
        model: nn.Module,
        model_id: str | os.PathLike[str],
        adapter_name: str = "default",
        is_trainable: bool = False,
        config: PeftConfig | None = None,
        **hub: Any,
    ) -> PeftModel:
        """The model with the adapter of a folder, or of a repository of the hub.

        Raises:
            CheckpointError: a subclass for each fault; the model is then as it was.
        """
        folder = _folder(model_id, hub)
        settings = PeftConfig.from_pretrained(folder) if config is None else config
        settings.inference_mode = not is_trainable
        made = _class_of(settings.task_type) if cls is PeftModel else cls
        wrapper = made.__new__(made)
        nn.Module.__init__(wrapper)
        wrapper.base_model = Tuner(model, {})
        autocast = hub.get("autocast_adapter_dtype", True)
        wrapper.load_adapter(folder, adapter_name, is_trainable, autocast_adapter_dtype=autocast)
        wrapper.peft_config[adapter_name] = settings
        return wrapper

    def load_adapter(
        self,
        model_id: str | os.PathLike[str],
        adapter_name: str,
        is_trainable: bool = False,
        autocast_adapter_dtype: bool = True,
        **hub: Any,
    ) -> Loaded:
        """Attach the adapter of a folder; it runs once it is set, the first at once.

        Raises:
            CheckpointError: a subclass for each fault; the model is then as it was.
        """
        folder = _folder(model_id, hub)
        config = PeftConfig.from_pretrained(folder, inference_mode=not is_trainable)
        model, running = self.base_model.model, self.base_model.active_adapters
        read = ad.load if config.kind == "ADAPTOME" else load_peft
        where = folder / _OWN if config.kind == "ADAPTOME" else folder
        dtype = None if autocast_adapter_dtype else dtype_of(model)
        read(model, where, adapter_name, trainable=is_trainable)
        for module in attachment_of(model, adapter_name).modules() if dtype is not None else ():
            module.to(dtype)
        self.peft_config[adapter_name] = config
        if running:
            ad.activate(model, running)
        return Loaded([], [])


class PeftModelForCausalLM(PeftModel):
    """A language model."""

    def forward(self, input_ids: Any = None, attention_mask: Any = None, inputs_embeds: Any = None, labels: Any = None, **kwargs: Any) -> Any:  # fmt: skip
        """Run the model on what is given. The names are what a Trainer keeps of a data set's columns."""
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "inputs_embeds": inputs_embeds, "labels": labels}  # fmt: skip
        return self.base_model(**{k: v for k, v in given.items() if v is not None}, **kwargs)


class PeftModelForSeq2SeqLM(PeftModelForCausalLM):
    """A model with an encoder and a decoder."""


class PeftModelForSequenceClassification(PeftModel):
    """A classifier of sequences, whose head trains too."""

    def forward(self, input_ids: Any = None, attention_mask: Any = None, token_type_ids: Any = None, inputs_embeds: Any = None, labels: Any = None, **kwargs: Any) -> Any:  # fmt: skip
        """Run the model on what is given. The names are what a Trainer keeps of a data set's columns."""
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids, "inputs_embeds": inputs_embeds, "labels": labels}  # fmt: skip
        return self.base_model(**{k: v for k, v in given.items() if v is not None}, **kwargs)


class PeftModelForTokenClassification(PeftModelForSequenceClassification):
    """A classifier of tokens, whose head trains too."""


class PeftModelForFeatureExtraction(PeftModel):
    """An encoder."""


class PeftModelForQuestionAnswering(PeftModel):
    """A finder of spans, whose head trains too."""

    def forward(self, input_ids: Any = None, attention_mask: Any = None, token_type_ids: Any = None, start_positions: Any = None, end_positions: Any = None, **kwargs: Any) -> Any:  # fmt: skip
        """Run the model on what is given. The names are what a Trainer keeps of a data set's columns."""
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids, "start_positions": start_positions, "end_positions": end_positions}  # fmt: skip
        return self.base_model(**{k: v for k, v in given.items() if v is not None}, **kwargs)


#: PEFT's task -> its class
CLASSES: dict[str, type[PeftModel]] = {
    "CAUSAL_LM": PeftModelForCausalLM, "SEQ_2_SEQ_LM": PeftModelForSeq2SeqLM, "SEQ_CLS": PeftModelForSequenceClassification,
    "TOKEN_CLS": PeftModelForTokenClassification, "QUESTION_ANS": PeftModelForQuestionAnswering, "FEATURE_EXTRACTION": PeftModelForFeatureExtraction,
}  # fmt: skip
_OWN = "adaptome"  # the folder, inside PEFT's, of a method that PEFT has not


def _class_of(task: str | None) -> type[PeftModel]:
    return PeftModel if task is None else CLASSES[TaskType(task).value]


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
    peft_config.base_model_name_or_path = getattr(settings, "_name_or_path", None) or model.__dict__.get("name_or_path")
    peft_config.revision = revision or peft_config.revision
    return _class_of(peft_config.task_type)(model, peft_config, adapter_name, autocast_adapter_dtype)


def inject_adapter_in_model(
    peft_config: PeftConfig, model: nn.Module, adapter_name: str = "default", low_cpu_mem_usage: bool = False
) -> nn.Module:
    """Attach what a configuration says to the model itself, which is returned.

    Raises:
        TargetError, MethodError, HostError: as `ad.attach`.
    """
    attach(model, peft_config, adapter_name, None)
    return model


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
    heads = [h for h in _HEADS.get(str(getattr(config.task_type, "value", config.task_type)), ()) if h in there]
    train = list(dict.fromkeys([*(getattr(config, "modules_to_save", None) or ()), *heads]))
    plan = ad.attach(
        model, method, name, targets=targets, train=train, dtype=dtype,
        per_layer={path: changes for path, changes in own.items() if changes}, **settings,
    )  # fmt: skip
    if not config.starts_as_base:
        start_elsewhere(attachment_of(model, name))
    if config.inference_mode:
        ad.set_trainable(model, name, False)
    return plan


@torch.no_grad()
def start_elsewhere(attachment: ad.Attachment) -> None:
    """Draw the tensors whose start, zeros or ones, leaves the outputs those of the base."""
    for adapter in attachment.adapters.values():
        for value in adapter.parameters():
            if value.numel() and not (value != value.flatten()[0]).any():
                if value.dim() > 1:
                    nn.init.kaiming_uniform_(value, a=5**0.5)
                else:
                    value.add_(torch.randn_like(value))


def dtype_of(model: nn.Module) -> torch.dtype | None:
    """The type of its first parameter of fractions."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), None)


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


def save_adapter(model: nn.Module, folder: Path, name: str, config: PeftConfig) -> None:
    """Write one adapter as a folder of PEFT's; one that starts from the base's weights as a LoRA of twice the rank, which needs no other base."""
    attachment = attachment_of(model, name)
    if any("B0" in dict(adapter.named_buffers()) for adapter in attachment.adapters.values()):
        ad.export(model, folder, name, format="peft-lora", task_type=config.task_type)
        return
    tensors = {} if config.kind == "ADAPTOME" else state.read(model, attachment, config)
    with atomic_folder(folder, only=(TENSORS, CONFIG, "README.md", _OWN)) as staging:
        if config.kind == "ADAPTOME":
            ad.save(model, staging / _OWN, name)
        else:
            (staging / TENSORS).write_bytes(dump_tensors({k: v.contiguous() for k, v in tensors.items()}, {"format": "pt"}))
        written = config.to_dict() | {"inference_mode": True}
        type(config)(**{k: v for k, v in written.items() if k in config.__dict__}).save_pretrained(staging)


def _folder(model_id: str | os.PathLike[str], hub: Mapping[str, Any]) -> Path:
    """The folder itself, or the repository's, fetched."""
    inside = hub.get("subfolder") or ""
    if Path(model_id).is_dir():
        return Path(model_id) / inside
    if Path(model_id).exists() or len(Path(model_id).parts) != 2:
        raise CheckpointError(f"{model_id} is no folder, nor the name of a repository.")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise MissingExtraError("huggingface_hub", "hf") from error
    known = {k: v for k, v in hub.items() if k in ("revision", "token", "cache_dir", "local_files_only")}
    return Path(snapshot_download(str(model_id), allow_patterns=["*.json", "*.safetensors"], **known)) / inside


def prepare_model_for_kbit_training(
    model: nn.Module,
    use_gradient_checkpointing: bool = True,
    gradient_checkpointing_kwargs: dict[str, Any] | None = None,
) -> nn.Module:
    """A quantised model made ready: frozen, what is not packed in float32, inputs that ask for gradients, and checkpointing."""
    model: Any = model
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        if parameter.dtype in (torch.float16, torch.bfloat16) and type(parameter) is nn.Parameter:
            parameter.data = parameter.data.to(torch.float32)
    if use_gradient_checkpointing:
        how = {"use_reentrant": True} if gradient_checkpointing_kwargs is None else gradient_checkpointing_kwargs
        if how.get("use_reentrant", True):
            model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=how)
    return model


