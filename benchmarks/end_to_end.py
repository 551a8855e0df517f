"""Supervised fine-tuning end to end: tokens per second and peak memory, ours against PEFT with TRL, at equal loss curves.

    python benchmarks/end_to_end.py                            # packing off and on, some minutes on one core
    python benchmarks/end_to_end.py --rounds 5 --steps 20      # steadier
    python benchmarks/end_to_end.py --clock processor          # on a machine that others load
    python benchmarks/end_to_end.py --vocabulary 128256 --hidden 1024 --layers 4

Both train one Llama with LoRA on every linear layer, on the same examples in the same order with the same starts of A: ours with
`AdaptomeSFTTrainer`, theirs with `SFTTrainer` and a `LoraConfig`; all other settings are TRL's. Every run is a process of its own, and the
two take turns, so that the machine's drift falls on both; ratios are within a round, and their median is printed. Tokens are those of the
batches without padding, seconds those of the steps after the second. Peak memory is the most the process held at once, libraries and
base included; beside it, what it held above what the process had before its first step.

The bound: a frozen base costs 4 operations a token and a weight of its matrix products (2 forward, 2 for the gradient of its input), full
fine-tuning 6. `share of the bound` is 4 N times the padded tokens per second over the rate that one large product reaches here just before.
"""

from __future__ import annotations

import argparse
import datetime
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from typing import Any

CONTENDERS = ("ours", "peft+trl")
#: processor seconds do not count the time in which others have the machine; they are seconds on one thread alone
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
#: the loss of a step may differ by this share: other orders of the same sums
EQUAL = 2e-3


def examples(args: argparse.Namespace) -> list[dict[str, str]]:
    """Prompts and completions of unequal lengths: words by Zipf's law, each drawing its successor from a few."""
    draw = random.Random(0)
    words = args.vocabulary - 3
    weights = [1 / (rank + 10) for rank in range(words)]
    pool = draw.choices(range(words), weights, k=200_000)

    def text(length: int) -> str:
        made = [draw.choice(pool)]
        while len(made) < length:
            made.append(
                pool[(made[-1] * 7 + draw.randrange(4)) % 5000] if draw.random() < 0.8 else draw.choice(pool)
            )
        return " ".join(f"w{word}" for word in made)

    rows = []
    for _ in range(args.examples):
        whole = min(max(int(draw.lognormvariate(5.2, 0.6)), 24), args.length - 2)
        prompt = max(whole // 4, 4)
        rows.append({"prompt": text(prompt) + " ", "completion": text(whole - prompt)})
    return rows


def tokenizer(vocabulary: int) -> Any:
    """A token for each word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    known = {
        token: i
        for i, token in enumerate(["<pad>", "<eos>", "<unk>", *(f"w{i}" for i in range(vocabulary - 3))])
    }
    made = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


def base(args: argparse.Namespace) -> Any:
    """The frozen model."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    heads = args.hidden // 64
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=args.hidden,
            intermediate_size=args.hidden * 11 // 4,
            num_hidden_layers=args.layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            vocab_size=args.vocabulary,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=None,
        )
    )


def start(pairs: list[tuple[Any, Any]]) -> None:
    """The same A and B for both: from one generator, in the order of the layers."""
    import torch

    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for A, B in pairs:
            A.copy_((torch.rand(A.shape, generator=generator) * 2 - 1) / A.shape[-1] ** 0.5)
            B.zero_()


def contender(args: argparse.Namespace, config: Any, rows: Any) -> Any:
    """The trainer, with its model."""
    model, read = base(args), tokenizer(args.vocabulary)
    if args.child == "ours":
        import adaptome as ad
        from adaptome.training import AdaptomeSFTTrainer

        ad.attach(model, "lora", r=16, alpha=32, dropout=args.dropout, targets="all-linear", seed=0)
        start([(m.adaptome["default"].A, m.adaptome["default"].B) for m in model.modules() if hasattr(m, "adaptome")])  # fmt: skip
        return AdaptomeSFTTrainer(model, config, train_dataset=rows, processing_class=read)
    from peft import LoraConfig, get_peft_model
    from trl import SFTTrainer

    peft = LoraConfig(
        r=16, lora_alpha=32, lora_dropout=args.dropout, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    model = get_peft_model(model, peft)
    start([(m.lora_A["default"].weight, m.lora_B["default"].weight) for m in model.modules() if hasattr(m, "lora_A")])  # fmt: skip
    return SFTTrainer(model, config, train_dataset=rows, processing_class=read)


def child(args: argparse.Namespace) -> dict[str, Any]:
    """One contender's run in this process."""
    import datasets
    import torch
    from transformers import TrainerCallback
    from trl import SFTConfig

    from adaptome.training.bound import matmul_rate, operations
    from adaptome.training.memory import process_peak

    torch.set_num_threads(args.threads)
    rate = matmul_rate(seconds=1.5, now=CLOCKS[args.clock])
    ends: list[float] = []
    seen: list[tuple[int, int]] = []

    now = CLOCKS[args.clock]

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            if not ends:
                ends.append(now())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(now())

    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder, max_steps=args.steps, per_device_train_batch_size=args.batch, learning_rate=1e-3,
            max_length=args.length, packing=args.packing, logging_steps=1, save_strategy="no", report_to=[], use_cpu=True,
            bf16=False, gradient_checkpointing=args.gradient_checkpointing, seed=0, disable_tqdm=True, dataloader_pin_memory=False,
        )  # fmt: skip
        least = operations(base(args).requires_grad_(False))
        trainer = contender(args, config, datasets.Dataset.from_list(examples(args)))
        trainer.add_callback(Clock())
        collate = trainer.data_collator

        def counted(batch: Any) -> Any:
            made = collate(batch)
            ids, mask = made["input_ids"], made.get("attention_mask")
            seen.append((ids.numel() if mask is None else int(mask.sum()), ids.numel()))
            return made

        trainer.data_collator = counted
        frozen = sum(weight.numel() * weight.element_size() for weight in trainer.model.parameters())
        before = resident()
        trainer.train()
    warm, seen = min(2, args.steps - 1), seen[: args.steps]
    spent = ends[-1] - ends[warm]
    real, padded = (sum(column[warm:]) for column in zip(*seen, strict=True))
    peak = process_peak() or 0
    return {
        "tokens_per_second": real / spent,
        "share_of_bound": least * padded / spent / rate,
        "peak": peak,
        "above": peak - before,
        "model_bytes": frozen,
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
    }


