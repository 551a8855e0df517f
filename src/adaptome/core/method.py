"""Methods: frozen, validated settings that build one adapter per host; and their registry.

A method is one file under `adaptome/methods/` (or a module named in the entry-point group `adaptome.methods`), found by its
registration alone:

    @register("lora", category="reparameterisation", subcategory="low-rank", export="low-rank")
    class LoRA(Method):
        \"\"\"LoRA: a low-rank update trained beside each frozen weight. ...\"\"\"
        r: int = option(8, at_least=1, help="rank of the update")
        def parameters(self, host): return self.r * (host.fan_in + host.fan_out)
        def adapter(self, host, shared=None): return LoRAAdapter(self, host)
"""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from torch import nn
from typing_extensions import dataclass_transform

from adaptome.core.discovery import discover
from adaptome.core.errors import HostError, MethodError, did_you_mean, nearest
from adaptome.core.hosts import Host
from adaptome.core.options import check_bounds, coerce, hints, option, type_name
from adaptome.core.options import nearest_divisor as nearest_divisor
from adaptome.core.packed import is_strange
from adaptome.core.roles import PARTS

if TYPE_CHECKING:
    from adaptome.core.adapter import Adapter

Merge = Literal["exact", "none"]
Export = Literal["low-rank", "delta", "none"]
#: the survey's kinds of foundation models: language, vision, vision-language, visual generation
Kind = Literal["LLM", "VFM", "VLM", "VGM"]
CATEGORIES = ("selective", "additive", "prompt", "reparameterisation", "hybrid")


