"""Models without their weights: by a built-in name, a local config, or a hub id.

A built-in name holds the published hyperparameters of a checkpoint (`hyperparameters.json`), so that what a
method costs on LLaMA-2-7B can be told without network, without weights and without memory.
"""

from __future__ import annotations

import json
import socket
from contextlib import nullcontext
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from torch import nn

from adaptome.core.errors import MissingExtraError, ModelError, did_you_mean, nearest

__all__ = ["TASKS", "build", "hyperparameters", "names"]

#: what a model is built for -> the transformers class that picks the head
TASKS = {
    "features": "AutoModel",
    "causal-lm": "AutoModelForCausalLM",
    "masked-lm": "AutoModelForMaskedLM",
    "seq2seq-lm": "AutoModelForSeq2SeqLM",
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "image-classification": "AutoModelForImageClassification",
    "audio-classification": "AutoModelForAudioClassification",
}


@cache
def _table() -> dict[str, dict[str, Any]]:
    text = resources.files(__package__).joinpath("hyperparameters.json").read_text(encoding="utf-8")
    table: dict[str, dict[str, Any]] = json.loads(text)
    return table


@cache
def _by_hub_id() -> dict[str, str]:
    return {config["hub"]: name for name, config in _table().items() if "hub" in config}


def names() -> list[str]:
    """The built-in architectures, sorted: `['ast-base', 'bert-base', ...]`."""
    return sorted(_table())


def hyperparameters(name: str) -> dict[str, Any]:
    """The published hyperparameters of a built-in architecture, as in its `config.json`.

    Raises:
        ModelError: no built-in architecture has this name.
    """
    if name not in _table():
        raise ModelError(
            f"{name!r} is not a built-in architecture.{did_you_mean(name, names())}\n  Known: {', '.join(names())}."
        )
    config: dict[str, Any] = json.loads(json.dumps(_table()[name]))
    config.pop("hub", None)
    return config


def build(
    source: str | Path,
    *,
    meta: bool = True,
    task: str | None = None,
    dtype: torch.dtype | None = None,
    **changes: Any,
) -> nn.Module:
    """Build a model from its hyperparameters alone; no weights are read.

        build("llama-2-7b")                            # built-in, on the meta device: no memory, no network
        build("llama-2-7b", num_hidden_layers=2)       # the same with two layers
        build("./my-model", task="text-classification")   # a local folder or config.json, with a new head
        build("Qwen/Qwen3-8B")                         # a hub id: fetches its config.json

    Args:
        source: built-in name (or the hub id it stands for), folder with a `config.json`, path of such a file, or
            another hub id; looked up in this order.
        meta: build on the meta device (shapes only); otherwise on the default device, freshly initialised.
        task: one of `TASKS`, to choose the head; by default the class that the config names.
        dtype: of the weights; by default what the config says.
        changes: hyperparameters that replace the config's.

    Raises:
        ModelError: nothing is found under `source`, the config names no known class, or a change names no
            hyperparameter.
        MissingExtraError: the library that holds the class is not installed.
    """
    config = _read(source)
    with torch.device("meta") if meta else nullcontext():
        if "_class_name" in config:
            model = _build_diffusers(config, source, changes)
            return model.to(dtype) if dtype is not None else model
        return _build_transformers(config, source, task, dtype, changes)


def _read(source: str | Path) -> dict[str, Any]:
    """The config behind `source`: built-in, file, folder, else the hub's."""
    name = _by_hub_id().get(str(source), str(source))
    if name in _table():
        return hyperparameters(name)
    path = Path(source)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(
                f"The folder {str(path)!r} holds no config.json.\n  Give the folder of a saved model."
            )
        path = path / "config.json"
    if path.is_file():
        return _parse(path)
    return _parse(_from_hub(str(source)))