def resident() -> int:
    """Bytes this process holds now."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def run(contender: str, packing: bool, argv: list[str]) -> dict[str, Any]:
    """A contender's run in a process of its own."""
    command = [sys.executable, __file__, *argv, "--child", contender, *(["--packing"] if packing else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{contender}, packing {packing}:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def difference(ours: list[float], theirs: list[float]) -> float:
    """The largest difference of two loss curves at a step, as a share of the loss."""
    return max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True))


def summary(packing: bool, rounds: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Medians over the rounds, ratios within them."""

    def ratio(key: str) -> float:
        return statistics.median(r["ours"][key] / r["peft+trl"][key] for r in rounds)

    apart = max(difference(r["ours"]["losses"], r["peft+trl"]["losses"]) for r in rounds)
    made: dict[str, Any] = {
        "packing": packing,
        "speed_ratio": ratio("tokens_per_second"),
        "peak_ratio": ratio("peak"),
        "above_ratio": ratio("above"),
        "loss_difference": apart,
        "equal_losses": apart <= EQUAL,
        "first_loss": rounds[0]["ours"]["losses"][0],
        "last_loss": rounds[0]["ours"]["losses"][-1],
    }
    for name in CONTENDERS:
        for key in ("tokens_per_second", "share_of_bound", "peak", "above"):
            made[f"{name}/{key}"] = statistics.median(r[name][key] for r in rounds)
    return made


def text(row: dict[str, Any]) -> str:
    """A setting's three lines."""
    lines = [f"packing {'on' if row['packing'] else 'off'}"]
    for name in CONTENDERS:
        lines.append(
            f"  {name:9} {row[f'{name}/tokens_per_second']:9.1f} tokens/s  {row[f'{name}/share_of_bound']:6.1%} of the bound  "
            f"{row[f'{name}/peak'] / 2**20:7.0f} MiB peak  {row[f'{name}/above'] / 2**20:7.0f} MiB above the start"
        )
    lines.append(
        f"  ours over theirs: {row['speed_ratio']:.2f}x tokens/s (target 1.3), {row['peak_ratio']:.2f}x peak (target 0.7), "
        f"{row['above_ratio']:.2f}x above the start; losses {row['first_loss']:.3f} -> {row['last_loss']:.3f}, "
        f"{'equal' if row['equal_losses'] else 'NOT EQUAL'} (largest difference {row['loss_difference']:.1e})"
    )
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--steps", type=int, default=12, help="of each run; the first two are not timed")
    made.add_argument("--batch", type=int, default=4)
    made.add_argument("--length", type=int, default=512, help="most tokens of an example, or of a packed row")
    made.add_argument("--examples", type=int, default=300)
    made.add_argument("--hidden", type=int, default=512)
    made.add_argument("--layers", type=int, default=8)
    made.add_argument("--vocabulary", type=int, default=32000)
    made.add_argument(
        "--dropout",
        type=float,
        default=0.0,
        help="on the adapters' inputs; the curves then differ by the masks",
    )
    made.add_argument("--gradient-checkpointing", action="store_true")
    made.add_argument("--threads", type=int, default=1)
    made.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="processor: where others load the machine; with one thread",
    )
    made.add_argument("--only", choices=("packed", "padded"), help="one of the two settings")
    made.add_argument("--json", action="store_true", help="one JSON object a setting")
    made.add_argument("--child", choices=CONTENDERS, help=argparse.SUPPRESS)
    made.add_argument("--packing", action="store_true", help=argparse.SUPPRESS)
    return made


def main() -> None:
    args = parser().parse_args()
    if args.child:
        print(json.dumps(child(args)))
        return
    if not args.json:
        versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "trl", "peft"))
        print(
            f"{datetime.date.today()}, CPU, {args.threads} threads, hidden {args.hidden}, {args.layers} layers, vocabulary "
            f"{args.vocabulary}, {args.batch} x {args.length} tokens, {args.steps} steps, {args.rounds} rounds; {versions}"
        )
    for packing in {"packed": (True,), "padded": (False,), None: (False, True)}[args.only]:
        rounds = []
        for number in range(args.rounds):
            order = CONTENDERS if number % 2 == 0 else CONTENDERS[::-1]
            rounds.append({name: run(name, packing, sys.argv[1:]) for name in order})
        row = summary(packing, rounds)
        print(json.dumps(row) if args.json else text(row), flush=True)


if __name__ == "__main__":
    main()
