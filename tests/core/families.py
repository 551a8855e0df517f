"""Every family of architectures: a tiny model of it, and its roles as the architecture has them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from torch import nn

transformers = pytest.importorskip("transformers")
diffusers = pytest.importorskip("diffusers")

Parts = dict[str, list[str]]


def attn(at: str, q: str = "q_proj", k: str = "k_proj", v: str = "v_proj", o: str = "o_proj") -> Parts:
    """An attention with a map each for q, k, v and o."""
    return {
        "q": [f"{at}.{q}"],
        "k": [f"{at}.{k}"],
        "v": [f"{at}.{v}"],
        "o": [f"{at}.{o}"],
        "attention-blocks": [at],
    }


def fused(at: str, qkv: str, o: str) -> Parts:
    """An attention with one map for q, k and v."""
    return attn(at, qkv, qkv, qkv, o)


def mlp(at: str, up: str, down: str, gate: str | None = None) -> Parts:
    """An MLP that is a module."""
    parts = {"up": [f"{at}.{up}"], "down": [f"{at}.{down}"], "mlp-blocks": [at]}
    return parts | ({"gate": [f"{at}.{gate}"]} if gate else {})


def pair(up: str, down: str) -> Parts:
    """An MLP written into the block: its last map stands for it."""
    return {"up": [up], "down": [down], "mlp-blocks": [down]}


def experts(at: str) -> Parts:
    """Experts fused into two 3-D parameters."""
    up, down = f"{at}.experts.gate_up_proj", f"{at}.experts.down_proj"
    router = {"mlp-blocks": [at], "experts": [up, down], "router": []}
    return {"gate": [up], "up": [up], "down": [down], **router}


@dataclass
class Family:
    """A model and what it holds: stacks of equal blocks (path, count, parts of one block), and the rest."""

    build: Callable[[], nn.Module]
    stacks: list[tuple]
    norms: int = 0
    embeddings: int = 0
    convs: int = 0
    rest: Parts = field(default_factory=dict)

    def expected(self) -> Parts:
        found: Parts = {"blocks": [], "linear": [], "head": []}
        for path, count, *parts in self.stacks:
            for i in range(count):
                block = path.replace("#", str(i))
                found["blocks"].append(block)
                for part in parts:
                    for role, names in part.items():
                        found.setdefault(role, []).extend(f"{block}.{name}" for name in names)
        for role, paths in self.rest.items():
            found.setdefault(role, []).extend(paths)
        of = lambda *names: [path for name in names for path in found.get(name, [])]  # noqa: E731
        found["qkv"] = of("q", "k", "v")
        found["attention"] = of("qkv", "o")
        found["mlp"] = of("gate", "up", "down", "experts")
        found["all-linear"] = of("attention", "mlp", "linear")
        return {role: sorted(set(paths)) for role, paths in found.items() if paths}


T, D = transformers, diffusers
SIZE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
TEXT = {**SIZE, "vocab_size": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LLM = {**TEXT, "num_key_value_heads": 1}
IMAGE = {**SIZE, "image_size": 16, "patch_size": 8}
PYRAMID = {
    "depths": [1, 2],
    "num_attention_heads": [1, 2],
    "hidden_sizes": [8, 16],
    "mlp_ratios": [2, 2],
    "num_encoder_blocks": 2,
}
SEQ2SEQ = {
    "d_model": 16, "encoder_layers": 2, "decoder_layers": 3, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "vocab_size": 32, "pad_token_id": 0,
}  # fmt: skip
GATED = mlp("mlp", "up_proj", "down_proj", "gate_proj")
FC = mlp("mlp", "fc1", "fc2")
BERT = attn("attention", "self.query", "self.key", "self.value", "output.dense")
INTERMEDIATE = pair("intermediate.dense", "output.dense")
OUT = {"o": "out_proj"}
TO = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0"}
NET = ("net.0.proj", "net.2")
MHA = {"o": "out_proj.weight", "q": "in_proj_weight", "k": "in_proj_weight", "v": "in_proj_weight"}
LM_HEAD = {"head": ["lm_head"]}


def text(name: str, **settings: object) -> Callable[[], nn.Module]:
    """`text("Llama:ForCausalLM")`: the model class of a family with its configuration."""
    family, _, task = name.partition(":")
    return lambda: getattr(T, family + task)(getattr(T, family + "Config")(**settings))


def llama(name: str, norms: int = 7, *parts: Parts, **settings: object) -> Family:
    parts = parts or (attn("self_attn"), GATED)
    build = text(f"{name}:ForCausalLM", **(LLM | settings))
    return Family(build, [("model.layers.#", 3, *parts)], norms, 1, rest=LM_HEAD)


def bert(name: str, root: str, embeddings: int, attention: Parts = BERT, **rest: list[str]) -> Family:
    build = text(f"{name}:ForSequenceClassification", **TEXT)
    rest = {"head": ["classifier"], **rest}
    return Family(build, [(f"{root}.encoder.layer.#", 3, attention, INTERMEDIATE)], 7, embeddings, rest=rest)


def vit(name: str, path: str, *parts: Parts, task: str = "ForImageClassification") -> Family:
    build = text(f"{name}:{task}", **IMAGE)
    rest = {"head": ["classifier"]} if task.startswith("For") else {}
    return Family(build, [(path, 3, *(parts or (attn("attention"), FC)))], 7, 0, 1, rest)


def moe(name: str, **settings: object) -> Family:
    family = llama(name, 7, attn("self_attn"), experts("mlp"), **settings)
    return family


CROSS = [attn("self_attn", **OUT), attn("encoder_attn", **OUT), pair("fc1", "fc2")]
T5 = lambda *last: [  # noqa: E731
    ("encoder.block.#", 2, attn("layer.0.SelfAttention", *"qkvo"), mlp("layer.1.DenseReluDense", *last)),
    ("decoder.block.#", 3, attn("layer.0.SelfAttention", *"qkvo"), attn("layer.1.EncDecAttention", *"qkvo"),
     mlp("layer.2.DenseReluDense", *last)),
]  # fmt: skip
T5_SIZE = {
    "d_model": 16,
    "d_ff": 24,
    "d_kv": 8,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 2,
    "vocab_size": 32,
}
QFORMER = [attn("attention", "attention.query", "attention.key", "attention.value", "output.dense"),
           pair("intermediate_query.dense", "output_query.dense")]  # fmt: skip
QFORMER_CROSS = [f"{'{}'}encoder.layer.{i}.crossattention" for i in (0, 2)]
UNET_BLOCK = [attn("attn1", **TO), attn("attn2", **TO), mlp("ff", *NET, gate=NET[0])]
SAM2_TWO_WAY = [
    attn(name) for name in ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token")
]
GPT = {"n_embd": 16, "n_layer": 3, "n_head": 2, "vocab_size": 32, "bos_token_id": 1, "eos_token_id": 2}
H_TO_4H = mlp("mlp", "dense_h_to_4h", "dense_4h_to_h")


def prefixed(parts: Parts, at: str) -> Parts:
    return {role: [f"{at}{name}" for name in names] for role, names in parts.items()}


def joined(*parts: Parts) -> Parts:
    return {
        role: [name for part in parts for name in part.get(role, [])]
        for role in {r for part in parts for r in part}
    }


def qformer_cross(root: str) -> Parts:
    """Every second layer, from the first on, attends to the image."""
    names = ("attention.query", "attention.key", "attention.value", "output.dense")
    return joined(*(prefixed(attn("crossattention", *names), f"{root}encoder.layer.{i}.") for i in (0, 2)))


def sam2() -> nn.Module:
    backbone = {
        "model_type": "sam2_hiera_det_model", "hidden_size": 8, "num_attention_heads": 1, "blocks_per_stage": [1, 1, 2, 1],
        "embed_dim_per_stage": [8, 16, 32, 64], "num_attention_heads_per_stage": [1, 2, 4, 8],
        "window_size_per_stage": [2, 2, 2, 2], "global_attention_blocks": [2],
    }  # fmt: skip
    vision = {"backbone_config": backbone, "backbone_channel_list": [64, 32, 16, 8], "fpn_hidden_size": 16}
    decoder = {"hidden_size": 16, "mlp_dim": 24, "iou_head_hidden_dim": 16, "attention_downsample_rate": 1}
    prompt = {"hidden_size": 16}
    return T.Sam2Model(
        T.Sam2Config(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)
    )


def unet() -> nn.Module:
    return D.UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=8, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=4,
    )  # fmt: skip


def dit(name: str, **settings: object) -> Callable[[], nn.Module]:
    return lambda: getattr(D, name)(num_attention_heads=2, attention_head_dim=8, **settings)


def time_embedding(at: str) -> list[str]:
    return [f"{at}.linear_1", f"{at}.linear_2"]


UNET_TIME = [f"{at}.time_emb_proj" for at in (
    "down_blocks.0.resnets.0", "down_blocks.1.resnets.0", "mid_block.resnets.0", "mid_block.resnets.1",
    "up_blocks.0.resnets.0", "up_blocks.0.resnets.1", "up_blocks.1.resnets.0", "up_blocks.1.resnets.1",
)]  # fmt: skip
SAM2_HYPER = [
    f"mask_decoder.output_hypernetworks_mlps.{i}.{name}"
    for i in range(4)
    for name in ("proj_in", "proj_out", "layers.0")
]
SAM2_REST = joined(
    prefixed(attn("final_attn_token_to_image"), "mask_decoder.transformer."),
    {
        # where the width changes, at the first block of each later stage
        "linear": [*(f"vision_encoder.backbone.blocks.{i}.proj" for i in (1, 2, 4)), *SAM2_HYPER],
        "head": ["mask_decoder.iou_prediction_head", "mask_decoder.pred_obj_score_head"],
    },
)
TIME_TEXT = [
    *time_embedding("time_text_embed.timestep_embedder"),
    *time_embedding("time_text_embed.text_embedder"),
]

FAMILIES: dict[str, Family] = {
    # decoders
    "llama": llama("Llama"),
    "mistral": llama("Mistral"),
    "qwen2": llama("Qwen2"),
    "qwen3": llama("Qwen3", 4 * 3 + 1, head_dim=8),  # norms on q and k
    "gemma2": llama("Gemma2", 4 * 3 + 1, head_dim=8),
    "gemma3": Family(
        lambda: T.Gemma3ForCausalLM(T.Gemma3TextConfig(**LLM, head_dim=8)),
        [("model.layers.#", 3, attn("self_attn"), GATED)], 6 * 3 + 1, 1, rest=LM_HEAD,
    ),
    "phi3": llama("Phi3", 7, fused("self_attn", "qkv_proj", "o_proj"), mlp("mlp", "gate_up_proj", "down_proj", "gate_up_proj")),
    "gpt2": Family(
        text("GPT2:LMHeadModel", **GPT),
        [("transformer.h.#", 3, fused("attn", "c_attn", "c_proj"), mlp("mlp", "c_fc", "c_proj"))], 7, 2, rest=LM_HEAD,
    ),
    "gpt-j": Family(
        text("GPTJ:ForCausalLM", **GPT, rotary_dim=4),
        [("transformer.h.#", 3, attn("attn", **OUT), mlp("mlp", "fc_in", "fc_out"))], 4, 1, rest=LM_HEAD,
    ),
    "gpt-neo": Family(
        text("GPTNeo:ForCausalLM", hidden_size=16, num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]], vocab_size=32),
        [("transformer.h.#", 2, attn("attn.attention", **OUT) | {"attention-blocks": ["attn"]}, mlp("mlp", "c_fc", "c_proj"))],
        5, 2, rest=LM_HEAD,
    ),
    "gpt-neox": Family(
        text("GPTNeoX:ForCausalLM", **TEXT),
        [("gpt_neox.layers.#", 3, fused("attention", "query_key_value", "dense"), H_TO_4H)], 7, 1, rest=LM_HEAD,
    ),
    "bloom": Family(
        text("Bloom:ForCausalLM", hidden_size=16, n_layer=3, n_head=2, vocab_size=32),
        [("transformer.h.#", 3, fused("self_attention", "query_key_value", "dense"), H_TO_4H)], 8, 1, rest=LM_HEAD,
    ),
    "falcon": Family(
        text("Falcon:ForCausalLM", hidden_size=16, num_hidden_layers=3, num_attention_heads=2, vocab_size=32),
        [("transformer.h.#", 3, fused("self_attention", "query_key_value", "dense"), H_TO_4H)], 4, 1, rest=LM_HEAD,
    ),
    "opt": Family(
        text("OPT:ForCausalLM", hidden_size=16, ffn_dim=24, num_hidden_layers=3, num_attention_heads=2, vocab_size=32, word_embed_proj_dim=8),
        [("model.decoder.layers.#", 3, attn("self_attn", **OUT), pair("fc1", "fc2"))], 7, 2,
        rest={"linear": ["model.decoder.project_in", "model.decoder.project_out"], **LM_HEAD},
    ),
    # mixtures of experts
    "mixtral": moe("Mixtral", num_local_experts=4),
    "qwen3-moe": Family(
        text("Qwen3Moe:ForCausalLM", **LLM, num_experts=4, moe_intermediate_size=8, head_dim=8),
        [("model.layers.#", 3, attn("self_attn"), experts("mlp"))], 13, 1, rest=LM_HEAD,
    ),
    "gpt-oss": Family(
        text("GptOss:ForCausalLM", **LLM, num_local_experts=4, head_dim=8),
        [("model.layers.#", 3, attn("self_attn"), experts("mlp") | {"router": ["mlp.router"]})], 7, 1, rest=LM_HEAD,
    ),
    "qwen2-moe": llama(
        "Qwen2Moe", 7, attn("self_attn"), experts("mlp"), {"router": ["mlp.shared_expert_gate"]},
        mlp("mlp.shared_expert", "up_proj", "down_proj", "gate_proj") | {"mlp-blocks": []},
        num_experts=4, moe_intermediate_size=8, shared_expert_intermediate_size=8,
    ),
    # encoders
    "bert": bert("Bert", "bert", 3, linear=["bert.pooler.dense"]),
    "roberta": bert("Roberta", "roberta", 3),
    "electra": bert("Electra", "electra", 3, linear=["electra.embeddings_project"]),
    "deberta-v2": bert(
        "DebertaV2", "deberta", 2, attn("attention", "self.query_proj", "self.key_proj", "self.value_proj", "output.dense"),
        linear=["pooler.dense"],
    ),
    "deberta": Family(
        text("Deberta:ForMaskedLM", **TEXT),
        [("deberta.encoder.layer.#", 3, fused("attention", "self.in_proj", "output.dense"), INTERMEDIATE)], 7, 2, rest={"head": ["cls"]},
    ),
    "esm": bert("Esm", "esm", 2, head=["classifier", "esm.contact_head"]),
    "mpnet": bert("MPNet", "mpnet", 2, attn("attention.attn", *"qkvo") | {"attention-blocks": ["attention"]}),
    "bert-mlm": Family(
        text("Bert:ForMaskedLM", **TEXT), [("bert.encoder.layer.#", 3, BERT, INTERMEDIATE)], 7, 3, rest={"head": ["cls"]},
    ),
    "distilbert": Family(
        text("DistilBert:ForSequenceClassification", dim=16, hidden_dim=24, n_layers=3, n_heads=2, vocab_size=32),
        [("distilbert.transformer.layer.#", 3, attn("attention", "q_lin", "k_lin", "v_lin", "out_lin"), mlp("ffn", "lin1", "lin2"))],
        7, 2, rest={"head": ["classifier", "pre_classifier"]},
    ),
    "modernbert": Family(  # its first layer has no norm before attention; Wi makes gate and up
        text("ModernBert:ForSequenceClassification", **TEXT, cls_token_id=1, sep_token_id=2),
        [("model.layers.#", 3, fused("attn", "Wqkv", "Wo"), mlp("mlp", "Wi", "Wo", "Wi"))], 7, 1,
        rest={"head": ["head", "classifier"]},
    ),
    "albert": Family(  # one layer, used three times
        text("Albert:ForSequenceClassification", **TEXT, embedding_size=8),
        [("albert.encoder.albert_layer_groups.0.albert_layers.#", 1, attn("attention", "query", "key", "value", "dense"), pair("ffn", "ffn_output"))],
        3, 3, rest={"linear": ["albert.encoder.embedding_hidden_mapping_in", "albert.pooler"], "head": ["classifier"]},
    ),
    # encoder and decoder
    "t5": Family(text("T5:ForConditionalGeneration", **T5_SIZE), T5("wi", "wo"), 2 * 2 + 3 * 3 + 2, 3, rest=LM_HEAD),
    "t5-gated": Family(
        text("T5:ForConditionalGeneration", **T5_SIZE, feed_forward_proj="gated-gelu"), T5("wi_1", "wo", "wi_0"), 15, 3, rest=LM_HEAD,
    ),
    "bart": Family(
        text("Bart:ForConditionalGeneration", **SEQ2SEQ),
        [("model.encoder.layers.#", 2, CROSS[0], CROSS[2]), ("model.decoder.layers.#", 3, *CROSS)], 15, 5, rest=LM_HEAD,
    ),
    "whisper": Family(
        text("Whisper:ForConditionalGeneration", **SEQ2SEQ, bos_token_id=1, eos_token_id=2),
        [("model.encoder.layers.#", 2, CROSS[0], CROSS[2]), ("model.decoder.layers.#", 3, *CROSS)], 15, 3, 2, {"head": ["proj_out"]},
    ),
    # vision
    "vit": vit("ViT", "vit.layers.#"),
    "deit": vit("DeiT", "deit.layers.#"),
    "dinov2": vit("Dinov2", "dinov2.encoder.layer.#"),
    "dinov3": vit("DINOv3ViT", "model.layer.#", attn("attention"), mlp("mlp", "up_proj", "down_proj"), task="Model"),
    "clip": Family(
        lambda: T.CLIPModel(T.CLIPConfig(text_config=TEXT, vision_config=IMAGE, projection_dim=8)),
        [(f"{tower}_model.encoder.layers.#", 3, attn("self_attn", **OUT), FC) for tower in ("text", "vision")],
        15, 3, 1, {"linear": ["visual_projection", "text_projection"]},
    ),
    "siglip": Family(  # the vision tower pools by an nn.MultiheadAttention and an MLP, which are no block of a stack
        lambda: T.SiglipModel(T.SiglipConfig(text_config=TEXT, vision_config=IMAGE)),
        [(f"{tower}_model.encoder.layers.#", 3, attn("self_attn", **OUT), FC) for tower in ("text", "vision")], 15, 3, 1,
        joined({"head": ["text_model.head"]}, prefixed(attn("attention", **MHA), "vision_model.head."), prefixed(FC, "vision_model.head.")),
    ),
    "swin": Family(
        text("Swin:ForImageClassification", image_size=32, patch_size=2, embed_dim=8, depths=[1, 2], num_heads=[1, 2], window_size=2),
        [(f"swin.encoder.layers.{i}.blocks.#", i + 1, attn("attention"), FC) for i in range(2)], 2 * 3 + 3, 0, 1,
        {"linear": ["swin.encoder.layers.0.downsample.reduction"], "head": ["classifier"]},
    ),
    "sam2": Family(
        sam2,
        [
            ("vision_encoder.backbone.blocks.#", 5, fused("attn", "qkv", "proj"), mlp("mlp", "proj_in", "proj_out")),
            ("mask_decoder.transformer.layers.#", 2, *SAM2_TWO_WAY, mlp("mlp", "proj_in", "proj_out")),
        ],
        2 * 5 + 2 + 4 * 2 + 2, 6, 12, SAM2_REST,
    ),
    "segformer": Family(
        text("Segformer:ForSemanticSegmentation", **PYRAMID, sr_ratios=[2, 1], patch_sizes=[7, 3], strides=[4, 2], decoder_hidden_size=16),
        [(f"segformer.stages.{i}.blocks.#", i + 1, attn("attention"), FC) for i in range(2)],
        2 * 3 + 2 * 2 + 1, 0, 3 + 2 + 1, {"head": ["decode_head"]},
    ),
    "pvt": Family(
        text("Pvt:ForImageClassification", **PYRAMID, sequence_reduction_ratios=[2, 1], patch_sizes=[4, 2], strides=[4, 2], image_size=64),
        [(f"pvt.encoder.block.{i}.#", i + 1, BERT, mlp("mlp", "dense1", "dense2")) for i in range(2)],
        2 * 3 + 2 + 1 + 1, 0, 2 + 1, {"head": ["classifier"]},
    ),
    # audio
    "ast": Family(
        text("AST:ForAudioClassification", **SIZE),
        [("audio_spectrogram_transformer.layers.#", 3, attn("attention"), FC)], 7, 0, 1, {"head": ["classifier"]},
    ),
    "wav2vec2": Family(
        text("Wav2Vec2:ForCTC", **TEXT, conv_dim=(8, 8), conv_stride=(2, 2), conv_kernel=(3, 3), num_feat_extract_layers=2,
             num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2),
        [("wav2vec2.encoder.layers.#", 3, attn("attention", **OUT), mlp("feed_forward", "intermediate_dense", "output_dense"))],
        9, 0, 3, {"linear": ["wav2vec2.feature_projection.projection"], **LM_HEAD},
    ),
    # several models in one
    "q-former": Family(
        text("Blip2QFormer:Model", **SIZE, encoder_hidden_size=16, cross_attention_frequency=2),
        [("encoder.layer.#", 3, *QFORMER)], 2 * 3 + 2 + 1, rest=qformer_cross(""),
    ),
    "blip-2": Family(
        lambda: T.Blip2ForConditionalGeneration(T.Blip2Config(
            vision_config=IMAGE, qformer_config={**SIZE, "encoder_hidden_size": 16},
            text_config={"model_type": "opt", "hidden_size": 16, "ffn_dim": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
                         "vocab_size": 32, "word_embed_proj_dim": 16},
        )),
        [
            ("vision_model.encoder.layers.#", 3, fused("self_attn", "qkv", "projection"), FC),
            ("qformer.encoder.layer.#", 3, *QFORMER),
            ("language_model.model.decoder.layers.#", 2, attn("self_attn", **OUT), pair("fc1", "fc2")),
        ],
        7 + 9 + 5, 2, 1, joined(qformer_cross("qformer."), {"linear": ["language_projection"], "head": ["language_model.lm_head"]}),
    ),
    # diffusion
    "unet": Family(
        unet,
        [(f"{at}.transformer_blocks.#", 1, *UNET_BLOCK) for at in (
            "down_blocks.0.attentions.0", "mid_block.attentions.0", "up_blocks.1.attentions.0", "up_blocks.1.attentions.1")],
        4 * (3 + 1) + 8 * 2 + 1, 0, 8 * 2 + 4 * 2 + 5 + 4,
        {"linear": [*time_embedding("time_embedding"), *UNET_TIME]},
    ),
    "dit": Family(  # its norms have no parameters of their own
        dit("DiTTransformer2DModel", num_layers=2, sample_size=8, norm_num_groups=4),
        [("transformer_blocks.#", 2, attn("attn1", **TO), mlp("ff", *NET),
          {"linear": ["norm1.linear", *time_embedding("norm1.emb.timestep_embedder")]})],
        0, 2, 1, {"head": ["proj_out_1", "proj_out_2"]},
    ),
    "sd3": Family(  # the last block makes no further text states
        dit("SD3Transformer2DModel", num_layers=2, sample_size=8, joint_attention_dim=8, caption_projection_dim=16, pooled_projection_dim=8),
        [("transformer_blocks.#", 2, attn("attn", **TO), mlp("ff", *NET), {"linear": ["norm1.linear", "norm1_context.linear"]},
          attn("attn", "add_q_proj", "add_k_proj", "add_v_proj", "to_out.0"))],
        0, 0, 1,
        joined(
            prefixed(mlp("ff_context", *NET), "transformer_blocks.0."), {"o": ["transformer_blocks.0.attn.to_add_out"]},
            {"linear": [*TIME_TEXT, "context_embedder", "norm_out.linear"], "head": ["proj_out"]},
        ),
    ),
    # plain torch
    "torch-encoder": Family(
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 24), 3, enable_nested_tensor=False),
        [("layers.#", 3, attn("self_attn", **MHA), pair("linear1", "linear2"))], 6,
    ),
    "torch-transformer": Family(
        lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(16, 2, 24), 3),
        [("layers.#", 3, attn("self_attn", **MHA), attn("multihead_attn", **MHA), pair("linear1", "linear2"))], 9,
    ),
    "torch-mlp": Family(
        lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)), [], rest={"linear": ["0", "2", "4"]},
    ),
}  # fmt: skip

for moe_family, router in {"mixtral": "gate", "qwen3-moe": "gate", "qwen2-moe": "gate"}.items():
    FAMILIES[moe_family].rest = {
        **FAMILIES[moe_family].rest,
        "router": [f"model.layers.{i}.mlp.{router}" for i in range(3)],
    }
