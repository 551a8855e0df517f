"""Which method works on which architecture: tiny models of every AutoModelFor* class of transformers, adapted, trained, merged, detached.

    python benchmarks/architectures.py                 all of them, into results/architectures.json (a quarter of an hour on two cores)
    python benchmarks/architectures.py --shard 0/8     every eighth from the first on; what others found stays in the file
    python benchmarks/architectures.py --again         those with a fault in the file, or not in it
    python benchmarks/architectures.py --only Mamba2   classes whose name holds this, printed and not written

Of every model type one class takes every method of METHODS, the other classes LoRA. On each, with default targets: the adapted model starts as
the base; a gradient reaches every adapter whose layer runs; after noise on the adapters, merging changes nothing in the model's own output;
after detaching, weights and output are the base's, bit for bit. A layer that neither is called nor known to be read, and whose weight moves the
output all the same, is a fault. The page "Architectures" of the documentation is made from the file.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError as HFError
from tiny import tiny_settings
from torch import Tensor, nn

import adaptome as ad
from adaptome.core.errors import AdaptomeError, HostError, MethodError, TargetError
from adaptome.core.files import write_atomic
from adaptome.core.targets import resolve
from adaptome.core.whole import REFUSALS, difference, outputs_of, probe_of

RESULTS = Path(__file__).parent / "results" / "architectures.json"
#: one or two of every mechanism, with sizes that fit 32 dimensions
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"r": 4},
    "dora": {"r": 4},
    "ia3": {},
    "ssf": {},
    "bitfit": {},
    "norm-tuning": {},
    "paca": {"r": 4},
    "houlsby": {"size": 4},
    "prefix-tuning": {},
    "prompt-tuning": {},
}
#: models with more numbers than this are not tiny: a size with an unknown name was left as it is
LARGEST = 20_000_000
#: largest relative difference of two outputs that are to be equal but for rounding
EQUAL = 2e-3


@dataclass
class Probe:
    """Inputs, what the base puts out for them, and by identity the modules that they run and those that they train."""

    inputs: dict[str, Any]
    base: list[Tensor]
    ran: set[int]
    trained: set[int]

    def runs(self, host: ad.Host) -> bool:
        """Whether the layer, or something in it, is run or read."""
        return host.read or any(id(module) in self.ran for module in host.layer.modules())

    def trains(self, host: ad.Host) -> bool:
        """Whether a gradient reaches something in the layer, or the layer has nothing of its own to tell it by."""
        owners = [m for m in host.layer.modules() if any(p is not None for p in m._parameters.values())]
        return not owners or any(id(module) in self.trained for module in owners)


def classes() -> dict[str, tuple[str, list[str]]]:
    """Model class -> its model type and the AutoModelFor* classes that make it, in transformers' order."""
    from transformers.models.auto import modeling_auto

    found: dict[str, tuple[str, list[str]]] = {}
    for name, auto in sorted(vars(modeling_auto).items()):
        if not name.startswith("AutoModelFor"):
            continue
        for config, model in auto._model_mapping._model_mapping.items() if auto._model_mapping else ():
            for one in [model] if isinstance(model, str) else model:
                found.setdefault(one, (config, []))[1].append(name)
    return found


def first_of_type(known: dict[str, tuple[str, list[str]]]) -> set[str]:
    """One class of every model type: the first."""
    return {
        name
        for name, (kind, _) in known.items()
        if next(n for n, (k, _) in known.items() if k == kind) == name
    }


def build(name: str) -> nn.Module:
    """A tiny model of a class, the same at every call.

    Raises:
        REFUSALS: its configuration, or the class itself, does not take the small sizes.
    """
    import transformers

    cls = getattr(transformers, name)
    config = cls.config_class(**tiny_settings(cls.config_class))
    with torch.device("meta"):
        count = sum(p.numel() for p in cls(config).parameters())
    if count > LARGEST:
        raise ValueError(f"it still has {count:,} parameters")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = cls(config).eval()
        with torch.no_grad():  # nothing hides behind a start at zero
            for parameter in model.parameters():
                if parameter.is_floating_point() and not parameter.any():
                    parameter.normal_(std=0.05)
    return model


