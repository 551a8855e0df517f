"""Hosts: what an adapter can sit on, and the shape logic of each kind of layer, once.

A host presents its layer's weight in one canonical form, `[out, in]` (`[experts, out, in]` for fused experts), so
that a method is written once:

    kind        layer                                     stored weight             canonical
    linear      Linear, packed (quantised) linears        [out, in]                 the same
    linear      transformers' Conv1D                      [in, out]                 transposed
    parameter   a linear layer in blocks (DeepSeek-V4)    [out, in]                 the same: x [.., blocks, in] -> y [.., blocks, out / blocks]
    conv        Conv1d, Conv2d, Conv3d                    [out, in/groups, *k]      [out, in/groups * prod(k)]
    embedding   Embedding                                 [tokens, dim]             transposed: in = tokens, out = dim
    norm        LayerNorm, RMSNorm, BatchNorm, ...        [dim]                     the same
    experts     one parameter of fused experts            [experts, out, in]        the same
    parameter   any other 2-D parameter by name           as it is                  the same
    vector      a 1-D parameter by name                   [dim]                     the same
    module      attention, MLP, decoder layer, ...        none                      activations only
    backbone    a whole transformer                       none                      activations only; its output is a model's
    predictor   a link predictor over a knowledge graph   none                      scores only: in = an embedding, out = entities

`reduce(x, A)` and `expand(z, B)` apply a factor pair `A [r, in]`, `B [out, r]` to activations as the layer would apply a weight, so
`expand(reduce(x, A), B)` is the layer run with the weight `B A` and no bias.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adaptome.core.errors import HostError
from adaptome.core.host import Host as Host
from adaptome.core.host import at_hand as at_hand
from adaptome.core.host import autocasting as autocasting
from adaptome.core.host import first_input as first_input
from adaptome.core.host import unmerged as unmerged
from adaptome.core.roles import EXPERTS, has_name


class LinearHost(Host):
    """torch's Linear and everything that derives from it, packed linears included."""

    kind = "linear"
    has_product = True

    @property
    def fan_in(self) -> int:
        return int(self.layer.in_features)

    @property
    def fan_out(self) -> int:
        return int(self.layer.out_features)

    def reduce(self, x: Tensor, A: Tensor) -> Tensor:
        return F.linear(x, A.to(x.dtype))

    def expand(self, z: Tensor, B: Tensor) -> Tensor:
        return F.linear(z, B.to(z.dtype))

    def add_expanded(self, y: Tensor, z: Tensor, B: Tensor, scale: float) -> Tensor:
        if y.dtype != z.dtype or y.dim() < 2:
            return torch.add(y, self.expand(z, B), alpha=scale)
        added = torch.addmm(y.flatten(0, -2), z.flatten(0, -2), B.to(z.dtype).t(), alpha=scale)
        return added.view(y.shape)

    def run_dense(self, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
        return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


class Conv1DHost(LinearHost):
    """transformers' Conv1D (GPT-2): a linear layer that stores its weight as [in, out]."""

    @property
    def fan_in(self) -> int:
        return int(self.layer._parameters["weight"].shape[0])

    @property
    def fan_out(self) -> int:
        return int(self.layer._parameters["weight"].shape[1])

    def canonical(self, value: Tensor) -> Tensor:
        return value.t() if value.dim() == 2 else value

    native = canonical


class BlocksHost(LinearHost):
    """A linear layer in blocks (DeepSeek-V4's `o_a_proj`): each block of the input `[*, blocks, in]` has out / blocks rows of the weight.

    It is of the kind 'parameter': what reads or makes a weight works on it, and a product with factors is at hand; one with the whole weight is not.
    """

    kind = "parameter"

    @staticmethod
    def fits(layer: nn.Module) -> bool:
        """Whether it is a linear layer with a forward of its own over groups of features."""
        own = getattr(type(layer), "_base", type(layer)).forward is not nn.Linear.forward
        return isinstance(layer, nn.Linear) and own and isinstance(getattr(layer, "n_groups", None), int)

    def expand(self, z: Tensor, B: Tensor) -> Tensor:
        return torch.einsum("...gr,gor->...go", z, B.to(z.dtype).unflatten(0, (self.layer.n_groups, -1)))

    def add_expanded(self, y: Tensor, z: Tensor, B: Tensor, scale: float) -> Tensor:
        return torch.add(y, self.expand(z, B), alpha=scale)

    def along_output(self, vector: Tensor) -> Tensor:
        return vector.unflatten(0, (self.layer.n_groups, -1))

    def run_dense(self, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
        return self.expand(x, weight)


class ConvHost(Host):
    """Conv1d, Conv2d and Conv3d, with groups, stride, dilation and every padding mode."""

    kind = "conv"
    has_product = True

    @property
    def fan_in(self) -> int:
        return self.stored("weight")[0].numel()

    @property
    def fan_out(self) -> int:
        return int(self.layer.out_channels)

    def canonical(self, value: Tensor) -> Tensor:
        return value.flatten(1) if value.dim() > 1 else value

    def native(self, value: Tensor) -> Tensor:
        return value.view(self.stored("weight").shape) if value.dim() > 1 else value

    def reduce(self, x: Tensor, A: Tensor) -> Tensor:
        """Convolve with r filters per group: z has `groups * r` channels."""
        groups = self.layer.groups
        kernel = A.to(x.dtype).view(A.shape[0], *self.stored("weight").shape[1:])
        if groups > 1:
            kernel = kernel.repeat(groups, *[1] * (kernel.dim() - 1))
        return self.convolve(x, kernel, groups)

    def convolve(self, x: Tensor, kernel: Tensor, groups: int = 1) -> Tensor:
        """The layer's convolution (its stride, padding and dilation) with another kernel `[r, channels / groups, *k]`, without bias."""
        conv = self.layer
        if conv.padding_mode != "zeros":
            x, padding = F.pad(x, conv._reversed_padding_repeated_twice, mode=conv.padding_mode), 0
        else:
            padding = conv.padding
        return self._conv(x, kernel, None, conv.stride, padding, conv.dilation, groups)

    def expand(self, z: Tensor, B: Tensor) -> Tensor:
        kernel = B.to(z.dtype).view(*B.shape, *[1] * len(self.layer.kernel_size))
        return self._conv(z, kernel, groups=self.layer.groups)

    @property
    def _conv(self) -> Callable[..., Tensor]:
        return (F.conv1d, F.conv2d, F.conv3d)[len(self.layer.kernel_size) - 1]

    def along_output(self, vector: Tensor) -> Tensor:
        return vector.view(-1, *[1] * len(self.layer.kernel_size))

    along_input = along_output


class EmbeddingHost(Host):
    """Embedding as a linear map of one-hot tokens: in = tokens, out = dimensions."""

    kind = "embedding"
    has_product = True

    @property
    def fan_in(self) -> int:
        return int(self.layer.num_embeddings)

    @property
    def fan_out(self) -> int:
        return int(self.layer.embedding_dim)

    def canonical(self, value: Tensor) -> Tensor:
        return value.t() if value.dim() == 2 else value

    native = canonical

    def reduce(self, x: Tensor, A: Tensor) -> Tensor:
        return F.embedding(x, A.t())

    def expand(self, z: Tensor, B: Tensor) -> Tensor:
        return F.linear(z, B.to(z.dtype))

    def add_expanded(self, y: Tensor, z: Tensor, B: Tensor, scale: float) -> Tensor:
        return self.add(y, self.expand(z.to(y.dtype), B), scale)

    def add(self, y: Tensor, added: Tensor, scale: float) -> Tensor:
        # Subclasses scale their output (Gemma's embedding by sqrt(dim)): the delta passes through the same factor.
        factor = getattr(self.layer, "embed_scale", getattr(self.layer, "scalar_embed_scale", 1.0))
        return y + (added * scale * factor).to(y.dtype)

    def run_dense(self, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
        layer = self.layer
        if layer.max_norm is not None:
            return super().run_dense(weight, bias, x)
        factor = getattr(layer, "embed_scale", getattr(layer, "scalar_embed_scale", 1.0))
        return F.embedding(x, weight.t(), layer.padding_idx) * factor


class NormHost(Host):
    """LayerNorm, RMSNorm, GroupNorm, BatchNorm and models' own norms: a weight and perhaps a bias, both [dim]."""

    kind = "norm"

    @property
    def fan_in(self) -> int:
        return self.stored("weight" if self.has("weight") else "bias").numel()

    fan_out = fan_in

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.fan_out,)


class ParameterHost(Host):
    """One parameter of a module by name: read wherever the module's own forward reads it."""

    kind = "parameter"

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.stored(self.parameter).shape)

    @property
    def lead(self) -> tuple[int, ...]:
        return self.shape[:-2]

    @property
    def fan_in(self) -> int:
        return self.shape[-1]

    @property
    def fan_out(self) -> int:
        return self.shape[-2 if len(self.shape) > 1 else -1]

    def _tensors(self) -> Iterator[Tensor]:
        yield self.stored(self.parameter)


class VectorHost(ParameterHost):
    """One 1-D parameter of a module by name: not a matrix, so methods that make matrices do not take it."""

    kind = "vector"

    @property
    def lead(self) -> tuple[int, ...]:
        return ()


class ExpertsHost(ParameterHost):
    """Fused experts, one matrix each: a parameter [experts, out, in], or [experts, in, out] when marked transposed or seen to be."""

    kind = "experts"

    @property
    def copies(self) -> int:
        return self.shape[0]

    @property
    def _transposed(self) -> bool:
        marked = getattr(self.layer, "is_transposed", None)
        if marked is not None:
            return bool(marked)
        # unmarked ones (Llama 4's) tell by their shapes: [experts, d, 2 h] and [experts, h, d], which no [out, in] pair has
        pair = [self.layer._parameters.get(name) for name in ("gate_up_proj", "down_proj")]
        (up_in, up_out), (down_in, down_out) = ((0, 0) if p is None else tuple(p.shape[-2:]) for p in pair)
        return 0 < up_in == down_out and up_out == 2 * down_in

    @property
    def shape(self) -> tuple[int, ...]:
        stored = self.stored(self.parameter).shape
        return (stored[0], stored[2], stored[1]) if self._transposed else tuple(stored)

    def canonical(self, value: Tensor) -> Tensor:
        return value.transpose(-1, -2) if self._transposed and value.dim() == 3 else value

    native = canonical


class ModuleHost(Host):
    """A module that is no one layer: activations pass through it, and it has no weight of its own."""

    kind = "module"

    @property
    def fan_in(self) -> int:
        return self.width

    @property
    def fan_out(self) -> int:
        return self.width

    @property
    def width(self) -> int:
        """Features of the activations: of its norm, else of the last map's output that is no router's.

        Raises:
            HostError: it has neither.
        """
        norms = [
            p
            for m in self.layer.children()
            for p in m._parameters.values()
            if p is not None and p.dim() == 1 and "norm" in type(m).__name__.lower()
        ]
        # those in an attention are often of its heads' width, those in an MLP of its hidden units'
        if norms and self.role not in ("attention-block", "mlp-block"):
            return int(norms[0].numel())
        fused = [
            ExpertsHost(m, parameter=name)
            for m in self.layer.modules()
            for name, value in m._parameters.items()
            if value is not None and value.dim() == 3
        ]
        listed = [
            len(m)
            for name, m in self.layer.named_modules()
            if isinstance(m, nn.ModuleList) and has_name(EXPERTS, name.rpartition(".")[2])
        ]
        routers = {1, *listed, *(experts.copies for experts in fused)} if fused or listed else set()
        linears = [
            h for m in self.layer.modules() if (h := _leaf(m)) is not None and h.fan_out not in routers
        ]
        if not linears and not fused:
            raise HostError(
                f"{self.path or 'the root'} ({type(self.layer).__name__}) has no norm or linear layer that tells the width of its activations."
            )
        return (linears or fused)[-1].fan_out


class BackboneHost(ModuleHost):
    """A whole transformer: it takes a model's inputs (ids, masks, caches, pixels) and gives a model's output."""

    kind = "backbone"


class PredictorHost(Host):
    """A link predictor: tables `entities` and `relations`, and scores [..., N] of all entities from numbers of subjects and relations."""

    kind = "predictor"

    @property
    def fan_in(self) -> int:
        return int(self.layer.entities.embedding_dim)

    @property
    def fan_out(self) -> int:
        return int(self.layer.entities.num_embeddings)


def _is_predictor(layer: nn.Module) -> bool:
    tables = (layer._modules.get(name) for name in ("entities", "relations"))
    return all(isinstance(table, nn.Embedding) for table in tables)


def _is_norm(layer: nn.Module) -> bool:
    own = {k: v for k, v in layer._parameters.items() if v is not None}
    return (
        "Norm" in type(layer).__name__
        and set(own) <= {"weight", "bias"}
        and all(v.dim() == 1 for v in own.values())
        and bool(own)
    )


#: tried in this order; the first whose test holds is the layer's host
_KINDS: list[tuple[Callable[[nn.Module], bool], type[Host]]] = [
    (lambda m: isinstance(m, nn.Linear), LinearHost),
    (
        lambda m: (
            hasattr(m, "nf") and (weight := m._parameters.get("weight")) is not None and weight.dim() == 2
        ),
        Conv1DHost,
    ),
    (lambda m: isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Conv3d)), ConvHost),
    (lambda m: isinstance(m, nn.Embedding), EmbeddingHost),
    (_is_norm, NormHost),
    (_is_predictor, PredictorHost),
]


def _leaf(layer: nn.Module) -> Host | None:
    return next((kind(layer) for fits, kind in _KINDS[:2] if fits(layer)), None)


def host_of(
    layer: nn.Module,
    path: str = "",
    parameter: str | None = None,
    role: str = "other",
    index: int | None = None,
) -> Host:
    """The host of a layer, or of one of its parameters.

    Raises:
        HostError: when the parameter does not exist.
    """
    if parameter in (None, "weight") and BlocksHost.fits(layer):
        return BlocksHost(layer, path, "weight", role, index)
    if parameter is not None:
        value = layer._parameters.get(parameter)
        if value is None:
            raise HostError(
                f"{path} has no parameter {parameter!r}; it has {[k for k, v in layer._parameters.items() if v is not None]}."
            )
        kind = {1: VectorHost, 2: ParameterHost, 3: ExpertsHost}.get(value.dim())
        if kind is None:
            raise HostError(
                f"{path}.{parameter} has shape {list(value.shape)}: parameters of 1 to 3 dimensions can be adapted by name."
            )
        return kind(layer, path, parameter, role, index)
    default = BackboneHost if role == "backbone" else ModuleHost
    found = next((kind for fits, kind in _KINDS if fits(layer)), default)
    return found(layer, path, None, role, index)
