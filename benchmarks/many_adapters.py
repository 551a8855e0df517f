"""Save and load many adapters: seconds, bytes, and whether the last is as fast as the first.

    python benchmarks/many_adapters.py [--count 1000] [--json]

Every adapter is written to disk with fsync, checked on loading (bytes, base, keys, finite), run once and detached.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import adaptome as ad


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=1000, help="how many adapters")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=1000,
    )
    model = LlamaForCausalLM(config).eval()
    ids = torch.arange(8)[None]
    save, load, outputs = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for k in range(args.count):
            ad.attach(model, "lora", targets="attention", r=4, seed=k)
            with torch.no_grad():
                for name, parameter in ad.parameters_of(model).items():
                    if name.endswith(".B"):
                        parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(k))
                outputs.append(model(ids).logits[0, -1, :4].clone())
            start = time.perf_counter()
            ad.save(model, Path(folder) / str(k))
            save.append(time.perf_counter() - start)
            ad.detach(model)
        size = sum(f.stat().st_size for f in Path(folder).rglob("*") if f.is_file())
        for k in range(args.count):
            start = time.perf_counter()
            ad.load(model, Path(folder) / str(k))
            load.append(time.perf_counter() - start)
            with torch.no_grad():
                assert torch.equal(model(ids).logits[0, -1, :4], outputs[k]), (
                    f"adapter {k} does not give its outputs"
                )
            ad.detach(model)
    tenth = max(args.count // 10, 1)
    result = {
        "count": args.count,
        "bytes_each": size // args.count,
        "save_seconds": sum(save),
        "load_seconds": sum(load),
        "save_median_ms": 1e3 * statistics.median(save),
        "load_median_ms": 1e3 * statistics.median(load),
        "load_last_over_first_tenth": statistics.median(load[-tenth:]) / statistics.median(load[:tenth]),
    }
    print(
        json.dumps(result)
        if args.json
        else "\n".join(
            f"{k:28} {v:,.3f}" if isinstance(v, float) else f"{k:28} {v:,}" for k, v in result.items()
        )
    )


if __name__ == "__main__":
    main()