@contextmanager
def called(model: nn.Module) -> Iterator[set[int]]:
    """The modules that are called in the block, by identity."""
    seen: set[int] = set()
    handles = [
        module.register_forward_pre_hook(lambda module, args: seen.add(id(module)))
        for module in model.modules()
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def examine(name: str, methods: list[str]) -> dict[str, str]:
    """What each method does on a class: 'works', with a remark, 'refused: why' or 'fault: what'; {'': why} where the base does not run."""
    try:
        model = build(name)
        inputs = probe_of(model)
        if inputs is None:
            return {"": f"no inputs are known for it ({getattr(model, 'main_input_name', None)})"}
        with called(model) as ran:
            base = outputs_of(model, inputs)
        if not base or difference(base, outputs_of(model, inputs)) > 0:
            return {"": "its output is not the same twice" if base else "it puts out no tensor"}
        probe = Probe(inputs, base, ran, reached(model, inputs))
    except (*REFUSALS, HFError) as error:
        return {"": f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"}
    found = {method: verdict(model, probe, method) for method in methods}
    hidden = read_unknown(model, inputs, base, ran)
    if hidden:
        found["lora"] = f"fault: {hidden} is neither called nor known to be read, and moves the output"
    return found


def reached(model: nn.Module, inputs: dict[str, Any]) -> set[int]:
    """The modules, by identity, with a parameter of their own that gets a gradient when the model itself is trained."""
    model.zero_grad()
    loss = loss_of(model, inputs)
    if loss is not None:
        loss.backward()
    found = {
        id(m)
        for m in model.modules()
        if any(p is not None and p.grad is not None for p in m._parameters.values())
    }
    model.zero_grad()
    return found


def loss_of(model: nn.Module, inputs: dict[str, Any]) -> Tensor | None:
    """The sum of squares of all that the model puts out; None where nothing of it has a gradient."""
    torch.manual_seed(0)
    terms = [t.float().square().sum() for t in _differentiable(model(**inputs))]
    return sum(terms[1:], terms[0]) if terms else None


def read_unknown(model: nn.Module, inputs: dict[str, Any], base: list[Tensor], ran: set[int]) -> str | None:
    """A linear layer or convolution that is not called in the forward and not known to be read, whose weight moves the output."""
    quiet = [
        m
        for m in resolve(model, "re:.+")
        if m.parameter is None
        and id(m.module) not in ran
        and not m.read
        and isinstance(m.module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))
        and "head" != m.role
        and isinstance(m.module._parameters.get("weight"), Tensor)
    ]
    for match in quiet:
        weight: Any = match.module.weight
        kept = weight.detach().clone()
        with torch.no_grad():
            weight.add_(torch.randn_like(weight))
            moved = difference(base, outputs_of(model, inputs)) > 0
            weight.copy_(kept)
        if moved:
            return match.path
    return None


def verdict(model: nn.Module, probe: Probe, method: str) -> str:
    """What one method does on the model, which is afterwards as it was."""
    bits = {k: v.clone() for k, v in model.state_dict().items()}
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    try:
        ad.attach(model, method, seed=1, **METHODS[method])
    except (TargetError, HostError, MethodError) as error:
        return f"refused: {str(error).splitlines()[0][:160]}"
    except REFUSALS as error:
        return f"fault: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    try:
        return attached(model, probe, method)
    except HostError as error:  # what a method does not do with the model's arguments, said
        return f"refused: {str(error).splitlines()[0][:160]}"
    except (*REFUSALS, AdaptomeError) as error:
        return f"fault: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    finally:
        ad.detach(model)
        model.zero_grad()
        after = model.state_dict()
        assert after.keys() == bits.keys() and all(torch.equal(after[k], bits[k]) for k in bits), name_of(
            model
        )
        assert {n for n, p in model.named_parameters() if p.requires_grad} == trained, name_of(model)
        assert difference(probe.base, outputs_of(model, probe.inputs)) == 0, name_of(model)


def name_of(model: nn.Module) -> str:
    return f"{type(model).__name__} is not what it was before"


def attached(model: nn.Module, probe: Probe, method: str) -> str:
    inputs = probe.inputs
    cls = ad.list_methods()[method]
    if cls.identity_at_init and (moved := difference(probe.base, outputs_of(model, inputs))) > EQUAL:
        return f"fault: it starts {moved:.1e} from the base"
    model.zero_grad()
    attachment = ad.adapters(model)["default"]
    loss, remark = loss_of(model, inputs), ""
    if loss is None and hasattr(model, "enable_input_require_grads"):
        model.enable_input_require_grads()  # reversible layers pass none where their input asks for none
        loss, remark = loss_of(model, inputs), ", after model.enable_input_require_grads()"
        model.disable_input_require_grads()
    if loss is not None:
        loss.backward()
    elif any(probe.runs(adapter.host) for adapter in attachment.adapters.values()):
        return "fault: no gradient passes through the model"
    remark = remark if loss is not None else ""
    silent, quiet, dead = [], 0, 0
    for path, adapter in attachment.adapters.items():
        own = [p for p in adapter.parameters() if p.requires_grad]
        if (
            any(p.grad is not None for p in own)
            or not own
            or adapter.may_idle
            or "expert" in adapter.host.role
        ):
            continue
        if not probe.runs(adapter.host):
            quiet += 1
        elif probe.trains(adapter.host):
            silent.append(path)
        else:
            dead += 1
    if silent:
        return f"fault: no gradient reaches {len(silent)} of {len(attachment.adapters)}, such as {silent[0]}"
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in ad.parameters_of(model).values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter))
    adapted = outputs_of(model, inputs)
    remark += f", {quiet} of {len(attachment.adapters)} layers not run by the probe" if quiet else ""
    remark += (
        f", {dead} of {len(attachment.adapters)} layers without a gradient in the model itself"
        if dead
        else ""
    )
    if quiet == len(attachment.adapters):
        return "not run by the probe"
    if cls.merge == "none":
        return f"works{remark}"
    report = ad.merge(model, inputs=inputs)
    if (apart := difference(adapted, outputs_of(model, inputs))) > EQUAL:
        return f"fault: merging moves the output by {apart:.1e}, the report says {report.model:.1e}"
    return f"works{remark}"


