"""Any weight adapter as a LoRA that servers take: how much of it is left, told by layer and at the model's output.

A low-rank method leaves as it is; any other update is cut to a rank, see `truncation`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adaptome.core.attaching import attach
from adaptome.core.errors import MergeError
from adaptome.core.inputs import Run, collect, run
from adaptome.core.merging import evaluating
from adaptome.core.model import activate, active, detach
from adaptome.core.plan import table
from adaptome.core.state import Attachment, attachment_of, find_root
from adaptome.interop.formats import provenance
from adaptome.interop.lora_factors import Factors, update_pair
from adaptome.interop.peft import write_lora
from adaptome.interop.truncation import Converted, cut

#: what vLLM takes for --max-lora-rank: a file's rank is one of them
SERVED_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
#: share of an adapter's effect that a conversion may lose unless told otherwise
LIMIT = 0.1


@dataclass(frozen=True)
class Conversion:
    """What was written. Prints as a table.

    Attributes:
        folder: where.
        rank: of the file; layers that use less are padded by zeros.
        layers: by target.
        output_error: what the model's output lost on the batches, as a share of what the adapter changes there; None without batches.
        notes: what a server must be told, or does not take.
        sha256: of the file's tensors.
    """

    folder: str
    rank: int
    layers: dict[str, Converted]
    output_error: float | None
    notes: tuple[str, ...]
    sha256: str

    @property
    def worst(self) -> float:
        """The error that the limit is for: at the model's output, else the largest of a layer's."""
        return self.output_error if self.output_error is not None else _worst(self.layers)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON can hold it."""
        return {**asdict(self), "notes": list(self.notes), "worst": self.worst}

    def __str__(self) -> str:
        rows = [
            (
                path,
                str(c.rank),
                f"{c.weight_error:.2e}",
                "-" if c.output_error is None else f"{c.output_error:.2e}",
            )
            for path, c in self.layers.items()
        ]
        told = (
            ""
            if self.output_error is None
            else f"\nerror at the model's output: {self.output_error:.2e} of the adapter's effect"
        )
        notes = "".join(f"\nnote: {note}" for note in self.notes)
        return (
            f"wrote {len(rows)} updates as LoRA, rank {self.rank}, to {self.folder}\n"
            + table(("layer", "rank used", "error of update", "error of output"), rows) + told + notes
        )  # fmt: skip


def convert(
    model: nn.Module,
    folder: str | os.PathLike[str],
    name: str = "default",
    *,
    rank: int | None = None,
    energy: float | None = None,
    max_error: float | None = None,
    batches: Iterable[Any] | None = None,
    weighted: bool = True,
    force: bool = False,
    run: Run = run,
    task_type: str | None = None,
) -> Conversion:
    """Write an adapter as a PEFT folder of LoRA that vLLM and others serve.

    One rank for all layers, rounded up to one that vLLM takes and padded with zeros, alpha = rank, the scale inside B, no patterns; the
    base's id and revision in the configuration, and with a hash of base and tensors in the file's metadata.

    Args:
        model: with the adapter.
        folder: made or replaced.
        name: of the adapter.
        rank: of every layer.
        energy: instead, the share of the squared singular values to keep, layer by layer.
        max_error: the largest error that is accepted (a tenth of the adapter's effect unless given); alone it also chooses the rank, layer
            by layer. The error is that at the model's output on the batches, else the largest of a layer's update.
        batches: a few of the data that the adapter is for. They weigh the truncation, and the errors at the outputs are measured on them.
        weighted: False measures on the batches, and truncates without them.
        force: write although the error is above the limit.
        run: runs the model on a batch.
        task_type: PEFT's, for `AutoPeftModel`.

    Raises:
        MergeError: no update of weights, two ways to choose the rank, an unbounded update and none, a rank that no server takes, or an error above the limit.
        DataError: a layer saw nothing of the batches.
        CheckpointError: the folder holds something else.
    """
    _check_choice(rank, energy, max_error)
    attachment, seen = attachment_of(model, name), None if batches is None else list(batches)
    with evaluating(model):
        moments = {} if seen is None else _moments(model, attachment, seen, run)
        cuts = {
            path: cut(
                update_pair(adapter, attachment), moments.get(path), weighted, rank, energy, max_error, path
            )
            for path, adapter in attachment.adapters.items()
        }
        factors = {path: Factors(A, B, told.weight_error) for path, (A, B, told) in cuts.items()}
        layers = {path: told for path, (_, _, told) in cuts.items()}
        output = None if seen is None else _output_error(model, attachment, factors, seen, run)
    error = output if output is not None else _worst(layers)
    # who says how much energy to keep has accepted what that leaves
    limit = (
        max_error if max_error is not None else max(LIMIT, (1 - (1.0 if energy is None else energy)) ** 0.5)
    )
    if error > limit and not force:
        where = (
            "at the model's output"
            if output is not None
            else f"on {max(layers, key=lambda k: layers[k].weight_error)}"
        )
        raise MergeError(
            f"as LoRA {name!r} would lose {error:.2e} of its effect {where}, above {limit:.0e}; nothing was written.\n"
            "  Raise the rank, give calibration batches, raise max_error, or force=True to write it all the same."
        )
    wide = max(f.A.shape[-2] for f in factors.values())
    served = next((r for r in SERVED_RANKS if r >= wide), None)
    if served is None:
        raise MergeError(
            f"rank {wide} is above {SERVED_RANKS[-1]}, the largest that servers take.\n  Give a smaller rank, or merge."
        )
    numbers = {
        f"{path}.{side}": value for path, f in factors.items() for side, value in (("A", f.A), ("B", f.B))
    }
    told = provenance(find_root(model), attachment, numbers)
    write_lora(model, folder, attachment, factors, served, task_type, told)
    return Conversion(str(folder), served, layers, output, _notes(attachment, served), told["sha256"])


