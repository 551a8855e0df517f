"""PEFT's prompt learning, both ways: one tensor `prompt_embeddings`, prompts `[p, d]` or a prefix's keys and values `[p, layers 2 heads width]`.

PEFT stores what a network has made of a prompt, and not the network. Its models return the prompts' places too, before those of the tokens.
In a prefix it counts the tokens' positions from p. Ours does with positions='after', which a folder is read as; a prefix whose tokens are
counted from 0 is written too where positions are rotations: its keys are turned by p.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from adaptome.core.adapter import Adapter
from adaptome.core.errors import FormatError, KeyMismatchError, MergeError
from adaptome.core.state import Attachment, root_of
from adaptome.forms.positions import pairs as own_pairs

KEY = "prompt_embeddings"
#: method -> PEFT's type
PROMPTS = {"prompt-tuning": "PROMPT_TUNING", "p-tuning": "P_TUNING", "prefix-tuning": "PREFIX_TUNING"}
#: settings that say how a prompt began, how it was made, or what PEFT can see of the model
KNOWN = frozenset({
    "encoder_dropout", "encoder_hidden_size", "encoder_num_layers", "encoder_reparameterization_type", "init_weights", "num_attention_heads",
    "num_layers", "num_transformer_submodules", "num_virtual_tokens", "prefix_projection", "prompt_tuning_init", "prompt_tuning_init_text",
    "prompt_tuning_init_state_dict_path", "token_dim", "tokenizer_kwargs", "tokenizer_name_or_path",
})  # fmt: skip


# -- writing -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def prompt_form(
    root: nn.Module, attachment: Attachment, task_type: str | None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and settings of a prompt or prefix.

    Raises:
        MergeError: PEFT has no task type for it, puts its prompts elsewhere, or has prefixes of other layers.
    """
    adapters: dict[str, Any] = attachment.adapters
    if task_type is None:
        raise MergeError(
            "PEFT puts a prompt on a model by its task: pass task_type='CAUSAL_LM', 'SEQ_CLS', 'TOKEN_CLS' or 'FEATURE_EXTRACTION'."
        )
    if getattr(getattr(root, "config", None), "is_encoder_decoder", False):
        raise MergeError(
            f"{type(root).__name__} reads with an encoder and writes with a decoder: PEFT has other prompts for it.\n  Save it with ad.save."
        )
    if any(a.strength != 1.0 for a in adapters.values()):
        raise MergeError("PEFT has no prompt with a weight; ad.activate it with weight 1.")
    if attachment.method.name == "prefix-tuning":
        method: Any = attachment.method
        value, count = _prefix(root, adapters, turn=method.positions == "own")
    else:
        [adapter] = adapters.values()
        if adapter.first:
            raise MergeError(
                "PEFT puts prompts before all tokens, this one stands after the first: attach it with place='front'."
            )
        value, count = adapter.prompts().detach().float().cpu().clone(), adapter.p
    config = {
        "peft_type": PROMPTS[attachment.method.name], "num_virtual_tokens": count, "num_transformer_submodules": 1, "num_layers": None,
        "num_attention_heads": None, "token_dim": None,
    }  # fmt: skip
    return {KEY: value.contiguous()}, config


def _prefix(root: nn.Module, adapters: Mapping[str, Any], turn: bool) -> tuple[Tensor, int]:
    ordered = _by_layer(root, adapters)
    p = ordered[0].p
    pairs = []
    for adapter in ordered:
        K, V = adapter.values()
        K = K.detach().float()
        pairs += [turned(root, adapter, K, p) if turn else K, V.detach().float()]
    stacked = torch.stack(pairs, 0)  # [2 layers, heads, p, width]
    return stacked.permute(2, 0, 1, 3).flatten(1).cpu(), p


def _by_layer(root: nn.Module, adapters: Mapping[str, Adapter]) -> list[Any]:
    layers = getattr(getattr(root, "config", None), "num_hidden_layers", None)
    ordered = sorted(own_pairs(adapters), key=lambda a: -1 if a.host.index is None else a.host.index)
    if [a.host.index for a in ordered] != list(range(layers or 0)):
        raise MergeError(
            f"PEFT has a prefix in every one of the {layers} layers, and this one is in {[a.host.index for a in ordered]}."
        )
    return ordered


