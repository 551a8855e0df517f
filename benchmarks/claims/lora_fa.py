"""LoRA-FA adapts about as well as LoRA while a step keeps fewer activations.

claim      Zhang et al. 2023, arXiv:2308.03303: with A frozen the backward needs A x instead of x, at LoRA's quality
miniature  a tiny Llama of letters, pretrained here on the standard library's docstrings, is adapted to Python sources (all linear
           layers, r = 8, 100 steps, the best of three learning rates) and tested on modules it has not seen. "About as well" is within
           a tenth of what LoRA gains over the base. Kept are the distinct storages that autograd saves in the forward of one training
           batch, parameters and buffers left out; the floor is the same without adapters
"""

from __future__ import annotations

import copy

import torch
from _harness import Measure, Table, adapt, main
from _letters import TEST, code, held_out, language_model, next_letter
from torch import nn

import adaptome as ad

R = 8


def kept(model: nn.Module, loss) -> int:
    """Kilobytes that the forward of a batch keeps for its backward."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    sizes: dict[int, int] = {}
    alive = []  # so that no storage's address is used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss(model.train(), torch.Generator().manual_seed(0))
    return sum(sizes.values()) // 1024


def open_input(model: nn.Module) -> nn.Module:
    """Frozen, with a gradient asked of the embedding's output, as in a model whose lowest layer is adapted."""
    model = copy.deepcopy(model).requires_grad_(False)
    model.get_input_embeddings().register_forward_hook(
        lambda module, inputs, output: output.requires_grad_(True)
    )
    return model


def measurement() -> Measure:
    """The function that measures a seed; the base is pretrained once."""
    base, loss, score = language_model(300), next_letter(code()), held_out(code(TEST), 8)

    def measure(seed: int, table: Table) -> None:
        table.add("base", score(base))
        table.add("(KB kept: floor)", kept(open_input(base), loss))
        for method in ("lora", "lora-fa"):
            model = open_input(base)
            ad.attach(model, method, r=R)
            table.add(f"(KB kept: {method})", kept(model, loss))
            seen = adapt(base, method, loss, score, steps=100, rates=(5e-3, 1e-2, 2e-2), seed=seed, r=R)
            table.add(method, seen.value, seen.parameters)

    return measure


def judge(table: Table) -> dict[str, bool]:
    gain, lost = table.mean("base") - table.mean("lora"), table.mean("lora-fa") - table.mean("lora")
    floor, lora, fa = (table.mean(f"(KB kept: {k})") for k in ("floor", "lora", "lora-fa"))
    return {
        f"lora-fa: within a tenth of lora's gain ({lost:.3f}, at most {gain / 10:.3f})": lost <= gain / 10,
        f"above the floor it keeps at most half of lora's activations ({fa - floor:.0f} KB and {lora - floor:.0f})": fa
        - floor
        <= (lora - floor) / 2,
    }


if __name__ == "__main__":
    main(__doc__, "nats a letter; (KB)", measurement(), judge)
