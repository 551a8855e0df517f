"""What a training step costs: every method against the floor and against PEFT's same method.

    python benchmarks/step.py                               # every method, on the CPU
    python benchmarks/step.py lora dora --rounds 15
    python benchmarks/step.py --shape llama-3.2-1b --device cuda --dtype bfloat16 [--compile]

The floor is the step whose only gradients are those of activations: no adapter, frozen weights. Every round runs floor, ours and PEFT's in
turn, so that the machine's drift falls on all alike; medians are printed as multiples of the floor. Saved bytes are the distinct
storages that autograd keeps for the backward, parameters and buffers left out (on CUDA the peak of allocated memory).
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import adaptome as ad
from adaptome.core.errors import AdaptomeError

SHAPES: dict[str, dict[str, Any]] = {
    "small": {"hidden_size": 512, "num_hidden_layers": 8, "intermediate_size": 1408, "num_attention_heads": 8, "num_key_value_heads": 8, "vocab_size": 8000},
    "llama-3.2-1b": {"hidden_size": 2048, "num_hidden_layers": 16, "intermediate_size": 8192, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True},
}  # fmt: skip
BATCH = {"small": (4, 256), "llama-3.2-1b": (4, 512)}
#: settings under which a method and PEFT's are the same, by label; PEFT's class name and its settings last
CASES: dict[str, tuple[str, dict[str, Any], str | None, dict[str, Any]]] = {
    "lora": ("lora", {"r": 16}, "LoraConfig", {"r": 16}),
    "lora dropout": ("lora", {"r": 16, "dropout": 0.1}, "LoraConfig", {"r": 16, "lora_dropout": 0.1}),
    "dora": ("dora", {"r": 16}, "LoraConfig", {"r": 16, "use_dora": True}),
    "randlora": ("randlora", {"r": 16}, "RandLoraConfig", {"r": 16}),
    "vera": ("vera", {"r": 256}, "VeraConfig", {"r": 256}),
    "loha": ("loha", {"r": 8}, "LoHaConfig", {"r": 8}),
    "lokr": ("lokr", {"r": 8}, "LoKrConfig", {"r": 8}),
    "adalora": ("adalora", {}, "AdaLoraConfig", {"init_r": 12, "total_step": 1000}),
    "oft": ("oft", {}, "OFTConfig", {"oft_block_size": 32, "r": 0}),
    "boft": ("boft", {}, "BOFTConfig", {"boft_block_size": 4}),
    "fourierft": ("fourierft", {}, "FourierFTConfig", {"n_frequency": 1000}),
    "ia3": ("ia3", {}, "IA3Config", {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]}),
    "norm-tuning": ("norm-tuning", {}, "LNTuningConfig", {"target_modules": ["input_layernorm", "post_attention_layernorm", "norm"]}),
}  # fmt: skip
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def base(shape: str, device: str, dtype: torch.dtype) -> LlamaForCausalLM:
    """The frozen model; its embedding's output asks for a gradient, so that the floor has a backward."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(use_cache=False, **SHAPES[shape])).to(device, dtype).train()
    return model.requires_grad_(False)


def open_input(model: nn.Module) -> nn.Module:
    """Let gradients reach the embedding's output, as in a model whose lowest layer is adapted."""
    table = next(m for m in model.modules() if isinstance(m, nn.Embedding))
    table.register_forward_hook(
        lambda module, inputs, output: output.requires_grad_(True) if output.is_leaf else output
    )
    return model


def ours(model: LlamaForCausalLM, method: str, settings: dict[str, Any]) -> nn.Module:
    """Our method on every linear layer, or on its own targets where it does not admit them."""
    chosen = ad.get_method(method, **settings)
    targets = None if method in ("ia3", "norm-tuning") or "linear" not in chosen.hosts else "all-linear"
    ad.attach(model, chosen, targets=targets, seed=0)
    ad.on_step(model, 0, 1000)  # schedules as in a training loop
    return model


