"""Many adapters: how fast they are saved and loaded, and how fast one batch runs with another on every row.

    python benchmarks/many_adapters.py files [--count 1000] [--json]
    python benchmarks/many_adapters.py rows [--adapters 8] [--rows 8] [--tokens 64] [--rounds 7] [--json]

`files`: every adapter is written to disk with fsync, checked on loading (bytes, base, keys, finite), run once and detached.

`rows`: one forward of a batch whose rows have LoRA adapters in turn, by `ad.per_row`; the same by PEFT's `adapter_names`; the base alone; the adapters
one after another, each with its own rows as a batch. All take turns in every round, and their outputs are compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import adaptome as ad


def llama(hidden: int = 128, layers: int = 4) -> nn.Module:
    """A model of random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=hidden * 11 // 4, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=4,
        vocab_size=1000,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def files(args: argparse.Namespace) -> dict[str, float]:
    """Save and load `args.count` adapters."""
    model = llama()
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
    return {
        "count": args.count,
        "bytes_each": size // args.count,
        "save_seconds": sum(save),
        "load_seconds": sum(load),
        "save_median_ms": 1e3 * statistics.median(save),
        "load_median_ms": 1e3 * statistics.median(load),
        "load_last_over_first_tenth": statistics.median(load[-tenth:]) / statistics.median(load[:tenth]),
    }


def rows(args: argparse.Namespace) -> dict[str, float]:
    """One batch, an adapter for every row: medians in ms, and as multiples of the base alone."""
    from peft import LoraConfig, get_peft_model

    names = [f"a{k}" for k in range(args.adapters)]
    order = [names[i % len(names)] for i in range(args.rows)]
    linear = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    base, own = llama(args.hidden, args.layers), llama(args.hidden, args.layers)
    theirs = get_peft_model(
        llama(args.hidden, args.layers), LoraConfig(r=args.rank, target_modules=linear), names[0]
    )
    for name in names:
        ad.attach(own, "lora", name, targets="all-linear", r=args.rank, alpha=8.0)
        if name != names[0]:
            theirs.add_adapter(name, LoraConfig(r=args.rank, target_modules=linear))
    with torch.no_grad():
        modules = dict(theirs.base_model.model.named_modules())
        for name in names:
            for path, adapter in ad.adapters(own)[name].adapters.items():
                adapter.B.normal_(std=0.05)
                modules[path].lora_A[name].weight.copy_(adapter.A)
                modules[path].lora_B[name].weight.copy_(adapter.B)
    theirs.eval()
    ids = torch.randint(1000, (args.rows, args.tokens))

    def per_row() -> Tensor:
        with ad.per_row(own, order):
            return own(ids, use_cache=False).logits

    def one_by_one() -> Tensor:
        made = torch.empty(args.rows, args.tokens, 1000)
        for name in dict.fromkeys(order):
            mine = [i for i, n in enumerate(order) if n == name]
            ad.activate(own, name)
            made[mine] = own(ids[mine], use_cache=False).logits
        return made

    runs = {
        "base": lambda: base(ids, use_cache=False).logits,
        "per_row": per_row,
        "peft": lambda: theirs(ids, use_cache=False, adapter_names=order).logits,
        "one_by_one": one_by_one,
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    with torch.inference_mode():
        made = {name: run() for name, run in runs.items()}
        for name in ("peft", "one_by_one"):
            torch.testing.assert_close(made["per_row"], made[name], rtol=1e-3, atol=1e-3)
        for _ in range(args.rounds):
            for name, run in runs.items():
                start = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - start)
    median = {name: 1e3 * statistics.median(seconds) for name, seconds in times.items()}
    return {f"{name}_ms": ms for name, ms in median.items()} | {
        f"{name}_over_base": median[name] / median["base"] for name in median if name != "base"
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("files", "rows"))
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--count", type=int, default=1000, help="files: how many adapters")
    for name, default, said in (
        ("adapters", 8, "how many adapters"), ("rows", 8, "rows of the batch"), ("tokens", 64, "of a row"), ("rank", 8, "of an adapter"),
        ("hidden", 512, "width of the model"), ("layers", 4, "of the model"), ("rounds", 7, "in which all take turns"),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default, help=f"rows: {said} [{default}]")
    args = parser.parse_args()
    result = files(args) if args.what == "files" else rows(args)
    lines = (f"{k:28} {v:,.3f}" if isinstance(v, float) else f"{k:28} {v:,}" for k, v in result.items())
    print(json.dumps(result) if args.json else "\n".join(lines))


if __name__ == "__main__":
    main()
