"""What a training step costs: every method against the floor and against PEFT's same method.

    python benchmarks/step.py                               # every method, on the CPU
    python benchmarks/step.py lora dora --rounds 15
    python benchmarks/step.py vpt adaptformer --shape vit
    python benchmarks/step.py clip-adapter coop --shape clip
    python benchmarks/step.py --threads 1 2 --keep benchmarks/results
    python benchmarks/step.py lora --give-back              # as a script that does not call keep_freed_memory
    python benchmarks/step.py --shape llama-3.2-1b --device cuda --dtype bfloat16 [--compile]

The floor is the step whose only gradients are those of activations: no adapter, frozen weights. Every round runs floor, ours and PEFT's in
turn, so that the machine's drift falls on all alike; medians are printed as multiples of the floor. Saved bytes are the distinct
storages that autograd keeps for the backward, parameters and buffers left out (on CUDA the peak of allocated memory). `products` is the
method's own arithmetic beside them: the operations of all matrix products, convolutions and attentions in a step, in the same multiples.
Transforms, gathers and elementwise work are not in it. `faults` are page faults of a step of ours: memory that
the C library gave back and took again, which `adaptome.training.keep_freed_memory`, called here and by recipes on a CPU, does without.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import resource
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    CLIPConfig,
    CLIPModel,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)

import adaptome as ad
from adaptome.core.errors import AdaptomeError
from adaptome.training import keep_freed_memory

SHAPES: dict[str, dict[str, Any]] = {
    "small": {"hidden_size": 512, "num_hidden_layers": 8, "intermediate_size": 1408, "num_attention_heads": 8, "num_key_value_heads": 8, "vocab_size": 8000},
    "llama-3.2-1b": {"hidden_size": 2048, "num_hidden_layers": 16, "intermediate_size": 8192, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True},
}  # fmt: skip
VIT = {
    "hidden_size": 384,
    "num_hidden_layers": 8,
    "intermediate_size": 1536,
    "num_attention_heads": 6,
    "num_labels": 100,
}
TOWER = {"num_hidden_layers": 8, "num_attention_heads": 6}
CLIP = {
    "vision_config": {"hidden_size": 384, "intermediate_size": 1536, "patch_size": 16, **TOWER},
    "text_config": {
        "hidden_size": 192,
        "intermediate_size": 768,
        "vocab_size": 8000,
        "bos_token_id": 7998,
        "eos_token_id": 7999,
        **TOWER,
    },
}
#: sentences and their length, or images; of clip images, each with a text
BATCH = {"small": (4, 256), "llama-3.2-1b": (4, 512), "vit": (6,), "clip": (6,)}
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


def base(shape: str, device: str, dtype: torch.dtype) -> nn.Module:
    """The frozen model."""
    torch.manual_seed(0)
    if shape == "vit":
        model: nn.Module = ViTForImageClassification(ViTConfig(**VIT))
    elif shape == "clip":
        model = CLIPModel(CLIPConfig(**CLIP))
    else:
        model = LlamaForCausalLM(LlamaConfig(use_cache=False, **SHAPES[shape]))
    return model.to(device, dtype).train().requires_grad_(False)


def batch(shape: str, device: str, dtype: torch.dtype) -> dict[str, Any]:
    """What the model is called with so that it gives a loss: labels, or CLIP's `return_loss`."""
    size = BATCH[shape]
    if shape in ("vit", "clip"):
        images = torch.randn(*size, 3, 224, 224, device=device, dtype=dtype)
        if shape == "clip":
            ids = torch.randint(CLIP["text_config"]["vocab_size"], (*size, 77), device=device)
            return {"pixel_values": images, "input_ids": ids, "return_loss": True}
        return {"pixel_values": images, "labels": torch.randint(VIT["num_labels"], size, device=device)}
    ids = torch.randint(SHAPES[shape]["vocab_size"], size, device=device)
    return {"input_ids": ids, "labels": ids}