def _parse(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{str(path)!r} is not valid JSON: {error}.") from error
    if not isinstance(config, dict) or not ("model_type" in config or "_class_name" in config):
        raise ModelError(
            f"{str(path)!r} is not a model's config: it has neither model_type (transformers) "
            "nor _class_name (diffusers)."
        )
    return config


def _from_hub(source: str) -> Path:
    """Fetch `config.json` of a hub id (or find it in the local cache)."""
    close = nearest(source.rsplit("/", 1)[-1].lower(), names())
    known = (
        f"Built-in names near it: {', '.join(close)}." if close else f"Built-in names: {', '.join(names())}."
    )
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HFValidationError
    except ImportError as error:
        raise MissingExtraError("huggingface_hub", "train") from error
    if "/" not in source or source.startswith((".", "/", "~")) or source.endswith(".json"):
        raise ModelError(
            f"{source!r} is neither a built-in architecture, nor an existing file or folder, nor a hub id "
            f"(owner/name).\n  {known}"
        )
    try:
        return Path(hf_hub_download(source, "config.json", local_files_only=_offline()))
    except (OSError, HFValidationError) as error:  # every network, cache and hub error is an OSError
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"The config of {source!r} could not be fetched from the hub: {reason}\n  {known}\n"
            "  Offline, give a built-in name, or the folder or config.json of a local copy."
        ) from error


def _offline() -> bool:
    """Whether the hub's address does not resolve; asked first because the hub's client retries for half a minute."""
    from huggingface_hub import constants

    if getproxies():  # a proxy resolves names itself
        return False
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, None)
    except OSError:
        return True
    return False


def _build_diffusers(config: dict[str, Any], source: str | Path, changes: dict[str, Any]) -> nn.Module:
    try:
        import diffusers
    except ImportError as error:
        raise MissingExtraError("diffusers", "diffusion") from error
    name = config["_class_name"]
    cls: Any = getattr(diffusers, name, None)
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise ModelError(f"{str(source)!r} names the class {name!r}, which is no model of diffusers.")
    _known(changes, config, source)
    make: Any = cls.from_config  # type: ignore[attr-defined]
    model: nn.Module = make({**config, **changes})
    return model


def _build_transformers(
    config: dict[str, Any],
    source: str | Path,
    task: str | None,
    dtype: torch.dtype | None,
    changes: dict[str, Any],
) -> nn.Module:
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError("transformers", "train") from error
    kinds = transformers.CONFIG_MAPPING
    kind = config["model_type"]
    if kind not in kinds:
        raise ModelError(
            f"{str(source)!r} has model_type {kind!r}, which transformers {transformers.__version__} does not "
            f"have.{did_you_mean(kind, kinds)}\n  Code from the hub is never run; update transformers, or give the model itself."
        )
    defaults = kinds[kind]()
    _known(
        changes,
        {**defaults.to_dict(), **config, **dict.fromkeys(defaults.attribute_map), "num_labels": 0},
        source,
    )
    full = kinds[kind].from_dict({**config, **changes})
    cls = _model_class(config, source, task)
    options = {} if dtype is None else {"dtype": dtype}
    make: Any = getattr(cls, "from_config", None) or cls._from_config  # of an Auto class, of a model class
    model: nn.Module = make(full, **options)
    return model


def _model_class(config: dict[str, Any], source: str | Path, task: str | None) -> Any:
    import transformers

    if task is not None:
        if task not in TASKS:
            raise ModelError(
                f"There is no task {task!r}.{did_you_mean(task, TASKS)}\n  Known: {', '.join(TASKS)}."
            )
        return getattr(transformers, TASKS[task])
    named = (config.get("architectures") or [None])[0]
    if named is None:
        return transformers.AutoModel
    cls: Any = getattr(transformers, named, None)
    if not (isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)):
        raise ModelError(
            f"{str(source)!r} names the class {named!r}, which is no model of transformers.\n"
            f"  Say what to build with task=, one of: {', '.join(TASKS)}."
        )
    return cls


def _known(changes: dict[str, Any], config: dict[str, Any], source: str | Path) -> None:
    for key in changes:
        if key not in config:
            raise ModelError(f"{str(source)!r} has no hyperparameter {key!r}.{did_you_mean(key, config)}")
