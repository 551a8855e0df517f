"""What PEFT's types and LyCORIS' algorithms are here: the method and its settings, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

#: the releases that the tables were compared with
PEFT, LYCORIS = "0.21", "4.1"


@dataclass(frozen=True)
class Equivalent:
    """One type of another library.

    Attributes:
        type: its name there.
        method: the method here; None for none.
        settings: our settings, each with the other library's that it stands for, or with the value it takes.
        note: what differs, how else to have it, or the reason why there is none.
    """

    type: str
    method: str | None
    settings: Mapping[str, str] = field(default_factory=dict)
    note: str = ""


_LORA = {"r": "r", "alpha": "lora_alpha", "dropout": "lora_dropout"}
_SOFT = {"p": "num_virtual_tokens"}

#: PEFT's `PeftType`, one entry each
PEFT_TYPES: tuple[Equivalent, ...] = (
    Equivalent("ADALORA", "adalora", {"r": "target_r", "init_r": "init_r", "alpha": "lora_alpha", "dropout": "lora_dropout"}, "schedule: start, settled and interval are tinit and tfinal as shares of the steps, and deltaT"),
    Equivalent("ADAMSS", None, {}, "cuts each weight's output space into clusters by k-means of its singular vectors, so that what an adapter file means hangs on a clustering; `gralora` has low-rank updates of row blocks, `adalora` a budget that moves"),
    Equivalent("ADAPTION_PROMPT", "llama-adapter", {"p": "adapter_len"}, "adapter_layers: name them with layers="),
    Equivalent("BEFT", "ssf", {"scale": "False"}, "targets='v', as the paper advises: a shift of the layer's output, which becomes its bias"),
    Equivalent("BOFT", "boft", {"size": "boft_block_size", "factors": "boft_n_butterfly_factor", "scale": "True", "dropout": "boft_dropout"}, "boft_block_num is in / size"),
    Equivalent("C3A", "c3a", {"size": "block_size"}),
    Equivalent("CARTRIDGE", "prefix-tuning", {"p": "num_virtual_tokens"}, "`ad.prompt_from` sets keys and values to what the model computes for a text; all of them train, num_frozen_tokens is 0"),
    Equivalent("CPT", None, {}, "its prompt is `prompt-tuning` with `ad.prompt_from`; its loss reads labels at the places of the prompt, which outputs here do not have"),
    Equivalent("DEFT", "deft", {"r": "r", "projection": "decomposition_method", "fill": "not para", "scale": "alpha / r", "dropout": "deft_dropout"}),
    Equivalent("DELORA", "delora", {"r": "r", "strength": "delora_lambda", "dropout": "module_dropout"}),
    Equivalent("FOURIERFT", "fourierft", {"n": "n_frequency", "alpha": "scaling", "position_seed": "random_loc_seed"}),
    Equivalent("FROD", None, {}, "keeps a full [in, in] basis per kind of layer and an [out, in] matrix per layer beside the base, more than the layers themselves; `osf` and `clip-svd` train in a weight's own bases, `sparse-delta` sparsely"),
    Equivalent("GLORA", "glora", {"r": "r", "A": "config_A_B", "B": "config_A_B", "C": "config_C", "D": "config_D_E", "E": "config_D_E"}),
    Equivalent("GRALORA", "gralora", {"r": "r", "k": "gralora_k", "hybrid_r": "hybrid_r", "alpha": "alpha", "dropout": "gralora_dropout"}),
    Equivalent("HIRA", "hira", {"r": "r"}, "without hira_dropout"),
    Equivalent("HRA", "hra", {"r": "r", "gram_schmidt": "apply_GS"}),
    Equivalent("IA3", "ia3", {}, "feedforward_modules: side='input'; side='auto' finds them by their role"),
    Equivalent("LILY", "lily", {"r": "r", "stride": "stride_A", "experts": "num_B", "scale": "scaling", "mean": "'batch'"}, "by default an output does not hang on the others in its batch"),
    Equivalent("LN_TUNING", "norm-tuning"),
    Equivalent("LOHA", "loha", {"r": "r", "alpha": "alpha"}),
    Equivalent("LOKR", "lokr", {"r": "r", "alpha": "alpha", "factor": "decompose_factor", "decompose_both": "decompose_both"}),
    Equivalent("LORA", "lora", {**_LORA, "rslora": "use_rslora", "init": "init_lora_weights"}, "use_dora: `dora`; init_lora_weights 'eva', 'corda', 'loftq': `ad.eva`, `ad.corda`, `ad.loftq`"),
    Equivalent("MISS", "miss", {"r": "r", "form": "init_weights", "rows": "mini_r", "dropout": "miss_dropout"}, "formerly BONE"),
    Equivalent("MULTITASK_PROMPT_TUNING", "multitask-prompt", {**_SOFT, "r": "num_ranks"}, "tasks by name, not by number: num_tasks is their count"),
    Equivalent("OFT", "oft", {"size": "oft_block_size", "series": "num_cayley_neumann_terms - 2", "dropout": "module_dropout", "coft": "coft", "eps": "eps"}),
    Equivalent("OSF", "osf", {"rank": "effective_rank"}, "the projection stands in the forward, not on the gradients"),
    Equivalent("PEANUT", "peanut", {"r": "r", "depth": "depth", "scale": "scaling", "activation": "act_fn"}),
    Equivalent("POLY", "poly", {"r": "r", "skills": "n_skills", "splits": "n_splits"}, "tasks by name, not by number: n_tasks is their count"),
    Equivalent("PREFIX_TUNING", "prefix-tuning", {**_SOFT, "hidden": "encoder_hidden_size", "positions": "'after'"}, "hidden is 0 without prefix_projection"),
    Equivalent("PROMPT_TUNING", "prompt-tuning", _SOFT, "prompt_tuning_init_text: `ad.prompt_from`"),
    Equivalent("PSOFT", "psoft", {"r": "r", "stretch": "psoft_mag_a and psoft_mag_b", "dropout": "psoft_dropout"}, "psoft_alpha cancels; by an exact SVD and an exact Cayley transform"),
    Equivalent("PVERA", "pvera", {"r": "r", "d_initial": "d_initial", "sample": "sample_at_inference", "dropout": "pvera_dropout", "projection_seed": "projection_prng_key"}, "random factors are drawn otherwise"),
    Equivalent("P_TUNING", "p-tuning", {**_SOFT, "encoder": "encoder_reparameterization_type", "hidden": "encoder_hidden_size"}),
    Equivalent("RANDLORA", "randlora", {"r": "r", "alpha": "randlora_alpha", "dropout": "randlora_dropout", "projection_seed": "projection_prng_key"}, "sparse, very_sparse: bases"),
    Equivalent("ROAD", "road", {"variant": "variant", "size": "group_size"}, "variant: 1, 2 or 4"),
    Equivalent("SHADOW", None, {}, "a second model that runs beside the base and reads the states of its blocks: no adapter of a layer; `lst` is a side network here"),
    Equivalent("SHIRA", "shira", {"r": "r", "mask": "mask_type"}, "other masks: set `index` of the adapters, or `fish-mask`"),
    Equivalent("SUPERTUNING", "sparse-delta", {"selection": "'largest' if select_top else 'smallest'"}, "n: (1 - sparsity) of a weight's entries; with r: attach `lora` on the same layers beside it"),
    Equivalent("TINYLORA", "tinylora", {"r": "r", "n": "u", "tie": "weight_tying", "dropout": "tinylora_dropout"}, "P is drawn otherwise"),
    Equivalent("TRAINABLE_TOKENS", "trainable-tokens", {"ids": "token_indices"}, "what is stored is the change of the rows"),
    Equivalent("UNILORA", "uni-lora", {"r": "r", "n": "theta_d_length", "bound": "init_theta_d_bound", "dropout": "unilora_dropout", "projection_seed": "proj_seed"}, "P is drawn otherwise"),
    Equivalent("VBLORA", "vb-lora", {"r": "r", "bank": "num_vectors", "size": "vector_length", "top_k": "topk", "bound": "init_vector_bank_bound", "std": "init_logits_std", "dropout": "vblora_dropout"}),
    Equivalent("VERA", "vera", {"r": "r", "d_initial": "d_initial", "dropout": "vera_dropout", "projection_seed": "projection_prng_key"}),
    Equivalent("WAVEFT", "waveft", {"n": "n_frequency", "alpha": "scaling", "position_seed": "random_loc_seed"}, "wavelet_family 'db1' to 'db8': moments; use_idwt=False: `sparse-delta`"),
    Equivalent("XLORA", None, {}, "weighs adapters by a classifier over the last hidden states of a first pass, so that every call runs the model twice; `moe-lora` has experts and a router in each layer, `adapter-fusion` a mixture of trained bottlenecks"),
)  # fmt: skip

#: LyCORIS' algorithms, by the name that `algo` takes
LYCORIS_ALGORITHMS: tuple[Equivalent, ...] = (
    Equivalent("boft", "boft", {"scale": "rescaled"}, "rotations of the inputs, there of the outputs; without constraint"),
    Equivalent("diag-oft", "oft", {}, "rotations of the inputs, there of the outputs; without constraint and rescaled"),
    Equivalent("dylora", "dylora", {"r": "dim", "alpha": "alpha", "unit": "block_size"}),
    Equivalent("full", "linear-probe", {}, "train='a pattern of layers' trains them whole, beside any other method too"),
    Equivalent("glora", "glora", {"r": "dim", "A": "'lora'", "B": "'lora'", "C": "'none'", "D": "'none'", "E": "'none'", "product": "'matrix'"}, "the update is scaled by alpha / dim there"),
    Equivalent("ia3", "ia3", {}, "train_on_input: side='input'"),
    Equivalent("locon", "lora", {"r": "dim", "alpha": "alpha", "dropout": "dropout", "rslora": "rs_lora"}, "convolutions are hosts as any; dora_wd: `dora`; without use_tucker"),
    Equivalent("loha", "loha", {"r": "dim", "alpha": "alpha"}, "without use_tucker"),
    Equivalent("lokr", "lokr", {"r": "dim", "alpha": "alpha", "factor": "factor", "decompose_both": "decompose_both"}, "without use_tucker"),
    Equivalent("lora", "lora", {"r": "dim", "alpha": "alpha", "dropout": "dropout", "rslora": "rs_lora"}, "as locon"),
    Equivalent("norms", "norm-tuning", {}, "train_norm"),
    Equivalent("tlora", "t-lora", {"r": "dim", "scale": "alpha / dim"}, "sig_type 'principal' is which='first'; use_data_init: start='weight'; `ad.steer(timestep=t)` for its mask; on convolutions over all taps"),
)  # fmt: skip

LIBRARIES: Mapping[str, tuple[Equivalent, ...]] = {"peft": PEFT_TYPES, "lycoris": LYCORIS_ALGORITHMS}
