"""The roles a module can have, and the names that tell them: the one table to extend for a new architecture.

Names decide only within a structure found by `anatomy.py`: `dense` is an attention's output map inside an attention
module and nothing in particular outside one. All patterns are matched against whole names or whole dotted suffixes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

ROLES: dict[str, str] = {
    "attention": "every linear map of the attentions: q, k, v, o, or the fused ones",
    "q": "the query maps; where q, k, v are fused, the fused map",
    "k": "the key maps; where fused, the fused map",
    "v": "the value maps; where fused, the fused map",
    "qkv": "the maps that make queries, keys and values, fused or not",
    "o": "the attentions' output maps",
    "mlp": "every linear map of the MLPs in the blocks, their experts included",
    "gate": "the gates of gated MLPs; where gate and up are fused, the fused map",
    "up": "the MLPs' first maps (up_proj, fc1, c_fc, intermediate.dense)",
    "down": "the MLPs' last maps (down_proj, fc2, output.dense)",
    "experts": "the experts' maps: fused 3-D parameters, or the linear layers of each expert",
    "router": "the maps that choose the experts",
    "linear": "linear maps in neither attention nor MLP (poolers, projections, time embeddings)",
    "all-linear": "attention, mlp and linear: every linear map but the head and the routers",
    "norms": "normalisation layers that have parameters",
    "biases": "linear maps, convolutions and norms that have a bias",
    "embeddings": "embedding tables: tokens, positions, types",
    "convs": "convolutions",
    "blocks": "whole transformer blocks; in models without attention or MLPs, the repeated blocks",
    "attention-blocks": "the attention modules",
    "mlp-blocks": "the MLP modules; where an MLP is no module of its own, its last map",
    "backbones": "the transformers themselves: what embeds the input and runs the blocks; an encoder and a decoder each",
    "head": "the output heads: lm_head, classifier and the like",
}

# Role of a match -> the published roles that select it.
GROUPS: dict[str, tuple[str, ...]] = {
    "q": ("q", "qkv", "attention", "all-linear"),
    "k": ("k", "qkv", "attention", "all-linear"),
    "v": ("v", "qkv", "attention", "all-linear"),
    "kv": ("k", "v", "qkv", "attention", "all-linear"),
    "qkv": ("q", "k", "v", "qkv", "attention", "all-linear"),
    "o": ("o", "attention", "all-linear"),
    "attention": ("attention", "all-linear"),  # in an attention whose names are not understood
    "gate": ("gate", "mlp", "all-linear"),
    "up": ("up", "mlp", "all-linear"),
    "gate-up": ("gate", "up", "mlp", "all-linear"),
    "down": ("down", "mlp", "all-linear"),
    "mlp": ("mlp", "all-linear"),  # a middle map
    "router": ("router",),
    "linear": ("linear", "all-linear"),
    "norm": ("norms",),
    "embedding": ("embeddings",),
    "conv": ("convs",),
    "block": ("blocks",),
    "attention-block": ("attention-blocks",),
    "mlp-block": ("mlp-blocks",),
    "head": ("head",),
    "backbone": ("backbones",),
    "other": (),
}

# Role -> the parts of a model that it is in, in the words of surveys.
PARTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("attention", "q", "k", "v", "qkv", "o", "attention-blocks"), ("attention",)),
    **dict.fromkeys(("mlp", "gate", "up", "down", "experts", "router", "mlp-blocks"), ("MLP",)),
    "all-linear": ("attention", "MLP"),
    "biases": ("attention", "MLP", "norm"),
    "norms": ("norm",),
    "embeddings": ("embedding",),
    "blocks": ("block",),
    "backbones": ("input",),
    "head": ("output",),
}

# Parts of an attention, by the last name of their path.
_ATTENTION = {
    "q": r"q|query|(?:[a-z]+_)?q(?:uery)?_proj|q_lin|q_linear|q_head|q_attn|q_[ab]_proj|to_q|w_?q|linear_q|"
    r"query_global|projection_query|query_layer",
    "k": r"k|key|(?:[a-z]+_)?k(?:ey)?_proj|k_lin|k_linear|k_head|to_k|w_?k|linear_k|key_global|projection_key|key_layer",
    "v": r"v|value|(?:[a-z]+_)?v(?:alue)?_proj|v_lin|v_linear|v_head|to_v|w_?v|linear_v|value_global|projection_value|"
    r"value_layer",
    "kv": r"kv|kv_proj|to_kv|w_?kv|kv_a_proj_with_mqa|kv_a_proj|kv_b_proj|key_value",
    "qkv": r"qkv|qkv_proj|c_attn|query_key_value|w_?qkv|to_qkv|to_added_qkv|in_proj_qkvz?|qkv_layer|attn_qkv|"
    r"qkv_linear|in_proj_weight",
}
# The output map, by its path below the attention module.
_ATTENTION_OUT = (
    r"(?:[a-z]+_)?o_proj|out_proj|o|out|out_lin|out_linear|(?:to_out|out|proj)\.0|to_out|to_add_out|(?:[a-z]+\.)*dense|"
    r"proj|projection|c_proj|w_?o|output|output_proj|output_projection|attn_out|linear_out|post_proj|proj_out|fc_out"
)
# Parts of an MLP, by the last name of their path.
_MLP = {
    "gate-up": r"gate_up(?:_proj)?|input_linear|w13|gate_and_up_proj",
    "gate": r"gate_proj|gate|wi_0|w1|w_gate|gate_fc|fc_gate|linear_gate|fc1_g",
    "up": r"up_proj|up|wi_1|w3|fc1|c_fc|fc_in|wi|lin_?1|linear_?1|proj_in|dense_h_to_4h|dense_?1|intermediate_dense|"
    r"w_in|weights_in|w12|v1|fc1_x",
    "down": r"down_proj|down|wo|w2|fc2|c_proj|fc_out|lin_?2|linear_?2|proj_out|dense_4h_to_h|dense_?2|output_dense|"
    r"w_out|weights_out|output_linear",
}
# MLPs written straight into a block: the paths of the first and the last map below it.
MLP_PAIRS: tuple[tuple[str, str], ...] = (
    ("fc1", "fc2"),
    ("linear1", "linear2"),
    ("intermediate.dense", "output.dense"),
    ("intermediate_query.dense", "output_query.dense"),
    ("ffn", "ffn_output"),
    ("proj_mlp", "proj_out"),
    ("pwconv1", "pwconv2"),
    ("lin1", "lin2"),
)


class Name:
    """A pattern of whole names, compiled when first asked for: importing all of them costs more than most models need."""

    def __init__(self, pattern: str, any_case: bool = True):
        self.pattern, self.flags = pattern, re.IGNORECASE if any_case else 0

    def fullmatch(self, name: str) -> re.Match[str] | None:
        """The match of the whole name, or None."""
        return re.fullmatch(self.pattern, name, self.flags)


def _table(patterns: Mapping[str, str]) -> dict[str, Name]:
    return {part: Name(pattern) for part, pattern in patterns.items()}


ATTENTION_PARTS = _table(_ATTENTION)
ATTENTION_OUT = Name(_ATTENTION_OUT)
MLP_PARTS = _table(_MLP)
ATTENTION_NAME = Name(r"\w*att(?:n|ention)(?:\d+|_\w+)?")
MLP_NAME = Name(r"(?:\w+_)?(?:mlp|ffn|ff|feed_?forward|moe)(?:_\w+|\d+)?|DenseReluDense|shared_experts?")
MLP_CLASS = Name(
    r"\w*(?:MLP|Mlp|FFN|FeedForward|ActDense)\w*|\w*(?:MoE|SparseMoe)(?:Block|Layer)?", any_case=False
)
EXPERTS = Name(r"\w*experts?")
# Tables of positions and their biases by name, convolutions over positions by path (diffusers calls its patch embedding `pos_embed`).
POSITIONS = Name(r"\w*(?:pos|bias)\w*|.*\bpos_conv\w*(?:\.\w+)?")
ROUTER_CLASS = Name(r"\w*(?:Router|TopKGat(?:e|ing))\w*", any_case=False)
# Names of output heads, where they stand outside every stack of blocks.
HEAD_NAME = Name(
    r"(?:\w+_)?heads?|(?:\w+_)?classifiers?|score|qa_outputs|cls|embed_out|proj_out(?:_\d)?|fc|output|"
    r"(?:generator|discriminator)_predictions|vocab_(?:transform|layer_norm|projector)|(?:\w+_)?predictor|"
    r"logits_proj|output_projection",
)


@cache
def attention_part(name: str) -> str | None:
    """'q', 'k', 'v', 'kv' or 'qkv' for the name of a map that is one of them."""
    return _part(name, ATTENTION_PARTS)


@cache
def mlp_part(name: str) -> str | None:
    """'gate', 'up', 'gate-up' or 'down' for the name of a map that is one of them."""
    return _part(name, MLP_PARTS)


def _part(name: str, table: Mapping[str, Name]) -> str | None:
    return next((part for part, pattern in table.items() if pattern.fullmatch(name)), None)


@cache
def has_name(pattern: Name, name: str) -> bool:
    """Whether the whole name fits; remembered, as a model repeats a few names thousands of times."""
    return pattern.fullmatch(name) is not None


def guess_role(name: str) -> str | None:
    """The role that a layer's name has in most models ('q_proj' -> 'q'), to advise who wrote another model's name."""
    part = attention_part(name) or mlp_part(name) or ("o" if ATTENTION_OUT.fullmatch(name) else None)
    if part is None:
        whole = {"attention-blocks": ATTENTION_NAME, "mlp-blocks": MLP_NAME, "head": HEAD_NAME}
        return next((role for role, pattern in whole.items() if pattern.fullmatch(name)), None)
    return GROUPS[part][0]


# The same as sets, one object for each role.
SELECTS: dict[str, frozenset[str]] = {role: frozenset(groups) for role, groups in GROUPS.items()}