class Method:
    """What every method is: settings (dataclass fields), targets, a parameter formula and a builder of adapters."""

    name: ClassVar[str]
    #: the settings that were given by hand; the others are at their defaults
    given: frozenset[str]
    #: the survey's classification (arXiv:2501.13787), one of CATEGORIES
    category: ClassVar[str] = "reparameterisation"
    subcategory: ClassVar[str] = ""
    #: the kinds of foundation models it is for; a method of layers works in all
    models: ClassVar[tuple[Kind, ...]] = ("LLM", "VFM", "VLM", "VGM")
    #: whether the adapted layer has a merged form
    merge: ClassVar[Merge] = "exact"
    #: exact as LoRA factors, a weight delta of any rank, or not a weight delta
    export: ClassVar[Export] = "delta"
    #: whether the adapted model equals the base before training, with the default settings
    identity_at_init: ClassVar[bool] = True
    #: whether the inference graph grows when the adapter is not merged
    structure_changed: ClassVar[bool] = True
    #: cost at inference: 'none after merge', 'extra modules', 'longer sequence', 'shorter sequence'
    inference_overhead: ClassVar[str] = "none after merge"
    #: whether the samples, or tokens, of one batch may take different ways through it
    per_sample_routing: ClassVar[bool] = False
    #: kinds of hosts it admits, and whether packed (quantised) ones are among them
    hosts: ClassVar[tuple[str, ...]] = ("linear", "conv", "embedding", "experts", "parameter")
    admits_packed: ClassVar[bool] = True
    #: where it goes when the user names no targets
    default_targets: ClassVar[str | tuple[str, ...]] = "all-linear"
    #: whether it leaves the weights of layers as they are, and changes their biases alone
    keeps_weights: ClassVar[bool] = False
    #: whether by default it stands once around a whole mixture of experts, in place of the maps in it
    around_experts: ClassVar[bool] = False
    #: the setting that a budget solves; '' for the first of r, size, n that there is
    budget_setting: ClassVar[str] = ""
    #: the setting that counts the training examples that its adapters take up (see `Adapter.takes_examples`); '' for none
    counts_examples: ClassVar[str] = ""
    #: what must be on the model before it, in words; '' for nothing
    needs: ClassVar[str] = ""
    #: the paper
    source: ClassVar[str] = ""

    def __new__(cls, *values: Any, **settings: Any) -> Any:
        """An instance that remembers which settings were given; `__init__` is a dataclass's."""
        made = super().__new__(cls)
        names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
        object.__setattr__(made, "given", frozenset([*names[: len(values)], *settings]))
        return made

    def _values(self) -> tuple[Any, ...]:
        return tuple(getattr(self, f.name) for f in dataclasses.fields(self))  # type: ignore[arg-type]

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._values() == other._values()

    def __hash__(self) -> int:
        return hash(self._values())

    def __repr__(self) -> str:
        inner = (f"{f.name}={getattr(self, f.name)!r}" for f in dataclasses.fields(self))  # type: ignore[arg-type]
        return f"{type(self).__qualname__}({', '.join(inner)})"

    # -- what a method implements ----------------------------------------------------------------------------------

    def parameters(self, host: Host) -> int:
        """Trainable numbers on this host, by formula (shared ones not counted)."""
        raise MethodError(f"{type(self).__name__} has no parameter formula.")

    def adapter(self, host: Host, shared: nn.Module | None = None) -> Adapter:
        """Build the adapter for one host; `shared` is what `shared()` returned."""
        raise MethodError(f"{type(self).__name__} builds no adapter.")

    def shared(self, hosts: Sequence[Host]) -> nn.Module | None:
        """State that all its adapters use, stored once on the model and saved once."""
        return None

    def shared_parameters(self, hosts: Sequence[Host]) -> int:
        """Trainable numbers of the shared state, by formula."""
        return 0

    def on_step(
        self, adapters: Mapping[str, Adapter], shared: nn.Module | None, step: int, total: int
    ) -> None:
        """Called before training with step 0 (or the step a run resumes from), then after every optimiser step: schedules, growth, redraws."""

    def fitting(self, host: Host) -> dict[str, Any]:
        """Settings under which it fits this host, where the defaults do not: a size that divides the layer's width."""
        return {}

    def targets_by_default(self) -> str | tuple[str, ...]:
        """What is adapted where no targets are named: `default_targets`, unless a setting asks for more."""
        return self.default_targets

    def penalty(self, adapters: Mapping[str, Adapter], shared: nn.Module | None) -> Any:
        """A term to add to the loss (a scalar tensor), or None."""
        return None

    # -- what every method has -------------------------------------------------------------------------------------

    def admits(self, host: Host) -> str | None:
        """None when it can sit on this host, else the reason why not."""
        if host.kind not in self.hosts:
            if is_strange(host.layer):
                return f"{type(host.layer).__name__} keeps no weight that can be read or written; `ad.adopt(model)` puts layers with the same weights in their places"
            return f"it works on {', '.join(self.hosts)}; this is a {host.kind} ({type(host.layer).__name__})"
        if host.packed and not self.admits_packed:
            return "it needs the weight in full precision; this one is quantised"
        return None

    def parametrised(self, host: Host) -> str | None:
        """Why it cannot be on a layer whose weight a parametrisation makes: a change of that weight would be made anew, and lost."""
        made_of = host.made_of(host.parameter)
        if not made_of or self.merge == "none" or self.keeps_weights:
            return None
        return (
            f"its {host.parameter} is made by a parametrisation from {' and '.join(made_of)}, so nothing can be added to it; "
            "`bitfit` trains its bias, and torch.nn.utils.parametrize.remove_parametrizations makes it plain"
        )

    def check(self, host: Host) -> None:
        """Raise HostError when the method cannot sit on this host."""
        reason = self.admits(host)
        works = (
            "Name other targets"
            if reason or not host.read
            else f"Take a method that changes weights, such as lora, or exclude={host.path!r}"
        )
        reason = reason or host.never_called(changes_weights=self.merge == "exact") or self.parametrised(host)
        if reason:
            raise HostError(
                f"{self.name} cannot be put on {host.name or 'the root'}: {reason}.\n  {works}; `adaptome methods` lists what each method admits."
            )

    def fitted(self, host: Host) -> Method:
        """The method as it fits this host: itself, or with defaults changed by `fitting`; what was given by hand stays."""
        if host.kind not in self.hosts:
            return self
        changed = {
            key: value
            for key, value in self.fitting(host).items()
            if key not in self.given and getattr(self, key) != value
        }
        return self.replace(**changed) if changed else self

    def settings(self) -> dict[str, Any]:
        """Every setting with its value, as JSON can hold it."""
        return {
            f.name: (list(v) if isinstance(v := getattr(self, f.name), tuple) else v)
            for f in dataclasses.fields(self)  # type: ignore[arg-type]
        }

    def replace(self, **settings: Any) -> Method:
        """The same method with some settings changed.

        Raises:
            MethodError: for a setting it does not have.
        """
        made = build(type(self), {**self.settings(), **settings})
        object.__setattr__(made, "given", self.given | settings.keys())
        return made

    @classmethod
    def size_setting(cls) -> str | None:
        """The setting that a budget solves; None when the method has no size."""
        fields = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
        return cls.budget_setting or next((name for name in ("r", "size", "n") if name in fields), None)

    def sized(self, value: int) -> Method:
        """The method at another size; methods with several sizes keep their proportion here."""
        setting = self.size_setting()
        return self.replace(**{setting: value}) if setting else self

    def __post_init__(self) -> None:
        own: Any = type(self)
        known = hints(own)
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = coerce(getattr(self, field.name), known[field.name], f"{self.name}.{field.name}")
            check_bounds(value, field.metadata, f"{self.name}.{field.name}")
            object.__setattr__(self, field.name, value)
        self.validate()

    def example_facts(self) -> tuple[dict[str, Any], ...]:
        """What to tell `ad.steer` for an example run: the first alone shows an effect, all in turn reach every trained tensor."""
        return ({},)

    def factorises(self) -> bool:
        """Whether what it stores is relative to a factorisation of the base's weights, so that the base in another precision is another base."""
        return False

    def validate(self) -> None:
        """Checks between settings; raise MethodError."""

    @classmethod
    def summary(cls) -> str:
        """The first line of its documentation."""
        return (cls.__doc__ or "").strip().splitlines()[0] if cls.__doc__ else ""

    @classmethod
    def formula(cls) -> str:
        """What its documentation says of the number of trained parameters."""
        found = re.search(r"^ +parameters +(.*(?:\n {16}.*)*)", cls.__doc__ or "", re.MULTILINE)
        return " ".join(found[1].split()) if found else ""

    @classmethod
    def located(cls) -> tuple[str, ...]:
        """The parts of a model that its default targets are in: attention, MLP, norm, embedding, input, output, block, other."""
        targets = (cls.default_targets,) if isinstance(cls.default_targets, str) else cls.default_targets
        return tuple(dict.fromkeys(part for target in targets for part in PARTS.get(target, ("other",))))

    @classmethod
    def about(cls) -> dict[str, Any]:
        """Its metadata, as `adaptome methods --json` prints it."""
        keys = (
            "name",
            "category",
            "subcategory",
            "models",
            "merge",
            "export",
            "identity_at_init",
            "structure_changed",
            "inference_overhead",
            "per_sample_routing",
            "hosts",
            "admits_packed",
            "default_targets",
            "needs",
            "source",
        )
        own: Any = cls
        known = hints(own)
        options = [
            {
                "name": f.name,
                "default": f.default,
                "type": type_name(known[f.name]),
                **f.metadata,
            }
            for f in dataclasses.fields(cls)  # type: ignore[arg-type]
        ]
        told = {"summary": cls.summary(), **{k: getattr(cls, k) for k in keys}}
        return {
            **told,
            "positions": cls.located(),
            "added_parameters": cls.formula(),
            "budget_solves": cls.size_setting(),
            "options": options,
        }