def open_input(model: nn.Module) -> nn.Module:
    """Let gradients reach the embeddings' outputs (of tokens, of patches), as in a model whose lowest layer is adapted."""
    tables = [
        next((m for m in model.modules() if isinstance(m, kind)), None) for kind in (nn.Embedding, nn.Conv2d)
    ]

    def hook(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output.requires_grad_(True) if output.is_leaf and torch.is_grad_enabled() else output

    for table in tables:
        if table is not None:
            table.register_forward_hook(hook)
    return model


def ours(model: nn.Module, chosen: ad.Method) -> nn.Module:
    """Our method on every linear layer, or on its own targets where it has others or does not admit them."""
    everywhere = chosen.default_targets == "all-linear" or (
        chosen.category in ("reparameterisation", "selective")
        and chosen.name not in ("ia3", "norm-tuning", "bitfit")
        and "linear" in chosen.hosts
    )
    ad.attach(model, chosen, targets="all-linear" if everywhere else None, seed=0)
    ad.on_step(model, 0, 1000)  # schedules as in a training loop
    return model


def theirs(model: nn.Module, config: str, settings: dict[str, Any]) -> nn.Module:
    """PEFT's method on the same layers."""
    import peft

    made = getattr(peft, config)(**{"target_modules": ALL_LINEAR, **settings})
    return peft.get_peft_model(model, made)


def step(model: nn.Module, inputs: dict[str, Any]) -> None:
    """Forward and backward; gradients are dropped, the optimiser is not part of it."""
    model(**inputs).loss.backward()
    model.zero_grad(set_to_none=True)


def seconds(model: nn.Module, inputs: dict[str, Any]) -> float:
    """One step's time."""
    cuda = next(model.parameters()).is_cuda
    if cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    step(model, inputs)
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def faults() -> int:
    """Page faults of this process so far that needed no disk."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def products(model: nn.Module, inputs: dict[str, Any]) -> int:
    """Operations of a step's matrix products, convolutions and attentions."""
    in_place = {
        torch.ops.aten.addmm_: lambda y, a, b, out_shape=None, **_: 2 * a[0] * a[1] * b[1]
    }  # it knows addmm alone
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        step(model, inputs)
    return int(counter.get_total_flops())


def kept(model: nn.Module, inputs: dict[str, Any]) -> int:
    """Bytes that a step keeps: distinct saved storages, or on CUDA the peak above what is held before."""
    if next(model.parameters()).is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(model, inputs)
        return torch.cuda.max_memory_allocated() - before
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    sizes: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(**inputs).loss
    loss.backward()
    model.zero_grad(set_to_none=True)
    return sum(sizes.values())


def measure(
    label: str, args: argparse.Namespace, frozen: nn.Module, inputs: dict[str, Any]
) -> dict[str, Any]:
    """One row: ours and PEFT's as multiples of the floor."""
    name, settings, config, peft_settings = CASES.get(label, (label, {}, None, {}))
    method = ad.get_method(name, **settings)
    models = {
        "floor": open_input(copy.deepcopy(frozen)),
        "ours": open_input(ours(copy.deepcopy(frozen), method)),
    }
    if config is not None and not args.no_peft and args.shape not in ("vit", "clip"):
        models["peft"] = open_input(theirs(copy.deepcopy(frozen), config, peft_settings))
    with ad.steer(**method.example_facts()[0]):
        bytes_kept = {key: kept(model, inputs) for key, model in models.items()}
        operations = {key: products(model, inputs) for key, model in models.items() if key != "peft"}
        runs: dict[str, Callable[..., Any]] = {
            k: torch.compile(m) if args.compile else m for k, m in models.items()
        }
        for model in runs.values():
            step(model, inputs)  # type: ignore[arg-type]
        times: dict[str, list[float]] = {key: [] for key in runs}
        faulted: dict[str, list[int]] = {key: [] for key in runs}
        for _ in range(args.rounds):
            for key, model in runs.items():
                before = faults()
                times[key].append(seconds(model, inputs))  # type: ignore[arg-type]
                faulted[key].append(faults() - before)
    floor = times["floor"]
    row: dict[str, Any] = {
        "method": label,
        "floor_ms": 1e3 * statistics.median(floor),
        "floor_mb": bytes_kept["floor"] / 2**20,
        "floor_faults": statistics.median(faulted["floor"]),
        "ours_faults": statistics.median(faulted["ours"]),
        "ours_products": operations["ours"] / operations["floor"],
        "trainable": ad.trainable(models["ours"]).count,
    }
    for key in runs.keys() - {"floor"}:
        row[f"{key}_time"] = statistics.median(t / f for t, f in zip(times[key], floor, strict=True))
        row[f"{key}_bytes"] = bytes_kept[key] / bytes_kept["floor"]
    return row


def text(row: dict[str, Any]) -> str:
    """A row of the table."""
    if "refused" in row:
        return f"{row['method']:20} refused: {row['refused'].splitlines()[0]}"
    theirs = (
        f"{row['peft_time']:8.2f} {row['peft_bytes']:6.2f}" if "peft_time" in row else f"{'-':>8} {'-':>6}"
    )
    return f"{row['method']:20} {row['trainable']:11,} | {row['ours_time']:8.2f} {row['ours_products']:8.2f} {row['ours_bytes']:6.2f} {row['ours_faults']:7,.0f} | {theirs}"


HEAD = f"""{{}}
{"multiples of the floor":20} {"":11} | {"ours":>32} | {"PEFT":>15}
{"method":20} {"trainable":>11} | {"time":>8} {"products":>8} {"kept":>6} {"faults":>7} | {"time":>8} {"kept":>6}"""


def conditions(args: argparse.Namespace) -> str:
    """What the figures below it were measured with."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft"))
    device = (
        torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    )
    how = "compiled" if args.compile else "eager"
    memory = "" if args.device == "cuda" else f", freed memory {'kept' if args.kept else 'given back'}"
    return f"{datetime.date.today()}, {device}, {args.dtype}, {args.shape}, {how}, {args.rounds} rounds{memory}; {versions}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("methods", nargs="*", help="labels or method names; default: every method")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--shape", choices=BATCH, default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--no-peft", action="store_true")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument(
        "--threads", type=int, nargs="+", help="a table for each number of threads; default: torch's own"
    )
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="write each table into a file there too")
    parser.add_argument("--give-back", action="store_true", help="leave the C library's allocator as it is")
    args = parser.parse_args()
    args.kept = args.device != "cuda" and not args.give_back and keep_freed_memory()
    known = ad.list_methods()
    labels = args.methods or [c for c in CASES if CASES[c][0] in known] + [m for m in known if m not in CASES]
    dtype = getattr(torch, args.dtype)
    frozen, inputs = base(args.shape, args.device, dtype), batch(args.shape, args.device, dtype)
    for threads in args.threads or [torch.get_num_threads()]:
        torch.set_num_threads(threads)
        lines = [] if args.json else HEAD.format(conditions(args)).splitlines()
        print("\n".join(lines), flush=True)
        for label in labels:
            try:
                row = measure(label, args, frozen, inputs)
            except AdaptomeError as error:
                row = {"method": label, "refused": str(error)}
            lines.append(json.dumps({**row, "threads": threads}) if args.json else text(row))
            print(lines[-1], flush=True)
        if args.keep:
            kind = args.device if args.device == "cuda" else f"cpu-{args.shape}-{threads}-threads"
            name = f"{datetime.date.today()}-{kind}.txt"
            (args.keep / name).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
