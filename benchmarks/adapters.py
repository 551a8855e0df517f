"""What handling many adapters costs: attach, save, load, switch, merge and detach of 1 to 1,000, ours beside PEFT's.

    python benchmarks/adapters.py                              # 1, 10, 100, 1000 adapters; minutes
    python benchmarks/adapters.py --counts 1 10 100 --no-peft
    python benchmarks/adapters.py --counts 1 10 --json

All adapters are LoRAs of rank 4 on the attention of a small Llama, and are on the model at once. `attach` puts a new one on, `save` writes
it (ours with fsync and a check sum), `load` reads it back into a model that has the others, `switch` makes another the active one, `merge` adds one to
the weights and takes it off again, `step` is a forward with one active. Each figure is the median over the adapters of that count, in milliseconds;
`last` is that of the last tenth, which is what grows with the number there.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import adaptome as ad

SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 1000,
}
RANK, TARGETS = 4, ["q_proj", "k_proj", "v_proj", "o_proj"]
#: how many of a thousand adapters are switched to, merged and detached
TAKEN = 20


def base() -> nn.Module:
    """The same frozen model every time."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE)).eval().requires_grad_(False)


class Clock:
    """Milliseconds by what was done."""

    def __init__(self) -> None:
        self.times: dict[str, list[float]] = {}

    @contextlib.contextmanager
    def of(self, what: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.times.setdefault(what, []).append(1e3 * (time.perf_counter() - start))

    def rows(self) -> dict[str, dict[str, float]]:
        """Median and that of the last tenth."""
        return {
            what: {"median": statistics.median(all_), "last": statistics.median(all_[-max(len(all_) // 10, 1) :])}
            for what, all_ in self.times.items()
        }  # fmt: skip


def ours(count: int, folder: Path) -> dict[str, dict[str, float]]:
    """Adapters of this library."""
    clock, model, ids = Clock(), base(), torch.arange(8)[None]
    names = [f"a{k}" for k in range(count)]
    for k, name in enumerate(names):
        with clock.of("attach"):
            ad.attach(model, "lora", name, targets="attention", r=RANK, seed=k)
    for name in names:
        with clock.of("save"):
            ad.save(model, folder / name, name)
    some = names[:: max(count // TAKEN, 1)]
    with torch.no_grad():
        for name in some:
            with clock.of("switch"):
                ad.activate(model, [name])
            with clock.of("step"):
                model(ids)
            with clock.of("merge"):
                ad.merge(model, name)
                ad.unmerge(model)
    again = base()
    for name in names:
        with clock.of("load"):
            ad.load(again, folder / name, name)
    for name in some:
        with clock.of("detach"):
            ad.detach(again, name)
    return clock.rows()


def theirs(count: int, folder: Path) -> dict[str, dict[str, float]]:
    """PEFT's."""
    import peft

    clock, ids = Clock(), torch.arange(8)[None]
    names = [f"a{k}" for k in range(count)]

    def config() -> Any:
        return peft.LoraConfig(r=RANK, target_modules=TARGETS, task_type="CAUSAL_LM")

    with clock.of("attach"):
        model = peft.get_peft_model(base(), config(), adapter_name=names[0])
    for name in names[1:]:
        with clock.of("attach"):
            model.add_adapter(name, config())
    for name in names:
        with clock.of("save"):
            model.save_pretrained(str(folder), selected_adapters=[name])
    some = names[:: max(count // TAKEN, 1)]
    with torch.no_grad():
        for name in some:
            with clock.of("switch"):
                model.set_adapter(name)
            with clock.of("step"):
                model(ids)
            with clock.of("merge"):
                model.merge_adapter([name])
                model.unmerge_adapter()
    with clock.of("load"):
        again = peft.PeftModel.from_pretrained(base(), str(folder / names[0]), adapter_name=names[0])
    for name in names[1:]:
        with clock.of("load"):
            again.load_adapter(str(folder / name), name)
    for name in some[:-1]:  # it keeps one
        with clock.of("detach"):
            again.delete_adapter(name)
    return clock.rows()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 10, 100, 1000])
    parser.add_argument("--no-peft", action="store_true")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    args = parser.parse_args()
    libraries: dict[str, Callable[[int, Path], dict[str, dict[str, float]]]] = {"ours": ours}
    if not args.no_peft:
        libraries["peft"] = theirs
    if not args.json:
        print(f"{'ms':8} {'adapters':>8} | {'ours':>9} {'last':>9} | {'PEFT':>9} {'last':>9}")
    for count in args.counts:
        found = {}
        for library, measure in libraries.items():
            with tempfile.TemporaryDirectory() as folder:
                found[library] = measure(count, Path(folder))
        for what in found["ours"]:
            if args.json:
                both = {library: rows.get(what) for library, rows in found.items()}
                print(json.dumps({"what": what, "adapters": count, **both}), flush=True)
            else:
                cells = [_cells(rows.get(what)) for rows in found.values()]
                print(f"{what:8} {count:8} | {' | '.join(cells)}", flush=True)


def _cells(row: dict[str, float] | None) -> str:
    return f"{'-':>9} {'-':>9}" if row is None else f"{row['median']:9.2f} {row['last']:9.2f}"


if __name__ == "__main__":
    main()