# -- reading -------------------------------------------------------------------------------------------------------


def read_prompt(
    model: nn.Module, config: dict[str, Any], tensors: dict[str, Tensor], folder: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """How to attach what a folder holds; a P-tuned prompt is stored as it was made, and read as a plain one."""
    value = tensors.get(KEY)
    if value is None or value.dim() != 2:
        raise KeyMismatchError(f"{folder} holds no {KEY} [p, width].")
    prefix = config["peft_type"] == "PREFIX_TUNING"
    names = list(config.get("modules_to_save") or [])
    heads = {k.removeprefix("base_model."): v for k, v in tensors.items() if k != KEY}
    stray = [k for k in heads if not set(k.split(".")) & set(names)]
    if stray:
        raise KeyMismatchError(f"{folder}: the tensor {stray[0]!r} is none that its configuration explains.")
    if getattr(getattr(root_of(model), "config", None), "is_encoder_decoder", False):
        raise FormatError(
            f"{folder}: PEFT's prompts of models with an encoder and a decoder are not read here."
        )
    if config.get("num_virtual_tokens") != value.shape[0]:
        raise KeyMismatchError(
            f"{folder}: num_virtual_tokens is {config.get('num_virtual_tokens')}, and {KEY} has {value.shape[0]} rows."
        )
    how: dict[str, Any] = {
        "method": "prefix-tuning" if prefix else "prompt-tuning", "p": value.shape[0],
        "train": sorted({f"={k.rpartition('.')[0]}" for k in heads}),
    }  # fmt: skip
    if prefix:
        how |= {"positions": "after"}
    else:
        how |= {"place": "front", "init": "normal"}
    return how, heads


def fill_prompt(model: nn.Module, attachment: Attachment, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an attached prompt or prefix, by our keys."""
    value, adapters = tensors[KEY], attachment.adapters
    if attachment.method.name == "prompt-tuning":
        if len(adapters) != 1:
            raise FormatError(
                f"this {type(model).__name__} has {len(adapters)} backbones for one prompt: {', '.join(adapters)}."
            )
        return {f"{path}.P": value for path in adapters}
    root = root_of(model)
    try:
        ordered = _by_layer(root, adapters)
    except MergeError as error:
        raise FormatError(str(error)) from error
    p, (heads, _, width) = value.shape[0], ordered[0].K.shape
    if value.shape[1] != 2 * len(ordered) * heads * width:
        raise KeyMismatchError(
            f"{KEY} has {value.shape[1]} columns; {len(ordered)} layers of {heads} heads of width {width} need {2 * len(ordered) * heads * width}."
        )
    pairs = value.view(p, 2 * len(ordered), heads, width).permute(1, 2, 0, 3)
    found: dict[str, Tensor] = {}
    for layer, adapter in enumerate(ordered):
        found[f"{adapter.host.name}.K"] = pairs[2 * layer].float()
        found[f"{adapter.host.name}.V"] = pairs[2 * layer + 1].float()
    return found


def turned(root: nn.Module, adapter: Adapter, K: Tensor, by: int) -> Tensor:
    """Keys `[heads, p, width]` turned by so many positions, as the model turns a token's.

    Raises:
        FormatError: positions are no rotations, or depend on the layer.
    """
    rotary = next((m for n, m in root.named_modules() if n.rpartition(".")[2] == "rotary_emb"), None)
    layer = adapter.host.layer
    rotate = getattr(sys.modules[type(layer).__module__], "apply_rotary_pos_emb", None)
    if rotary is None or rotate is None or hasattr(rotary, "layer_types"):
        raise FormatError(
            f"{type(root).__name__}: PEFT counts the tokens' positions from the prefix's length, ours from 0, and only where all layers turn keys by position is the one made of the other."
        )
    position = torch.full((1, K.shape[1]), by, device=K.device)
    cos, sin = rotary(K[None, :1].float(), position)
    scaling = float(getattr(rotary, "attention_scaling", 1.0))
    result: Tensor = rotate(K[None].float(), K[None].float(), cos.float() / scaling, sin.float() / scaling)[
        1
    ][0]
    return result
