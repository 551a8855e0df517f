"""The names that files have for a model's layers, made from the layers that the model has.

    diffusers   unet.down_blocks.0.attentions.0.proj_in          the part of the pipeline, then the module; a model alone needs no part
    kohya       lora_unet_down_blocks_0_attentions_0_proj_in     the part as a prefix, dots as underscores; SDXL, Flux and SD3 by their authors' names

A model is one part of a pipeline, or several in an `nn.ModuleDict` or a composite model under the pipeline's names
for them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import nn

from adaptome.core.errors import KeyMismatchError, nearest
from adaptome.core.state import is_ours
from adaptome.interop.images.schemes import Part, Scheme, scheme_of

PARTS = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")
_KOHYA = {
    "unet": ("lora_unet_", "lycoris_"), "transformer": ("lora_unet_", "lora_transformer_", "lycoris_"), "text_encoder": ("lora_te1_", "lora_te_"),
    "text_encoder_2": ("lora_te2_",), "text_encoder_3": ("lora_te3_",),
}  # fmt: skip
_DOTTED = {"unet": ("diffusion_model.",), "transformer": ("diffusion_model.",)}


@dataclass(frozen=True)
class Component:
    """One part of a pipeline: its name there, the model, and where it is in what was given."""

    name: str
    model: nn.Module
    prefix: str
    alone: bool

    @property
    def layers(self) -> list[str]:
        """The modules that have parameters of their own, without those of adapters."""
        return [
            path
            for path, module in self.model.named_modules()
            if path and not is_ours(path) and any(p is not None for p in module._parameters.values())
        ]

    @property
    def is_text(self) -> bool:
        """Whether it is one of transformers' text encoders."""
        return self.name.startswith("text_encoder")

    def kohya(self) -> tuple[str, ...]:
        """The prefixes of kohya's names, the one to write first."""
        if self.alone and self.is_text:
            return ("lora_te_", "lora_te1_", "lora_te2_", "lora_te3_", "lycoris_")
        if self.name == "text_encoder_2" and "T5" in type(self.model).__name__:  # Flux
            return ("lora_te3_", "lora_te2_")
        return _KOHYA[self.name]

    def dotted(self) -> tuple[str, ...]:
        """The prefixes of diffusers' names, the one to write first."""
        others = tuple(f"{name}." for name in PARTS if self.alone and self.is_text and name in PARTS[2:])
        return (f"{self.name}.", *others, *_DOTTED.get(self.name, ()), *(("",) if self.alone else ()))

    def plain(self) -> Scheme:
        """The layers by the names that files have for them: those of the model, for CLIP with `text_model.` whether or not it has it."""
        scheme: Scheme = {path: (Part(path),) for path in self.layers}
        if self.is_text and "CLIP" in type(self.model).__name__:
            within = {p: parts for p, parts in scheme.items() if not p.startswith("text_")}
            scheme = {p: parts for p, parts in scheme.items() if p not in within}
            scheme |= {f"text_model.{path}": parts for path, parts in within.items()}
        return scheme

    def placed(self, scheme: Scheme) -> Scheme:
        """A scheme with the paths as the whole model has them."""
        return {
            name: tuple(replace(part, path=self.prefix + part.path) for part in parts)
            for name, parts in scheme.items()
        }

    def kohya_scheme(self) -> Scheme:
        """The names that kohya's scripts write: the authors' for SDXL, Flux and SD3, else diffusers'."""
        other = scheme_of(self.model, self.layers)
        if not other or (self.name == "unet" and not is_xl(self.model)):
            return self.plain()
        known = {part.path for parts in other.values() for part in parts}
        return other | {name: parts for name, parts in self.plain().items() if parts[0].path not in known}


def is_xl(unet: nn.Module) -> bool:
    """Whether a UNet takes size and crop as SDXL's does."""
    config = getattr(unet, "config", None) or {}
    return config.get("addition_embed_type") == "text_time"


def components(root: nn.Module) -> list[Component]:
    """The parts of a pipeline that a model is."""
    if isinstance(root, nn.ModuleDict) and len(root) and set(root) <= set(PARTS):
        return [Component(name, model, f"{name}.", False) for name, model in root.items()]
    parts = getattr(root, "parts", None)
    if callable(parts):  # a composite model whose parts have the pipeline's names
        named = {name: part for name, part in parts().items() if name in PARTS}
        if named:
            return [Component(name, part, f"{name}.", False) for name, part in named.items()]
    return [Component(_kind(root), root, "", True)]


def _kind(model: nn.Module) -> str:
    bases = {cls.__module__.partition(".")[0] for cls in type(model).__mro__}
    if "transformers" in bases:
        return "text_encoder"
    return "unet" if "up_blocks" in model._modules else "transformer"


def read_names(root: nn.Module) -> Scheme:
    """Every name that a file may have for a layer, with the layers that it stands for."""
    found: Scheme = {}
    for component in components(root):
        for scheme in (component.plain(), scheme_of(component.model, component.layers)):
            for name, parts in component.placed(scheme).items():
                for written in _spelled(component, name):
                    found.setdefault(written, parts)
    return found


def _spelled(component: Component, name: str) -> Iterator[str]:
    yield from (prefix + name for prefix in component.dotted())
    yield from (prefix + name.replace(".", "_") for prefix in component.kohya())
    if component.is_text and name.startswith("text_model."):  # which CLIP's has no longer in newer versions
        yield from (prefix + name.removeprefix("text_model.") for prefix in component.dotted())


def write_names(root: nn.Module, dialect: str) -> Scheme:
    """The names that are written, 'diffusers' or 'kohya', with the layers that each stands for."""
    found: Scheme = {}
    for component in components(root):
        if dialect == "diffusers":
            made = {component.dotted()[0] + name: parts for name, parts in component.placed(component.plain()).items()}  # fmt: skip
        else:
            prefix = "lora_te_" if component.name == "text_encoder" and _one_encoder(root) else component.kohya()[0]  # fmt: skip
            made = {prefix + name.replace(".", "_"): parts for name, parts in component.placed(component.kohya_scheme()).items()}  # fmt: skip
        found |= made
    return found


def _one_encoder(root: nn.Module) -> bool:
    return sum(component.is_text for component in components(root)) == 1


def unknown(name: str, known: Scheme, root: nn.Module, source: str) -> KeyMismatchError:
    """The error for a layer's name that the model has not."""
    close = nearest(name, known, 1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    elsewhere = name.startswith("lora_te") or name.partition(".")[0] in PARTS
    parts = components(root)
    if elsewhere and parts[0].alone:
        hint += f"\n  A file for several parts of a pipeline is loaded on nn.ModuleDict({{{parts[0].name!r}: model, ...}}) of those parts."
    return KeyMismatchError(
        f"{source}: {type(root).__name__} has no layer that {name!r} could stand for.{hint}\n  Nothing was loaded."
    )