# -- the registry ----------------------------------------------------------------------------------------------------

_REGISTRY: dict[str, type[Method]] = {}
_ATTACH_ARGUMENTS = {
    "model",
    "method",
    "name",
    "targets",
    "exclude",
    "layers",
    "train",
    "per_layer",
    "dtype",
    "seed",
    "budget",
}
M = TypeVar("M", bound=type[Method])


@dataclass_transform(frozen_default=True, field_specifiers=(option,))
def settings(cls: M) -> M:
    """Make a base class of methods hand its settings on: what `register` does, without a name."""
    # comparing, hashing and printing are Method's own: made anew for every class they were half of what importing the methods cost
    return typing.cast(M, dataclasses.dataclass(frozen=True, eq=False, repr=False)(cls))


@dataclass_transform(frozen_default=True, field_specifiers=(option,))
def register(name: str, **about: Any) -> Callable[[M], M]:
    """Register a method under a name; `about` sets its class attributes (category, merge, export, ...).

    Raises:
        MethodError: when another method has the name, or `about` has an unknown entry.
    """

    def decorate(cls: M) -> M:
        for key, value in about.items():
            if not hasattr(Method, key):
                raise MethodError(
                    f"register({name!r}): unknown attribute {key!r}.{did_you_mean(key, vars(Method))}"
                )
            setattr(cls, key, value)
        taken = _ATTACH_ARGUMENTS & set(cls.__annotations__)
        if taken:
            raise MethodError(
                f"register({name!r}): settings {sorted(taken)} have the names of ad.attach's own arguments; choose others."
            )
        known = _REGISTRY.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise MethodError(f"a method named {name!r} is registered already, by {known.__module__}.")
        cls.name = name
        _REGISTRY[name] = settings(cls)
        return cls

    return decorate


def list_methods() -> dict[str, type[Method]]:
    """Every registered method by name, in alphabetical order."""
    discover("methods")
    return dict(sorted(_REGISTRY.items()))


def method_class(name: str) -> type[Method]:
    """The method registered under a name.

    Raises:
        MethodError: naming the nearest ones.
    """
    known = list_methods()
    if name in known:
        return known[name]
    close = nearest(name, known) or list(known)
    raise MethodError(
        f"no method is called {name!r}. Nearest: {', '.join(close)}.\n  `adaptome methods` lists all {len(known)}."
    )


def build(cls: type[Method], settings: Mapping[str, Any]) -> Method:
    """An instance of a method with these settings.

    Raises:
        MethodError: for an unknown setting, naming the nearest.
    """
    fields = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in settings:
        if key not in fields:
            raise MethodError(
                f"{cls.name} has no setting {key!r}.{did_you_mean(key, fields)}\n  It has: {', '.join(sorted(fields)) or 'none'}."
            )
    return cls(**settings)


def get_method(method: str | Method | type[Method], **settings: Any) -> Method:
    """A method from its name, its class or an instance, with settings.

    Raises:
        MethodError: unknown name or setting, or something else than a method.
    """
    if isinstance(method, Method):
        return method.replace(**settings) if settings else method
    if isinstance(method, str):
        return build(method_class(method), settings)
    if not (isinstance(method, type) and issubclass(method, Method)):
        raise MethodError(
            f"{method!r} is no method.\n  Give a name ('lora'), a method (ad.LoRA(r=8)) or its class."
        )
    return build(method, settings)