def _differentiable(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        if output.requires_grad and output.is_floating_point():
            yield torch.where(output.isfinite(), output, 0)
    elif isinstance(output, dict):
        for value in output.values():
            yield from _differentiable(value)
    elif isinstance(output, (tuple, list)):
        for value in output:
            yield from _differentiable(value)


def write(results: dict[str, dict[str, Any]]) -> None:
    """Put results into the file beside those that are there."""
    import transformers

    stored = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {"classes": {}}
    stored["classes"] = dict(sorted({**stored["classes"], **results}.items()))
    stored["versions"] = {
        "transformers": transformers.__version__,
        "torch": torch.__version__.partition("+")[0],
    }
    write_atomic(RESULTS, json.dumps(stored, indent=1) + "\n")


def unsettled(name: str) -> bool:
    """Whether the file has a fault of the class, or nothing."""
    stored = json.loads(RESULTS.read_text(encoding="utf-8"))["classes"].get(name)
    return stored is None or any(text.startswith("fault") for text in stored["methods"].values())


def main(arguments: list[str] | None = None) -> int:
    """Run; 1 where there is a fault."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shard", default="0/1", help="i/n: every n-th class from the i-th on")
    parser.add_argument("--only", help="classes whose name holds this; every method, printed and not written")
    parser.add_argument(
        "--again", action="store_true", help="the classes with a fault in the file, or not in it"
    )
    args = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    known = classes()
    first = first_of_type(known)
    index, count = map(int, args.shard.split("/"))
    names = [n for n in known if args.only in n] if args.only else sorted(known)[index::count]
    if args.again:
        names = [n for n in names if unsettled(n)]
    faults = 0
    results = {}
    for name in names:
        kind, autos = known[name]
        found = examine(name, list(METHODS) if name in first or args.only else ["lora"])
        results[name] = {"type": kind, "auto": autos, "methods": found}
        for method, text in found.items():
            faults += text.startswith("fault")
            if args.only or text.startswith("fault"):
                print(f"{name:44} {method:14} {text}", flush=True)
    if not args.only:
        write(results)
    print(
        f"{len(names)} classes, {sum('' not in r['methods'] for r in results.values())} run, {faults} faults"
    )
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