def _check_choice(rank: int | None, energy: float | None, max_error: float | None) -> None:
    if rank is not None and energy is not None:
        raise MergeError("give the rank or the energy to keep, not both.")
    if rank is not None and rank < 1:
        raise MergeError(f"rank = {rank} must be at least 1.")
    if energy is not None and not 0 < energy <= 1:
        raise MergeError(f"energy = {energy} must be a share, above 0 and at most 1.")
    if max_error is not None and max_error < 0:
        raise MergeError(f"max_error = {max_error} must not be negative.")


def _worst(layers: Mapping[str, Converted]) -> float:
    return max((c.weight_error for c in layers.values()), default=0.0)


# -- the model -----------------------------------------------------------------------------------------------------


def moment(old: Tensor | None, x: Tensor) -> Tensor:
    """The second moment `X^T X` `[in, in]` of all inputs so far, with x `[tokens, in]`."""
    return x.t() @ x if old is None else old + x.t() @ x


def _moments(model: nn.Module, attachment: Attachment, batches: Sequence[Any], run: Run) -> dict[str, Tensor]:
    """The second moment of the inputs of every linear layer that has an adapter, as the adapted model sees them."""
    hosts = [a.host for a in attachment.adapters.values() if a.host.kind == "linear"]
    return collect(model, batches, hosts, run, moment) if hosts else {}


@torch.no_grad()
def _output_error(
    model: nn.Module, attachment: Attachment, factors: Mapping[str, Factors], batches: Sequence[Any], run: Run
) -> float:
    """What the model's output loses, as a share of what the adapter changes."""
    root, before = find_root(model), active(model)
    others = [n for n in before if n != attachment.name]
    shares = {
        n: next(iter(attachment_of(root, n).all().values())).strength for n in {*before, attachment.name}
    }
    trial = next(n for n in ("converted", *(f"converted-{i}" for i in range(1000))) if n not in shares)
    ranks = {f"={path}": {"r": f.A.shape[-2], "alpha": float(f.A.shape[-2])} for path, f in factors.items()}
    attach(
        root, "lora", trial, targets=list(ranks), per_layer=ranks, train=attachment.train, dtype=torch.float32
    )
    try:
        tried = attachment_of(root, trial)
        for path, head in attachment.heads.items():
            for key, value in head.named_parameters():
                tried.heads[path].get_parameter(key).copy_(value)
        outputs = {}
        for what, name in (("adapted", attachment.name), ("base", trial), ("converted", trial)):
            if what != "adapted":  # without update, then with it; both have the heads
                _set(tried, factors, 0.0 if what == "base" else 1.0)
            activate(root, [*others, name], {n: shares[n] for n in (*others, name) if n in shares})
            outputs[what] = [first_output(run(model, batch)).double().cpu() for batch in batches]
    finally:
        detach(root, trial)
        activate(root, before, {n: shares[n] for n in before})
    lost, meant = (
        sum(float((x - y).square().sum()) for x, y in zip(outputs["adapted"], outputs[other], strict=True))
        for other in ("converted", "base")
    )
    return (lost / meant) ** 0.5 if meant else 0.0


def _set(attachment: Attachment, factors: Mapping[str, Factors], share: float) -> None:
    for path, adapter in attachment.adapters.items():
        adapter.get_parameter("A").copy_(factors[path].A)
        adapter.get_parameter("B").copy_(factors[path].B * share)


def first_output(output: Any) -> Tensor:
    """The tensor that a model's output is about: its logits, else the first of floating point."""
    values: list[Any] = [output]
    if isinstance(output, Mapping):
        values = [output["logits"]] if "logits" in output else list(output.values())
    elif isinstance(output, (tuple, list)):
        values = list(output)
    found = next((v for v in values if isinstance(v, Tensor) and v.is_floating_point() and v.dim()), None)
    if found is None:
        raise MergeError(
            f"the model's output ({type(output).__name__}) holds no tensor to compare.\n  Pass run=, a function of model and batch that gives one."
        )
    return found


# -- what goes with the file ---------------------------------------------------------------------------------------


def _notes(attachment: Attachment, rank: int) -> tuple[str, ...]:
    notes = [f"vLLM: --enable-lora --max-lora-rank {rank}"]
    if attachment.heads:
        notes.append(
            f"vLLM takes no heads that were trained whole ({', '.join(attachment.heads)}): merge the adapter to serve it there"
        )
    kinds = sorted({a.host.kind for a in attachment.adapters.values()} - {"linear", "embedding"})
    if kinds:
        notes.append(
            f"vLLM takes LoRA on linear layers and embeddings; this one is on {', '.join(kinds)} layers too"
        )
    return tuple(notes)
