"""QLoRA learns as much on a 4-bit base as LoRA on the whole one, if every linear layer is adapted.

claim      Dettmers et al. 2023, arXiv:2305.14314: LoRA on a base in NF4 reaches what LoRA on the base in full precision does, and the adapters
           have to be on all linear layers, not on queries and values alone
miniature  a tiny Llama of letters (hidden 64, as bitsandbytes' kernels want it), pretrained here on the standard library's docstrings, is stored in
           NF4 with double quantisation and adapted to Python sources (r = 8, 100 steps, the better of two learning rates), tested on modules it has
           not seen. The gain is counted from the base in full precision for all
"""

from __future__ import annotations

import copy

import torch
from _harness import Measure, Table, adapt, descend, main
from _letters import SIZE, TEST, code, held_out, next_letter, prose
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import adaptome as ad

STEPS, RATES, R = 100, (3e-3, 1e-2), 8
BASE, LORA, QLORA, FEW = "full precision", "lora", "qlora", "qlora on q and v"


def pretrained() -> nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=SIZE, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=4, use_cache=False)  # fmt: skip
    model = LlamaForCausalLM(config)
    descend(model, next_letter(prose()), 300, 3e-3, seed=0, adapted=False)
    return model


def measurement() -> Measure:
    """The function that measures a seed; the base is pretrained and quantised once."""
    full = pretrained()
    packed = copy.deepcopy(full)
    ad.quantize(packed, "nf4", double=True)
    loss, score = next_letter(code()), held_out(code(TEST))

    def measure(seed: int, table: Table) -> None:
        table.add(BASE, score(full))
        table.add("nf4, not adapted", score(packed))
        for label, base, targets in ((LORA, full, "all-linear"), (QLORA, packed, "all-linear"), (FEW, packed, ["q", "v"])):  # fmt: skip
            seen = adapt(base, "lora", loss, score, steps=STEPS, rates=RATES, seed=seed, targets=targets, r=R)
            table.add(label, seen.value, seen.parameters)

    return measure


def judge(table: Table) -> dict[str, bool]:
    rows = zip(*(table.values[label] for label in (BASE, LORA, QLORA, FEW)), strict=True)
    shares = [((base - own) / (base - lora), (base - few) / (base - lora)) for base, lora, own, few in rows]
    return {
        f"qlora has 95 % of lora's gain or more in every seed (least seen: {min(own for own, _ in shares):.1%})": all(own >= 0.95 for own, _ in shares),
        f"on q and v alone it has less in every seed (most seen: {max(few for _, few in shares):.1%})": all(few < own for own, few in shares),
    }  # fmt: skip


if __name__ == "__main__":
    main(__doc__, "nats a letter", measurement(), judge)
