"""A tensor's key: the layer's name in the file, and what the tensor is there."""

from __future__ import annotations

import re

from torch import Tensor

from adaptome.core.errors import KeyMismatchError

#: ending of a key -> what the tensor is
_ENDINGS = {
    **{f".{form}.weight": role for role, forms in {
        "down": ("lora_A", "lora_A.default", "lora_down", "lora.down", "lora_layer.down", "lora_linear_layer.down"),
        "up": ("lora_B", "lora_B.default", "lora_up", "lora.up", "lora_layer.up", "lora_linear_layer.up"),
        "mid": ("lora_mid",), "magnitude": ("lora_magnitude_vector",),
    }.items() for form in forms},
    ".lora_magnitude_vector": "magnitude", ".alpha": "alpha", ".lora.alpha": "alpha", ".dora_scale": "dora_scale",
    **{f".{name}": name for name in (
        "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2", "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2",
        "lokr_w2_a", "lokr_w2_b", "lokr_t1", "lokr_t2", "on_input", "w_norm", "b_norm", "diff", "diff_b",
    )},
    **{f".{name}.weight": name for name in ("a1", "a2", "b1", "b2")}, ".weight": "weight",
}  # fmt: skip
#: tensors that LyCORIS and trainers write, and that are not read here
_REFUSED = {
    ".oft_blocks": "diag-oft and boft, which turn a layer's outputs; `oft` and `boft` turn its inputs", ".oft_diag": "diag-oft",
    ".bm.weight": "glora with a kernel apart", ".lora_B.bias": "a trained bias beside LoRA", ".lora_up.bias": "a trained bias beside LoRA",
    ".scalar": "a trained scale (LyCORIS bakes it in when it saves)",
}  # fmt: skip
_ORDERED = sorted(_ENDINGS, key=len, reverse=True)
#: of before diffusers had LoRA on the layers themselves: processors of an attention, and its text encoders
_PROCESSOR = re.compile(
    r"(?P<attention>.+?)(?P<old>\.processor)?\.(?P<side>to_q|to_k|to_v|to_out|add_k_proj|add_v_proj)_lora\.(?P<role>down|up)\.weight"
)
_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


def split(tensors: dict[str, Tensor], source: str) -> dict[str, dict[str, Tensor]]:
    """The tensors by the layer's name and what they are there.

    Raises:
        KeyMismatchError: a key that is of no known form, or of one that is not read.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, role = split_key(key, source)
        if not value.numel():
            raise KeyMismatchError(f"{source}: the tensor {key!r} is empty.\n  Nothing was loaded.")
        if role in found.setdefault(name, {}):
            raise KeyMismatchError(f"{source}: {name} has more than one {role}.\n  Nothing was loaded.")
        found[name][role] = value
    return found


def split_key(key: str, source: str) -> tuple[str, str]:
    """'unet.x.to_q.lora_A.weight' -> ('unet.x.to_q', 'down')."""
    old = _PROCESSOR.fullmatch(key)
    if old is not None:
        text = old["old"] is None and "self_attn" in old["attention"]
        side = _TEXT[old["side"]] if text else old["side"] if old["side"] != "to_out" else "to_out.0"
        return f"{old['attention']}.{side}", old["role"]
    refused = next((why for ending, why in _REFUSED.items() if key.endswith(ending)), None)
    if refused is not None:
        raise KeyMismatchError(f"{source}: {key!r} is of {refused}; it is not read.\n  Nothing was loaded.")
    ending = next((e for e in _ORDERED if key.endswith(e)), None)
    if ending is None:
        raise KeyMismatchError(
            f"{source}: the tensor {key!r} is of no form that is read (LoRA, DoRA, LoHa, LoKr, IA3, GLoRA, norms, whole modules).\n  Nothing was loaded."
        )
    return key.removesuffix(ending), _ENDINGS[ending]


def dialect(keys: list[str]) -> str | None:
    """'lycoris', 'kohya' or 'diffusers' by the forms of a file's keys; None for a file of none of them."""
    roles = []
    for key in keys:
        try:
            roles.append(split_key(key, ""))
        except KeyMismatchError:
            continue
    kinds = {role for _, role in roles}
    if any(
        role.startswith(("hada_", "lokr_")) or role in ("a1", "on_input", "w_norm", "diff") for role in kinds
    ):
        return "lycoris"
    if kinds & {"down", "up"}:
        return "kohya" if any(".lora_down." in key or ".lora_up." in key for key in keys) else "diffusers"
    return None