def theirs(model: LlamaForCausalLM, config: str, settings: dict[str, Any]) -> nn.Module:
    """PEFT's method on the same layers."""
    import peft

    made = getattr(peft, config)(**{"target_modules": ALL_LINEAR, **settings})
    return peft.get_peft_model(model, made)


def step(model: nn.Module, ids: torch.Tensor) -> None:
    """Forward and backward; gradients are dropped, the optimiser is not part of it."""
    model(input_ids=ids, labels=ids).loss.backward()
    model.zero_grad(set_to_none=True)


def seconds(model: nn.Module, ids: torch.Tensor) -> float:
    """One step's time."""
    if ids.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    step(model, ids)
    if ids.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def kept(model: nn.Module, ids: torch.Tensor) -> int:
    """Bytes that a step keeps: distinct saved storages, or on CUDA the peak above what is held before."""
    if ids.is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(model, ids)
        return torch.cuda.max_memory_allocated() - before
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    sizes: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    model.zero_grad(set_to_none=True)
    return sum(sizes.values())


def measure(
    label: str, args: argparse.Namespace, frozen: LlamaForCausalLM, ids: torch.Tensor
) -> dict[str, Any]:
    """One row: ours and PEFT's as multiples of the floor."""
    method, settings, config, peft_settings = CASES.get(label, (label, {}, None, {}))
    models = {
        "floor": open_input(copy.deepcopy(frozen)),
        "ours": open_input(ours(copy.deepcopy(frozen), method, settings)),
    }
    if config is not None and not args.no_peft:
        models["peft"] = open_input(theirs(copy.deepcopy(frozen), config, peft_settings))
    bytes_kept = {key: kept(model, ids) for key, model in models.items()}
    runs: dict[str, Callable[..., Any]] = {
        k: torch.compile(m) if args.compile else m for k, m in models.items()
    }
    for model in runs.values():
        step(model, ids)  # type: ignore[arg-type]
    times: dict[str, list[float]] = {key: [] for key in runs}
    for _ in range(args.rounds):
        for key, model in runs.items():
            times[key].append(seconds(model, ids))  # type: ignore[arg-type]
    floor = times["floor"]
    row: dict[str, Any] = {
        "method": label,
        "floor_ms": 1e3 * statistics.median(floor),
        "floor_mb": bytes_kept["floor"] / 2**20,
    }
    for key in runs.keys() - {"floor"}:
        row[f"{key}_time"] = statistics.median(t / f for t, f in zip(times[key], floor, strict=True))
        row[f"{key}_bytes"] = bytes_kept[key] / bytes_kept["floor"]
    row["trainable"] = ad.trainable(models["ours"]).count
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("methods", nargs="*", help="labels or method names; default: every method")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--no-peft", action="store_true")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    args = parser.parse_args()
    known = ad.list_methods()
    labels = args.methods or [c for c in CASES if CASES[c][0] in known] + [m for m in known if m not in CASES]
    frozen = base(args.shape, args.device, getattr(torch, args.dtype))
    ids = torch.randint(
        SHAPES[args.shape]["vocab_size"], BATCH[args.shape], device=args.device, generator=None
    )
    if not args.json:
        print(
            f"{'method':16} {'trainable':>11} | {'ours: time':>10} {'kept':>6} | {'PEFT: time':>10} {'kept':>6}   (multiples of the floor)"
        )
    for label in labels:
        try:
            row = measure(label, args, frozen, ids)
        except AdaptomeError as error:
            print(
                json.dumps({"method": label, "refused": str(error)})
                if args.json
                else f"{label:16} refused: {str(error).splitlines()[0]}",
                flush=True,
            )
            continue
        if args.json:
            print(json.dumps(row), flush=True)
            continue
        peft_part = (
            f"{row['peft_time']:10.2f} {row['peft_bytes']:6.2f}"
            if "peft_time" in row
            else f"{'-':>10} {'-':>6}"
        )
        print(
            f"{label:16} {row['trainable']:11,} | {row['ours_time']:10.2f} {row['ours_bytes']:6.2f} | {peft_part}",
            flush=True,
        )


if __name__ == "__main__":
    main()
