"""What few bits cost: error, size and speed over bits, schemes and methods, on a language model that is pretrained here.

    python benchmarks/quant.py                       # everything: some minutes on one core
    python benchmarks/quant.py --steps 0             # bases alone, without adapting them
    python benchmarks/quant.py --only 'gptq*' --hidden 256 --pretrain 2000

A Llama of letters is trained on half of the standard library's docstrings; perplexity (a letter) is on docstrings it has not seen. Every base
is then adapted to Python sources by each method that admits it, with equal steps and learning rates, and scored on modules it has not seen. QWHA and
CLoQ begin from what the base lacks, the others from their own starts.

    size       bytes of the weights' file, and of the tensors that the model holds
    step time  forward and backward of a LoRA step, over the 16-bit base's: medians of rounds that run all bases in turn
    bits       of a quantised weight, scales and tables counted
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import adaptome as ad
from adaptome.core.errors import AdaptomeError

sys.path.insert(0, str(Path(__file__).parent / "claims"))
from _letters import LENGTH, SIZE, TEST, code, held_out, next_letter, prose

#: the base that times are told over
FLOOR = "bf16"
#: label -> scheme and settings; None is the base itself
BASES: dict[str, tuple[str, dict[str, Any]] | None] = {
    "full": None,
    FLOOR: ("bfloat16", {}),
    "nf4": ("nf4", {}),
    **{f"uniform-{b}": ("uniform", {"bits": b}) for b in (4, 3, 2)},
    **{f"gptq-{b}": ("gptq", {"bits": b}) for b in (4, 3, 2)},
    **{f"gptq+magr-{b}": ("gptq", {"bits": b, "magr": True}) for b in (3, 2)},
    **{f"sketch-{b}": ("sketch", {"bits": b}) for b in (4, 3, 2)},
}
RATES = (3e-3, 1e-2)


def pretrained(hidden: int, blocks: int, steps: int) -> nn.Module:
    """The base: a Llama whose widths divide by 64."""
    from _harness import descend
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=SIZE, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=blocks, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=LENGTH, use_cache=False, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    text = prose()
    descend(model, next_letter(text[: len(text) // 2]), steps, 3e-3, seed=0, adapted=False)
    return model.eval()


def calibration() -> list[dict[str, torch.Tensor]]:
    """Pieces of what the base was trained on, never of what it is scored on."""
    text = prose()
    text = text[: len(text) // 2]
    first = torch.randint(len(text) - LENGTH, (128, 1), generator=torch.Generator().manual_seed(7))
    return [{"input_ids": rows} for rows in text[first + torch.arange(LENGTH)].split(32)]


def held(model: nn.Module) -> int:
    """Bytes of every tensor that the model holds, shared storages once."""
    tensors: list[torch.Tensor] = [*model.parameters(), *model.buffers()]
    for module in model.modules():  # bitsandbytes keeps its statistics beside the parameter
        state: Any = getattr(module._parameters.get("weight"), "quant_state", None)
        tensors += [] if state is None else [v for v in state.as_dict().values() if torch.is_tensor(v)]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def on_disk(model: Any) -> int:
    """Bytes of the weights' file."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return sum(f.stat().st_size for f in Path(folder).glob("*.safetensors"))


def methods(full: nn.Module, batches: list[Any]) -> dict[str, Callable[[nn.Module, int], int]]:
    """Label -> what attaches a method, given the model and a seed, and tells how many numbers train."""
    return {
        "lora r=4": lambda m, s: ad.attach(m, "lora", r=4, seed=s).trainable,
        "paca r=8": lambda m, s: ad.attach(m, "paca", r=8, seed=s).trainable,
        "dora r=4": lambda m, s: ad.attach(m, "dora", r=4, seed=s).trainable,
        "cloq r=4": lambda m, s: ad.cloq(m, full, batches, ad.LoRA(r=4), seed=s).plan.trainable,
        "qwha r=4": lambda m, s: ad.qwha(m, full, ad.QWHA(r=4), batches=batches, seed=s).plan.trainable,
        "sketchtune": lambda m, s: ad.attach(m, "sketchtune", seed=s).trainable,
        "l4q r=4, 4 bits": lambda m, s: ad.attach(m, "l4q", r=4, group=64, bits=4, seed=s).trainable,
        "l4q r=4, 3 bits": lambda m, s: ad.attach(m, "l4q", r=4, group=64, bits=3, seed=s).trainable,
    }


