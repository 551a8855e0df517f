"""Memory and time of a training step on long traces: logits that are not kept, and a gradient of the head a few rows at a time.

    python benchmarks/long_context.py [--tokens 1024,4096,16384] [--vocabulary 152064] [--width 32]

A Llama of one layer with the vocabulary of Qwen2.5, so that the logits are what counts, takes a step on one trace of so many tokens, with the loss
as training makes it (`deferred`) and on whole logits. Each case is a process of its own; its peak is that above the libraries and the model. Whole logits above
`--whole` tokens are not tried: at 16,384 tokens they alone are 10 GB.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import time


def step(tokens: int, vocabulary: int, width: int, deferred: bool) -> dict[str, float]:
    """Seconds, and MiB above the start, of a step in this process."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    import adaptome as ad
    from adaptome.objectives.deferred import deferred_logits
    from adaptome.training.memory import process_peak

    torch.set_num_threads(1)
    config = LlamaConfig(
        hidden_size=width, intermediate_size=2 * width, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        vocab_size=vocabulary, max_position_embeddings=tokens,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    ad.attach(model, "lora", r=8, targets="all-linear")
    ids = torch.randint(0, vocabulary, (1, tokens), generator=torch.Generator().manual_seed(0))
    began, before = time.perf_counter(), process_peak() or 0
    with deferred_logits(model) if deferred else contextlib.nullcontext():
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
    return {"seconds": time.perf_counter() - began, "mib": ((process_peak() or 0) - before) / 2**20, "loss": loss.item()}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", default="1024,4096,16384")
    parser.add_argument("--vocabulary", type=int, default=152_064)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--whole", type=int, default=1024, help="most tokens that are tried on whole logits")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(step(**json.loads(given.one))))
        return
    print(f"{'tokens':>7} {'loss':>9} {'seconds':>8} {'peak MiB':>9} {'whole logits MiB':>17}")
    for tokens in map(int, given.tokens.split(",")):
        for deferred in (True, *([False] if tokens <= given.whole else [])):
            case = {
                "tokens": tokens,
                "vocabulary": given.vocabulary,
                "width": given.width,
                "deferred": deferred,
            }
            told = subprocess.run([sys.executable, __file__, "--one", json.dumps(case)], check=True, capture_output=True, text=True).stdout  # fmt: skip
            seen = json.loads(told.splitlines()[-1])
            name = "deferred" if deferred else "whole"
            print(f"{tokens:7,} {name:>9} {seen['seconds']:8.1f} {seen['mib']:9,.0f} {tokens * given.vocabulary * 4 / 2**20:17,.0f}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
