"""The places of the grid: tiny models, one per kind of host, with the target that names it and an input that reaches it.

Sides are unequal and divide by 4, so that a block structure fits and a swapped dimension does not. A model is built once per place and
dtype and copied; everything drawn comes from a fixed seed, so that `fresh` gives the same base every time.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import adaptome as ad
from adaptome.core.errors import AdaptomeError
from adaptome.core.hosts import Host, host_of
from adaptome.core.targets import resolve

#: sizes by convention: a method's setting of this name gets this value in the grid, so that it fits the tiny shapes
SMALL: dict[str, Any] = {
    "r": 4,
    "size": 4,
    "rank": 4,
    "n": 8,
    "alpha": 8.0,
    "dropout": 0.0,
    "a1": 4,
    "a2": 2,
    "tasks": ("depth", "edges"),
    "tailors": 2,
    "active": 2,
    "text": 6,
    "placeholders": 0,
    "bound": 0.5,
    "ids": (1, 3),
}

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class One(nn.Module):
    """One layer, called as its model would call it."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, *args: Tensor) -> Tensor:
        output = self.layer(*args)
        return output[0] if isinstance(output, tuple) else output


class Two(nn.Module):
    """Two linear layers of unequal sides, the second without bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 24), nn.Linear(24, 20, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


class OwnAttention(nn.Module):
    """nn.MultiheadAttention as self-attention."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, x, x, need_weights=False)[0]


class Logits(nn.Module):
    """A causal language model that returns its logits."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(input_ids=ids, use_cache=False).logits


class Features(nn.Module):
    """A vision model that returns its features."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model(pixels).last_hidden_state


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, tie_word_embeddings=False,
    )  # fmt: skip
    return Logits(LlamaForCausalLM(config))


def vit() -> nn.Module:
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=8,
        patch_size=4,
    )
    return Features(ViTModel(config, add_pooling_layer=False))


def mixtral_block() -> nn.Module:
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    config = MixtralConfig(
        hidden_size=16, intermediate_size=12, num_local_experts=3, num_experts_per_tok=2, hidden_act="silu"
    )
    config._experts_implementation = "eager"
    return One(MixtralSparseMoeBlock(config))


