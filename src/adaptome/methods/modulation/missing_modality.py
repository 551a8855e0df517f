"""Missing-modality SSF: one bank of scales and shifts for every set of modalities that are available."""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from adaptome.core.errors import MethodError, StateError, did_you_mean
from adaptome.core.hosts import Host
from adaptome.core.method import option, register
from adaptome.core.steer import steered
from adaptome.forms.modulation import Modulation, ModulationMethod, Vectors, drawn
from adaptome.forms.per_sample import refuse_per_sample
from adaptome.forms.skipped import SkippedBranch


@register(
    "missing-modality",
    category="additive",
    subcategory="feature modulation",
    export="none",
    per_sample_routing=True,
    hosts=("linear", "conv", "norm"),
    source="Reza et al. 2023, arXiv:2310.03986",
)
class MissingModality(ModulationMethod):
    r"""Missing-modality SSF: one bank of scales and shifts for every set of modalities that are available.

        y' = gamma_S * y + beta_S,    y = layer(x),  S the available set;  y' = y, bit for bit, when all are available

    when        a multimodal model has to work while some of its inputs are absent
    shapes      gamma_S, beta_S [out] per set, along the channels
    init        'identity': gamma = 1, beta = 0: starts as the base; 'normal': N(1, 0.02^2), N(0, 0.02^2)
    use         `ad.steer(available={"rgb"})` or "rgb+depth"; nothing steered means all. Rows of one batch may differ: a bool tensor
                `[batch, modalities]`, in the order of `modalities` or of what is steered as `modalities` (banks that no row uses then get zero gradients, not none).
                The inputs of absent modalities are yours to fill, with zeros after normalisation
    branches    {"depth": "depth_encoder.*"}: what lies in the branch of an absent modality has no bank for that set
    absent      'zero_input': the branch of an absent modality runs on what you filled in, for the fusion expects what it makes of that;
                'skip': it runs for one row, whose output stands for the batch: the same numbers, since the rows are alike, without
                the work. Its module is a target then too ("depth_encoder"); where rows differ in what they have, all run
    parameters  2 out per layer and set: 141,440 for SegFormer MiT-B2 (every linear layer, convolution and norm), one set
    merge       exact, inside `ad.steer(available=...)`, for that set; not for sets that differ between samples
    export      none: LoRA has no place for a bias (with shift=False by SVD, on layers without one)
    source      Reza et al. 2023, arXiv:2310.03986
    """

    modalities: tuple[str, ...] = option(("rgb", "depth"), help="all that the base was trained on")
    sets: tuple[str, ...] = option(
        (), help="the sets with a bank, as 'rgb+depth'; none named: every proper one"
    )
    branches: dict[str, str] | None = option(None, help="modality -> pattern of the paths of its own layers")
    absent: Literal["zero_input", "skip"] = option(
        "zero_input", help="run an absent modality's branch on every row, or once for the batch ('skip')"
    )

    def validate(self) -> None:
        super().validate()
        if len(set(self.modalities)) < 2 or any("+" in m or "." in m or not m for m in self.modalities):
            raise MethodError(
                f"missing-modality: modalities = {list(self.modalities)} must be two or more different names without '+' and '.'."
            )
        for name in [*itertools.chain(*(s.split("+") for s in self.sets)), *(self.branches or {})]:
            self.check_modality(name)
        if self.key(self.modalities) in self.set_names():
            raise MethodError(
                "missing-modality: the set of all modalities has no bank; leave it out of sets."
            )
        if self.absent == "skip" and not self.branches:
            raise MethodError(
                "missing-modality: absent='skip' must know what to skip; give branches, as {'depth': 'depth_encoder.*'}."
            )

    def check_modality(self, name: str) -> None:
        """Raise MethodError for a name that is not among the modalities."""
        if name not in self.modalities:
            raise MethodError(
                f"missing-modality: {name!r} is none of {list(self.modalities)}.{did_you_mean(name, self.modalities)}"
            )

    def key(self, available: str | Iterable[str]) -> str:
        """The set's name: its members in alphabetical order, joined by '+'."""
        return "+".join(sorted(available.split("+") if isinstance(available, str) else available))

    def set_names(self) -> list[str]:
        """The names of all sets with a bank."""
        if self.sets:
            return sorted({self.key(s) for s in self.sets})
        sizes = range(1, len(self.modalities))
        return sorted(self.key(s) for size in sizes for s in itertools.combinations(self.modalities, size))

    def keys_on(self, host: Host) -> list[str]:
        """The names of the sets with a bank on this layer: those in which its branch's modality is available."""
        own = [m for m, path in (self.branches or {}).items() if fnmatch.fnmatchcase(host.path, path)]
        return [key for key in self.set_names() if all(m in key.split("+") for m in own)]

    def lacks(self, modality: str) -> bool:
        """Whether what is steered says that no row has this modality."""
        available = steered("available")
        if available is None or isinstance(available, Tensor):
            return False
        return modality not in self.key(available).split("+")

    def root_of(self, host: Host) -> str | None:
        """The modality whose whole branch this module is, where absent ones are skipped."""
        if self.absent != "skip" or host.kind not in ("module", "backbone"):
            return None
        roots = {m: path.removesuffix(".*") for m, path in (self.branches or {}).items()}
        return next((m for m, root in roots.items() if fnmatch.fnmatchcase(host.path, root)), None)

    def admits(self, host: Host) -> str | None:
        if not self.root_of(host):
            return super().admits(host)
        if isinstance(host.layer, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
            return f"a {type(host.layer).__name__} runs or lists all it holds; give the branch a module with a forward of its own"
        return None

    def shared(self, hosts: Sequence[Host]) -> None:
        found = {self.root_of(host) for host in hosts}
        lacking = [m for m in self.branches or {} if self.absent == "skip" and m not in found]
        if lacking:
            named = [(self.branches or {})[m].removesuffix(".*") for m in lacking]
            raise MethodError(
                f"missing-modality: absent='skip', but the modules of the branches of {lacking} are no targets.\n"
                f"  Add {named} to targets: modules that hold a branch whole."
            )

    def example_facts(self) -> tuple[dict[str, Any], ...]:
        return tuple({"available": key} for key in self.set_names())

    def parameters(self, host: Host) -> int:
        return 0 if self.root_of(host) else self.vectors_on(host) * len(self.keys_on(host))

    def adapter(self, host: Host, shared: nn.Module | None = None) -> Banks | Skip:
        modality = self.root_of(host)
        return Banks(self, host) if modality is None else Skip(self, host, modality)


class Banks(Modulation):
    """The banks of one layer, by the name of their set."""

    fact = "available"

    def __init__(self, method: MissingModality, host: Host):
        super().__init__(host, method.scale, method.shift)
        self.method, self.here, self.width = method, method.keys_on(host), host.fan_out
        self.g = nn.ParameterDict({k: drawn(self.width, method.init) for k in self.here if method.scale})
        self.beta = nn.ParameterDict({k: drawn(self.width, method.init) for k in self.here if method.shift})
        self.may_idle = len(self.here) < len(method.set_names())
        # by the bits of availability: the bank's row; then one of zeros, for the layer as it is, and one of NaN, for sets without a bank
        count, M = len(self.here), len(method.modalities)
        row = {
            k: self.here.index(k) if k in self.here else count
            for k in [*method.set_names(), method.key(method.modalities)]
        }
        sets = [[m for i, m in enumerate(method.modalities) if bits >> i & 1] for bits in range(2**M)]
        self.row_of = [row.get(method.key(available), count + 1) for available in sets]
        self.register_buffer("table", torch.tensor(self.row_of), persistent=False)

    def vectors(self) -> Vectors | None:
        available = steered("available")
        if available is None:
            return None
        if isinstance(available, Tensor):
            rows = self.rows(available)
            scaled, shifted = self.method.scale, self.method.shift
            return self.stacked(self.g)[rows] if scaled else None, self.stacked(self.beta)[
                rows
            ] if shifted else None
        key = self.method.key(available)
        if key in self.here:
            g, beta = (banks.get(key) for banks in (self.g, self.beta))
            return g, beta
        if key not in self.method.set_names() and key != self.method.key(self.method.modalities):
            raise StateError(
                f"missing-modality: no bank is for {key!r}; there are {self.method.set_names()}."
            )
        return None

    def rows(self, available: Tensor) -> Tensor:
        """The bank of every sample `[batch]`, as a row of `stacked`, from availabilities `[batch, modalities]`."""
        if available.shape[1:] != (len(self.method.modalities),):
            raise StateError(
                f"missing-modality: available has shape {list(available.shape)}; give [batch, {len(self.method.modalities)}], a column each for "
                f"{', '.join(self.method.modalities)}."
            )
        named = steered("modalities")
        if named is not None and tuple(named) != tuple(self.method.modalities):
            if set(named) != set(self.method.modalities):
                raise StateError(
                    f"missing-modality: available is steered for {list(named)}, and the banks are of {list(self.method.modalities)}: set modalities."
                )
            available = available[:, [list(named).index(name) for name in self.method.modalities]]
        bits = (available.long() * 2 ** torch.arange(available.shape[1], device=available.device)).sum(1)
        if (
            not torch.compiler.is_compiling() and available.device.type == "cpu"
        ):  # elsewhere NaN tells, without a wait for the device
            missing = [i for i, b in enumerate(bits.tolist()) if self.row_of[b] > len(self.here)]
            if missing:
                raise StateError(
                    f"missing-modality: no bank is for the sets of samples {missing}; there are {self.method.set_names()}."
                )
        table = self.get_buffer("table")
        return table[bits.to(table.device)]

    def stacked(self, banks: nn.ParameterDict) -> Tensor:
        """`[banks + 2, out]`: the banks, zeros and NaN."""
        zeros = torch.zeros(self.width, device=self.get_buffer("table").device)
        return torch.stack([*banks.values(), zeros, zeros + float("nan")])

    def check_merge(self) -> None:
        refuse_per_sample(steered("available"), "available", self.host)


class Skip(SkippedBranch):
    """The branch of one modality."""

    def __init__(self, method: MissingModality, host: Host, modality: str):
        super().__init__(host, method.name, modality)
        self.method = method

    def absent(self) -> bool:
        return self.method.lacks(self.what)