def step_times(models: dict[str, nn.Module], rounds: int) -> dict[str, float]:
    """Median over rounds of a LoRA step's time over the 16-bit base's in the same round."""
    tokens = torch.randint(SIZE, (16, LENGTH), generator=torch.Generator().manual_seed(3))
    steps = {}
    for label, model in models.items():
        steps[label] = copy.deepcopy(model).train()
        ad.attach(steps[label], "lora", r=4)
    seen: dict[str, list[float]] = {label: [] for label in steps}
    for round_ in range(rounds + 1):
        for label, model in steps.items():
            begin = time.perf_counter()
            model(input_ids=tokens, labels=tokens).loss.backward()
            if round_:  # the first warms up
                seen[label].append(time.perf_counter() - begin)
    floor = seen[FLOOR]
    return {k: statistics.median(a / b for a, b in zip(v, floor, strict=True)) for k, v in seen.items()}


def adapted(base: nn.Module, attach: Callable[[nn.Module, int], int], steps: int) -> dict[str, Any]:
    """Perplexity on sources after adapting, at the better rate, and what was trained."""
    from _harness import descend

    loss, score = next_letter(code()), held_out(code(TEST))
    found = []
    for rate in RATES:
        model = copy.deepcopy(base)
        count = attach(model, 0)
        before = score(model)
        descend(model, loss, steps, rate, seed=0)
        found.append((score(model), before, count))
    after, before, count = min(found)
    return {"trainable": count, "before": math.exp(before), "after": math.exp(after)}


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each base, with its methods."""
    full, batches = pretrained(args.hidden, args.blocks, args.pretrain), calibration()
    text = prose()
    score = held_out(text[len(text) // 2 :])
    labels = [
        b for b in BASES if b in ("full", FLOOR) or any(fnmatch.fnmatch(b, pattern) for pattern in args.only)
    ]
    models: dict[str, nn.Module] = {}
    rows = []
    for label in labels:
        model, chosen, bits, seconds = copy.deepcopy(full), BASES[label], 32.0, 0.0
        if label == FLOOR:
            model, bits = model.bfloat16(), 16.0
        elif chosen is not None:
            scheme, settings = chosen
            data = None if scheme in ("nf4", "uniform") else batches
            try:
                report = ad.quantize(model, scheme, batches=data, **settings)
            except AdaptomeError as error:
                print(f"{label}: {error}", file=sys.stderr)
                continue
            bits = 8 * report.after / sum(x.shape[0] * x.shape[1] for x in report.layers)
            seconds = sum(x.seconds for x in report.layers)
        models[label] = model
        rows.append({"base": label, "bits": bits, "seconds": seconds, "perplexity": math.exp(score(model)),
                     "ram": held(model), "disk": on_disk(model), "methods": {}})  # fmt: skip
    times = step_times(models, args.rounds)
    for row in rows:
        row["step"] = times[row["base"]]
        for label, attach in methods(full, batches).items() if args.steps else ():
            try:
                row["methods"][label] = adapted(models[row["base"]], attach, args.steps)
            except AdaptomeError:  # the method does not admit this base
                continue
    return rows


def text_of(rows: list[dict[str, Any]]) -> str:
    """The two tables."""
    lines = [
        f"{'base':13} {'bits':>6} {'perplexity':>10} {'RAM kB':>8} {'disk kB':>8} {'step':>6} {'seconds':>8}"
    ]
    for r in rows:
        lines.append(
            f"{r['base']:13} {r['bits']:6.2f} {r['perplexity']:10.3f} {r['ram'] / 1e3:8.0f} {r['disk'] / 1e3:8.0f} {r['step']:6.2f} {r['seconds']:8.2f}"
        )
    lines += ["", f"{'base':13} {'method':16} {'trained':>9} {'before':>8} {'after':>8}"]
    for r in rows:
        lines += [
            f"{r['base']:13} {label:16} {m['trainable']:9,} {m['before']:8.3f} {m['after']:8.3f}"
            for label, m in r["methods"].items()
        ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Print the tables, or JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only",
        nargs="*",
        default=["*"],
        help="patterns of bases; the two that are not quantised always run",
    )
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--pretrain", type=int, default=600, help="steps of pretraining")
    parser.add_argument("--steps", type=int, default=60, help="steps of adapting; 0 for none")
    parser.add_argument("--rounds", type=int, default=5, help="of timing")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    rows = measure(args)
    print(json.dumps(rows, indent=1) if args.json else text_of(rows))


if __name__ == "__main__":
    main()
