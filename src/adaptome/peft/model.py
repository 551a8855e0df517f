"""PEFT's models: a model of any kind with adapters of ours, under PEFT's names."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from torch import nn

import adaptome as ad
from adaptome.core.checkpoint import fill
from adaptome.core.errors import MissingExtraError, StateError
from adaptome.core.manifest import read_manifest, read_tensors
from adaptome.core.state import attachment_of
from adaptome.interop.peft_folder import read_folder
from adaptome.interop.peft_reading import load_peft
from adaptome.peft import state
from adaptome.peft.attaching import dtype_of
from adaptome.peft.cards import write_card
from adaptome.peft.configs import PeftConfig, TaskType
from adaptome.peft.folders import OWN, folder_of, save_adapter
from adaptome.peft.mixed import rows_of
from adaptome.peft.tuner import Tuner


class Loaded(NamedTuple):
    """What a load left out: nothing, for one that does not fit is refused."""

    missing_keys: list[str]
    unexpected_keys: list[str]


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

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """PEFT's own class where PEFT is imported: trainers that ask `isinstance(model, peft.PeftModel)` then treat it as one."""
        theirs = getattr(sys.modules.get("peft"), type(self).__name__, None)
        return theirs if isinstance(theirs, type) else type(self)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model.

        Args:
            args, kwargs: the model's; and `adapter_names`, for every row of the batch an adapter, "__base__" for none; in evaluation mode.

        Raises:
            MixedBatchError: the names do not fit.
        """
        with rows_of(self, kwargs.pop("adapter_names", None), args, kwargs):
            return self.base_model(*args, **kwargs)

    def generate(self, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any) -> Any:
        """The model's `generate`; `adapter_names` as of `forward`, for every prompt."""
        with rows_of(self, adapter_names, args, kwargs):
            model: Any = self.base_model.model
            return model.generate(*args, **kwargs)

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
        print(
            f"trainable params: {count:,d} || all params: {total:,d} || trainable%: {100 * count / total:.4f}"
        )

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
        self.create_or_update_model_card(save_directory)

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
        folder = folder_of(model_id, hub)
        settings = PeftConfig.from_pretrained(folder) if config is None else config
        settings.inference_mode = not is_trainable
        made = class_of(settings.task_type) if cls is PeftModel else cls
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
        folder = folder_of(model_id, hub)
        config = PeftConfig.from_pretrained(folder, inference_mode=not is_trainable)
        if (
            adapter_name in self.peft_config
        ):  # as trainers do that resume: the parameters stay the same objects
            self._read_again(folder, config, adapter_name)
            return Loaded([], [])
        model, running = self.base_model.model, self.base_model.active_adapters
        read = ad.load if config.kind == "ADAPTOME" else load_peft
        where = folder / OWN if config.kind == "ADAPTOME" else folder
        dtype = None if autocast_adapter_dtype else dtype_of(model)
        read(model, where, adapter_name, trainable=is_trainable)
        for module in attachment_of(model, adapter_name).modules() if dtype is not None else ():
            module.to(dtype)
        self.peft_config[adapter_name] = config
        if running:
            ad.activate(model, running)
        if not is_trainable:
            self.eval()  # as PEFT's: what is loaded to be run has no dropout
        return Loaded([], [])

    def _read_again(self, folder: Path, config: PeftConfig, name: str) -> None:
        attachment = attachment_of(self, name)
        if config.kind != "ADAPTOME":
            state.write(self.base_model.model, attachment, config, read_folder(folder)[1])
            return
        where = folder / OWN
        fill(attachment, read_tensors(where, read_manifest(where)), str(where))

    def push_to_hub(self, repo_id: str, commit_message: str | None = None, private: bool | None = None, token: str | None = None, **more: Any) -> Any:  # fmt: skip
        """Save into a repository of the hub, which is made where there is none.

        Args:
            repo_id: its name.
            commit_message: of the upload.
            private: whether a new repository is.
            token: of the hub.
            more: of `save_pretrained`.

        Returns:
            What the hub tells of the commit.

        Raises:
            MissingExtraError: huggingface_hub is not installed.
        """
        try:
            from huggingface_hub import HfApi
        except ImportError as error:
            raise MissingExtraError("huggingface_hub", "train") from error
        api = HfApi(token=token)
        name = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, **more)
            return api.upload_folder(
                repo_id=name, folder_path=folder, commit_message=commit_message or "Upload adapter"
            )

    def create_or_update_model_card(self, output_dir: str | os.PathLike[str]) -> None:
        """Write README.md, or what it is to know of the adapter at the head of the one that is there."""
        write_card(Path(output_dir), self.base_model.model, self.peft_config)


class PeftModelForCausalLM(PeftModel):
    """A language model."""

    def forward(self, input_ids: Any = None, attention_mask: Any = None, inputs_embeds: Any = None, labels: Any = None, **kwargs: Any) -> Any:  # fmt: skip
        """Run the model on what is given. The names are what a Trainer keeps of a data set's columns."""
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "inputs_embeds": inputs_embeds, "labels": labels}  # fmt: skip
        return super().forward(**{k: v for k, v in given.items() if v is not None}, **kwargs)


class PeftModelForSeq2SeqLM(PeftModelForCausalLM):
    """A model with an encoder and a decoder."""


class PeftModelForSequenceClassification(PeftModel):
    """A classifier of sequences, whose head trains too."""

    def forward(self, input_ids: Any = None, attention_mask: Any = None, token_type_ids: Any = None, inputs_embeds: Any = None, labels: Any = None, **kwargs: Any) -> Any:  # fmt: skip
        """Run the model on what is given. The names are what a Trainer keeps of a data set's columns."""
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids, "inputs_embeds": inputs_embeds, "labels": labels}  # fmt: skip
        return super().forward(**{k: v for k, v in given.items() if v is not None}, **kwargs)


class PeftModelForTokenClassification(PeftModelForSequenceClassification):
    """A classifier of tokens, whose head trains too."""


class PeftModelForFeatureExtraction(PeftModel):
    """An encoder."""


class PeftModelForQuestionAnswering(PeftModel):
    """A finder of spans, whose head trains too."""

    def forward(self, input_ids: Any = None, attention_mask: Any = None, token_type_ids: Any = None, start_positions: Any = None, end_positions: Any = None, **kwargs: Any) -> Any:  # fmt: skip
        """Run the model on what is given. The names are what a Trainer keeps of a data set's columns."""
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids, "start_positions": start_positions, "end_positions": end_positions}  # fmt: skip
        return super().forward(**{k: v for k, v in given.items() if v is not None}, **kwargs)


#: PEFT's task -> its class
CLASSES: dict[str, type[PeftModel]] = {
    "CAUSAL_LM": PeftModelForCausalLM, "SEQ_2_SEQ_LM": PeftModelForSeq2SeqLM, "SEQ_CLS": PeftModelForSequenceClassification,
    "TOKEN_CLS": PeftModelForTokenClassification, "QUESTION_ANS": PeftModelForQuestionAnswering, "FEATURE_EXTRACTION": PeftModelForFeatureExtraction,
}  # fmt: skip


def class_of(task: str | None) -> type[PeftModel]:
    """The class of a task's models."""
    return PeftModel if task is None else CLASSES[TaskType(task).value]