class Encoder(nn.Module):
    """A transformer of two blocks that embeds vectors by a convolution, so that its input has the shape of its output."""

    def __init__(self) -> None:
        from transformers import ViTConfig
        from transformers.models.vit.modeling_vit import ViTLayer

        super().__init__()
        config = ViTConfig(hidden_size=16, intermediate_size=24, num_attention_heads=4)
        config._attn_implementation = "sdpa"
        self.embed, self.norm = nn.Conv1d(16, 16, 1), nn.LayerNorm(16)
        self.layers = nn.ModuleList([ViTLayer(config) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.mT).mT
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class Mean(nn.Module):
    """A vision transformer that returns the mean of its tokens, however many they are."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pictures: Tensor) -> Tensor:
        return self.model(pixel_values=pictures).last_hidden_state.mean(1)


def mean_vit() -> nn.Module:
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        image_size=20, patch_size=4, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4
    )  # fmt: skip
    return Mean(ViTModel(config, add_pooling_layer=False))


def gpt_conv1d() -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    return One(Conv1D(24, 16))


def rms_norm() -> nn.Module:
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    return One(LlamaRMSNorm(20))


def floats(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(*shape)


def tokens(high: int, *shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randint(high, shape)


@dataclass(frozen=True)
class Site:
    """A kind of host: how to build a model that has it, what names it there, and an input.

    Attributes:
        build: the model, in float32.
        input: draws one input.
        targets: what `attach` is told.
    """

    name: str
    build: Callable[[], nn.Module]
    input: Callable[[], Tensor]
    targets: tuple[str, ...] = ("layer",)

    def hosts(self) -> list[Host]:
        """The hosts that the targets name in the prototype."""
        model = prototype(self.name, torch.float32)
        return [host_of(m.module, m.path, m.parameter, m.role, m.layer) for m in resolve(model, self.targets)]


CONV2D = functools.partial(nn.Conv2d, 8, 12, (3, 2))
SITES: dict[str, Site] = {
    site.name: site
    for site in (
        Site("linear", Two, floats(2, 5, 16), ("first", "second")),
        Site("Conv1D", gpt_conv1d, floats(2, 5, 16)),
        Site("conv1d", lambda: One(nn.Conv1d(8, 12, 3, stride=2, padding=1)), floats(2, 8, 9)),
        Site("conv2d", lambda: One(CONV2D(padding="same", padding_mode="circular")), floats(2, 8, 6, 5)),
        Site("conv2d-groups", lambda: One(CONV2D(groups=4, dilation=2, bias=False)), floats(2, 8, 7, 6)),
        Site("conv3d", lambda: One(nn.Conv3d(4, 8, 2, padding=1, padding_mode="reflect")), floats(1, 4, 4, 3, 5)),
        Site("embedding", lambda: One(nn.Embedding(24, 16)), tokens(24, 2, 7)),
        Site("LayerNorm", lambda: One(nn.LayerNorm(20)), floats(2, 5, 20)),
        Site("RMSNorm", rms_norm, floats(2, 5, 20)),
        Site("BatchNorm", lambda: One(nn.BatchNorm2d(12)), floats(2, 12, 4, 3)),
        Site("attention", llama, tokens(32, 2, 5), ("attention-blocks",)),
        Site("mlp", llama, tokens(32, 2, 5), ("mlp-blocks",)),
        Site("decoder-layer", llama, tokens(32, 2, 5), ("blocks",)),
        Site("backbone", llama, tokens(32, 2, 5), ("backbones",)),
        Site("encoder-layer", vit, floats(2, 3, 8, 8), ("blocks",)),
        Site("encoder", lambda: One(Encoder()), floats(2, 5, 16), ("backbones",)),
        Site("vit", mean_vit, floats(2, 3, 20, 20), ("backbones", "blocks", "k")),
        Site("experts", mixtral_block, floats(2, 5, 16), ("layer.experts.gate_up_proj", "layer.experts.down_proj")),
        Site("parameter", OwnAttention, floats(2, 5, 16), ("layer.in_proj_weight",)),
    )
}  # fmt: skip


@functools.cache
def prototype(site: str, dtype: torch.dtype) -> nn.Module:
    """The base model; never adapted itself. Everything that usually starts at 0 or 1 is drawn, so that nothing hides behind it."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = SITES[site].build()
        with torch.no_grad():
            for name, value in [*model.named_parameters(), *model.named_buffers()]:
                if name.endswith("running_var"):
                    value.uniform_(0.5, 2)
                elif value.is_floating_point() and "inv_freq" not in name:
                    value.normal_(std=0.3).add_(float(value.dim() == 1 and "bias" not in name))
    return model.to(dtype).eval()


def fresh(site: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A new copy of the base, in eval mode, all of it trainable."""
    return copy.deepcopy(prototype(site, dtype))


@functools.cache
def example(site: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """The input of a place."""
    with torch.random.fork_rng():
        torch.manual_seed(11)
        x = SITES[site].input()
    return x.to(dtype) if x.is_floating_point() else x


def small(method: str) -> ad.Method:
    """The method with sizes that fit the tiny shapes."""
    cls = ad.list_methods()[method]
    names = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    return ad.get_method(method, **{k: v for k, v in SMALL.items() if k in names})


@functools.cache
def admitted(method: str, site: str) -> bool:
    """Whether the method takes every host of the place."""
    chosen, hosts = small(method), SITES[site].hosts()
    if any(chosen.admits(host) is not None for host in hosts):
        return False
    try:
        chosen.shared(hosts)
    except AdaptomeError:  # each host would do, but not these alone
        return False
    return True


@functools.cache
def refused(method: str, site: str) -> bool:
    """Whether the method takes one of the hosts of the place for none of its own."""
    return any(small(method).admits(host) is not None for host in SITES[site].hosts())


def adapted(method: str, site: str, dtype: torch.dtype = torch.float32, *, moved: bool = True) -> nn.Module:
    """A fresh base with the method on it; `moved` draws the trained tensors away from their start, as training would."""
    model = fresh(site, dtype)
    ad.attach(model, small(method), targets=SITES[site].targets, seed=3)
    if moved:
        move(model)
    return model


def move(model: nn.Module, name: str = "default", seed: int = 5, std: float = 0.1) -> None:
    """Add noise to everything an adapter trains."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in ad.parameters_of(model, name).values():
            if parameter.requires_grad:
                parameter.add_(std * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))


def run(model: nn.Module, x: Tensor) -> Tensor:
    """The output without gradient."""
    with torch.no_grad():
        return model(x)


def bits(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the base's state dict, without what adapters added."""
    return {
        k: v.clone()
        for k, v in model.state_dict().items()
        if ".adaptome." not in f".{k}" and "adaptome_shared" not in k
    }


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    """For results that are equal but for the order of rounding."""
    return {"rtol": 1e-4, "atol": 2e-5} if dtype == torch.float32 else {"rtol": 5e-2, "atol": 8e-2}
