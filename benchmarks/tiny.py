"""A tiny model of any architecture of transformers: its configuration class with every size that has a known name made small."""

from __future__ import annotations

import inspect
import re
from typing import Any

#: what a size is called -> how large it is; the first pattern that fits a whole name decides
SIZES: list[tuple[str, Any]] = [
    (r"(?:\w+_)?vocab(?:ulary)?_size(?:_\w+)?|n_tokens|vocab_size", 128),
    (r"type_vocab_size", 2),
    (r"(?:num|n)_(?:mel_bins|mels)|feature_size|input_feat_per_channel", 16),
    (r"(?:num_)?max_(?:position_embeddings|target_positions|sequence_length|seq_len|2d_position_embeddings)|n_positions|n_ctx|max_seq_len(?:gth)?|seq_length|max_text_len", 64),
    (r"max_source_positions", 16),
    (r"(?:\w+_)?head_dim|d_kv|d_head|kv_channels|attention_head_dim|qkv_dim_per_head", 8),
    (r"v_head_dim|qk_head_dim", 8),
    (r"qk_(?:rope|nope)_head_dim|index_head_dim", 4),
    (r"(?:q|kv|o)_lora_rank|(?:\w+_)?low_rank_dim|lora_rank", 8),
    (r"(?:\w+_)?num_(?:key_value_heads|kv_heads|key_value_groups)|num_query_groups|n_kv_heads|kv_n_heads|attention_kv_heads|decoder_num_key_value_heads", 2),
    (r"(?:\w+_)?(?:num|n)_(?:attention_)?heads?|(?:en|de)coder_attention_heads|num_attention_heads|mamba_n_heads|num_heads|n_head|attention_heads|index_n_heads|linear_num_(?:key|value)_heads|cross_num_attention_heads", 4),
    (r"(?:en|de)coder_(?:num_)?layers|(?:\w+_)?(?:num|n)_(?:hidden_)?layers?|(?:\w+_)?num_(?:encoder|decoder|transformer|block|blocks|stacked)_?(?:layers|blocks)?|n_layers?|depth|encoder_n_layers|num_h(?:idden)?_layers|num_blocks|layers", 2),
    (r"(?:\w+_)?(?:ffn|ff|mlp|feed_?forward|intermediate|inner|ffw)_?(?:dim|size|hidden_size|hidden_dim)(?:_mlp)?|(?:\w+_)?intermediate_size|d_ff|n_inner|dim_feedforward|dff|ff_dim|hidden_dim_ff|ffn_hidden_size", 48),
    (r"moe_(?:intermediate_size|ffn_hidden_size)|shared_expert_intermediate_size", 16),
    (r"(?:num|n)_(?:local_|routed_)?experts|moe_num_experts|num_moe_experts", 4),
    (r"(?:num|n)_shared_experts|moe_num_shared_experts", 1),
    (r"num_experts_per_tok|moe_k|top_k|moe_topk|num_selected_experts|moe_top_k", 2),
    (r"n_group|topk_group|first_k_dense_replace", 1),
    (r"(?:\w+_)?(?:hidden|embed(?:ding)?|model|word_embed_proj|projection|proj|bottleneck|attention_hidden|out_hidden|decoder_hidden|fpn|feature|mask_feature|output|cross_attention|encoder_hidden|text_hidden|vision_hidden|audio_hidden|pooler)_(?:size|dim|hidden_size|hidden_dim)|d_model|n_embd|dim|hidden_size|embed_dim|width|d_embed|n_embed|emb_dim|hidden_channels|encoder_embed_dim|d_inner|out_dim|lru_width|attention_dim|output_hidden_size", 32),
    (r"image_size|input_size|img_size|crop_size", 32),
    (r"(?:\w+_)?patch_size", 8),
    (r"num_labels", 3),
    (r"num_queries|num_query_tokens|num_object_queries|num_latents|num_query", 8),
    (r"(?:mamba_)?(?:d_state|state_size|ssm_state_size|mamba_state_dim)", 4),
    (r"mamba_d_head|mamba_head_dim|linear_(?:key|value)_head_dim", 16),
    (r"mamba_n_groups|n_groups|num_groups", 1),
    (r"(?:mamba_)?chunk_size|block_size|sliding_window|attention_window|local_attention|window_size|lsh_attn_chunk_length|local_attn_chunk_length", 8),
    (r"num_conv_pos_embeddings", 4),
    (r"num_conv_pos_embedding_groups", 2),
    (r"mamba_d_ssm", 64),
    (r"num_frames|frames", 4),
    (r"tubelet_size", 2),
    (r"num_buckets|relative_attention_num_buckets", 8),
]  # fmt: skip
#: what lists of sizes are called -> the size of each member
LISTS: list[tuple[str, Any]] = [
    (r"depths|layers_per_stage|num_blocks|blocks_per_stage|num_layers|layers|encoder_layers_per_stage", 1),
    (r"num_(?:attention_)?heads|heads|num_attention_heads_per_stage|encoder_num_heads", 2),
    (r"(?:neck_)?hidden_sizes|hidden_dims?|embed_dims?|dims|channels|widths|out_channels|encoder_in_channels|stage_dims|conv_dim|tdnn_dim|hidden_channels", 16),
    (r"conv_kernel", 3),
    (r"conv_stride", 2),
]  # fmt: skip
#: special tokens of tiny vocabularies
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "cls_token_id": 1, "sep_token_id": 2, "mask_token_id": 3, "unk_token_id": 3}  # fmt: skip
#: what some model types need besides
MORE: dict[str, dict[str, Any]] = {
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "reformer": {"is_decoder": True, "axial_pos_shape": [8, 8], "axial_pos_embds_dim": [16, 16]},
}


def tiny_settings(cls: type, depth: int = 0) -> dict[str, Any]:
    """Arguments of a configuration class that make its model tiny."""
    default = cls()
    subs = {k: v for k, v in getattr(cls, "sub_configs", {}).items() if inspect.isclass(v)}
    settings: dict[str, Any] = {}
    token = 100
    for name, value in sorted(vars(default).items()):
        inner = type(value) if hasattr(value, "to_diff_dict") else None
        if name in subs or inner is not None:
            sub = inner or subs[name]
            if (
                depth < 3
                and hasattr(sub, "model_type")
                and sub.__name__ not in ("AutoConfig", "PreTrainedConfig")
            ):
                settings[name] = {**tiny_settings(sub, depth + 1), "model_type": sub.model_type}
        elif isinstance(value, bool) or name.startswith("_"):
            continue
        elif name in TOKENS:
            settings[name] = TOKENS[name]
        elif name.endswith(("token_id", "token_index")) and isinstance(value, int) and value > 99:
            settings[name], token = token, token + 1
        elif isinstance(value, int):
            found = size_of(name, SIZES)
            if found is not None and value > found:
                settings[name] = found
        elif isinstance(value, (list, tuple)) and value and all(isinstance(v, int) for v in value):
            found = size_of(name, LISTS)
            if found is not None:
                settings[name] = type(value)([found] * len(value))
            elif size_of(name, SIZES) is not None and name in ("image_size", "patch_size", "input_size"):
                settings[name] = type(value)([size_of(name, SIZES)] * len(value))
    if getattr(default, "is_encoder_decoder", False):
        settings["decoder_start_token_id"] = 1
    return settings | MORE.get(getattr(cls, "model_type", ""), {})


def size_of(name: str, table: list[tuple[str, Any]]) -> Any:
    """The small size for a setting of this name; None for one that is no size."""
    return next((size for pattern, size in table if re.fullmatch(pattern, name)), None)
