"""The contract of a composite model: pretrained parts and layers of its own, built from a configuration; and their registry.

    @register_model("two-towers")
    class TwoTowers(CompositeModel):
        class Settings(CompositeSettings):
            vision: Part                     # in a recipe: {name: openai/clip-vit-base-patch16} or {from_config: {...}}
            width: int = 256
        loaders = {"vision": "AutoModel"}    # the auto class of transformers that loads the part

        def build(self) -> None:             # own layers, made from self.settings and the parts' configurations
            self.projection = nn.Linear(self.vision.config.hidden_size, self.settings.width)

        def forward(self, pixel_values, ...): ...

Each part is an attribute under its name, so that targets select it: `vision.attention` is the role within the part.
A folder holds `config.json` (every part by its whole configuration) and `model.safetensors`.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn
from typing_extensions import Self

from adaptome.core.errors import FormatError, ModelError, TornFileError, did_you_mean
from adaptome.core.files import atomic_folder
from adaptome.core.parts import Parts, checked

CONFIG, WEIGHTS, FORMAT = "config.json", "model.safetensors", 1


class Part(BaseModel):
    """A pretrained part: a hub id or folder, or a transformers configuration for random weights."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    name: str | None = Field(default=None, description="hub id or local folder")
    revision: str | None = Field(default=None, description="branch, tag or commit on the hub")
    from_config: dict[str, Any] | None = Field(
        default=None, description="a configuration, with model_type: random weights"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="float32", description="of its weights"
    )
    attention: str | None = Field(default=None, description="attn_implementation")

    @model_validator(mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        return {"name": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _one_source(self) -> Part:
        if (self.name is None) == (self.from_config is None):
            raise ValueError("give either name or from_config")
        return self


class CompositeSettings(BaseModel):
    """A composite model's settings, its parts among them; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class CompositeModel(nn.Module):
    """Pretrained parts and own layers. A subclass has Settings and loaders, and writes `build` and `forward`."""

    name: ClassVar[str] = ""
    Settings: ClassVar[type[CompositeSettings]] = CompositeSettings
    #: part -> auto class of transformers, or a function (Part, with weights?) -> module; a setting may hold several parts by name
    loaders: ClassVar[Mapping[str, str | Callable[[Part, bool], nn.Module]]] = {}
    #: modules that may be added to the model later: adapters saved without them fit it with them
    grows: ClassVar[tuple[str, ...]] = ()
    #: the Trainer would take a forward with **kwargs for one that scales its own loss
    accepts_loss_kwargs = False

    def __init__(self, settings: CompositeSettings, weights: bool = True):
        super().__init__()
        self.settings: Any = settings
        for name, loader in self.loaders.items():
            part = getattr(settings, name)
            if isinstance(part, Mapping):
                several = {key: _loaded(loader, one, weights) for key, one in part.items()}
                self.add_module(name, nn.ModuleDict(several))
            elif part is not None:
                self.add_module(name, _loaded(loader, part, weights))
        self.build()

    def build(self) -> None:
        """Make the own layers."""

    # -- what loops ask of a model -----------------------------------------------------------------------------------

    def parts(self) -> dict[str, nn.Module]:
        """The pretrained parts that are there, by name; of several under one name each, as `encoders.rgb`."""
        found: dict[str, nn.Module] = {}
        for name in self.loaders:
            own = self._modules.get(name)
            if isinstance(own, nn.ModuleDict) and isinstance(getattr(self.settings, name), Mapping):
                found |= {f"{name}.{key}": one for key, one in own.items()}
            elif own is not None:
                found[name] = own
        return found

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(p for p in self.parameters() if p.is_floating_point()).dtype

    def gradient_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        for part in self.parts().values():
            if getattr(part, "supports_gradient_checkpointing", False):
                part.gradient_checkpointing_enable(*args, **kwargs)  # type: ignore[operator]

    activation_checkpointing_enable = gradient_checkpointing_enable

    def gradient_checkpointing_disable(self) -> None:
        for part in self.parts().values():
            if getattr(part, "supports_gradient_checkpointing", False):
                part.gradient_checkpointing_disable()  # type: ignore[operator]

    # -- folders -----------------------------------------------------------------------------------------------------

    def configuration(self) -> dict[str, Any]:
        """What builds it again, with each part by its whole configuration."""
        told: dict[str, Any] = self.settings.model_dump(mode="json")
        for name, part in self.parts().items():
            config: Any = getattr(part, "config", None)
            first, _, key = name.partition(".")
            place, last = (told[first], key) if key else (told, name)
            if config is not None and place.get(last):
                whole = json.loads(config.to_json_string(use_diff=False))
                place[last] = {"from_config": whole, "dtype": place[last]["dtype"]}
        return told

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write configuration and weights, whole or not at all."""
        from safetensors.torch import save_model

        content = {"format": FORMAT, "composite": self.name, "settings": self.configuration()}
        with atomic_folder(folder, only=(CONFIG, WEIGHTS)) as staging:
            save_model(self, str(staging / WEIGHTS))
            (staging / CONFIG).write_text(json.dumps(content, indent=1), encoding="utf-8")

    @classmethod
    def from_settings(cls, weights: bool = True, **settings: Any) -> Self:
        """Built from settings: parts with their weights, or all at random.

        Raises:
            RecipeError: a setting that is unknown or not valid. ModelError: a part that cannot be had.
        """
        return cls(checked(cls.Settings, settings, "model", cls.name), weights)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> Self:
        """The model that `save_pretrained` wrote.

        Raises:
            ModelError: the folder holds another model. TornFileError: its weights do not fit its configuration.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_model

        kind, settings = read_configuration(Path(folder))
        if kind != cls.name:
            raise ModelError(f"{folder} holds a {kind}, not a {cls.name}.")
        made = cls.from_settings(weights=False, **settings)
        try:
            load_model(made, str(Path(folder) / WEIGHTS))
        except (OSError, RuntimeError, ValueError, SafetensorError) as error:
            raise TornFileError(
                f"{Path(folder) / WEIGHTS} does not hold the weights of its {CONFIG}: {error}"
            ) from error
        return made


def _loaded(loader: str | Callable[[Part, bool], nn.Module], part: Part, weights: bool) -> nn.Module:
    return loader(part, weights) if callable(loader) else load_part(loader, part, weights)


MODELS: Parts[CompositeModel] = Parts("composite model", "adaptome.models")


def register_model(name: str) -> Callable[[type[CompositeModel]], type[CompositeModel]]:
    """Register a composite model's class under `name`."""
    return MODELS.register(name)


def composite_models() -> dict[str, type[CompositeModel]]:
    """All registered composite models by name: those here and those of installed packages."""
    return MODELS.all()


def read_configuration(folder: Path) -> tuple[str, dict[str, Any]]:
    """Name and settings of the composite model in a folder.

    Raises:
        ModelError: there is none. FormatError: a newer version wrote it.
    """
    try:
        content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        kind, settings, version = content["composite"], content["settings"], int(content["format"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder} holds no composite model: its {CONFIG} {error}.") from error
    if version > FORMAT:
        raise FormatError(
            f"{folder / CONFIG} has format {version}, this version reads {FORMAT}. Update adaptome."
        )
    return kind, settings


def is_composite(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds a composite model."""
    try:
        return "composite" in json.loads((Path(folder) / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def load_composite(spec: Any, kind: str | None = None, **settings: Any) -> CompositeModel:
    """The composite model that a recipe's `model` section names.

    Args:
        spec: the section: `composite` with its settings, or `name`, a folder that `save_pretrained` wrote.
        kind: what it must be; None for any.
        settings: those that the task knows (labels, widths), which take the place of the section's.

    Raises:
        RecipeError, ModelError: it cannot be had, or is of another kind.
    """
    if spec.composite is not None:
        _require(spec.composite, kind)
        return MODELS.get(spec.composite).from_settings(**{**spec.settings, **settings})
    if spec.name is not None and is_composite(spec.name):
        found, _ = read_configuration(Path(spec.name))
        _require(found, kind)
        return MODELS.get(found).from_pretrained(spec.name)
    known = ", ".join(composite_models())
    raise ModelError(
        f"model: name a composite model, e.g. {{composite: {kind or next(iter(composite_models()), '...')}, ...}}, or a folder of one."
        f"{did_you_mean(str(spec.name), composite_models())} There are: {known}."
    )


def _require(found: str, kind: str | None) -> None:
    if kind is not None and found != kind:
        raise ModelError(f"model.composite={found!r}: the task works with {kind!r}.")


def part_config(part: Part) -> Any:
    """A part's transformers configuration.

    Raises:
        ModelError: it cannot be had, or its model_type is not known.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    try:
        if part.from_config is None:
            source = dict(revision=part.revision) if part.revision else {}
            return AutoConfig.from_pretrained(str(part.name), **source)
        content = dict(part.from_config)
        kind = str(content.pop("model_type", None))
        if kind in CONFIG_MAPPING:
            return AutoConfig.for_model(kind, **content)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"the part {part.name or part.from_config} cannot be had: {error}") from error
    raise ModelError(
        f"a part's from_config: model_type {kind!r} is not known.{did_you_mean(kind, CONFIG_MAPPING)}"
    )


def load_part(auto: str, part: Part, weights: bool, config: Any = None, **own: Any) -> nn.Module:
    """A part by an auto class of transformers: with its weights, or at random from its configuration.

    Args:
        config: in place of the part's own.
        **own: what the class of the model takes beside its configuration.

    Raises:
        ModelError: it cannot be had.
    """
    import transformers

    loader, settings = getattr(transformers, auto), dict(own)
    if part.attention:
        settings["attn_implementation"] = part.attention
    dtype: Any = part.dtype if part.dtype == "auto" else getattr(torch, part.dtype)
    trained = weights and part.from_config is None
    if config is None and not trained:
        config = part_config(part)
    try:
        if not trained:
            told = None if dtype == "auto" or part.from_config is None else dtype
            made: nn.Module = loader.from_config(config, dtype=told, **settings)
            return made
        source = {k: v for k, v in (("revision", part.revision), ("config", config)) if v is not None}
        with quiet():
            loaded, info = loader.from_pretrained(
                part.name, dtype=dtype, output_loading_info=True, **source, **settings
            )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"the part {part.name or part.from_config} cannot be had: {error}") from error
    absent = [key for key in info["missing_keys"] if "pooler" not in key.split(".")]
    if absent:
        raise ModelError(
            f"the part {part.name}: its checkpoint has no weights for {len(absent)} tensors of {type(loaded).__name__}, such as "
            f"{sorted(absent)[0]}. It is a checkpoint of another kind of model."
        )
    built: nn.Module = loaded
    return built


@contextmanager
def quiet() -> Iterator[None]:
    """No table of the weights that a checkpoint has more or less than the model, for those are checked here; a bar on terminals alone."""
    from transformers.utils import logging as theirs

    source, bar = logging.getLogger("transformers.modeling_utils"), theirs.is_progress_bar_enabled()
    source.addFilter(_is_no_report)
    if not sys.stderr.isatty():
        theirs.disable_progress_bar()
    try:
        yield
    finally:
        source.removeFilter(_is_no_report)
        if bar:
            theirs.enable_progress_bar()


def _is_no_report(record: logging.LogRecord) -> bool:
    return not any(part in record.getMessage() for part in ("LOAD REPORT", "tied weights mapping"))
