r"""Any weight adapter as a LoRA that servers take: how much of it is left, told by layer and at the model's output.

A low-rank method leaves as it is; any other update dW is cut to a rank, by its singular values, or by what the layer's inputs make of it:

    plain      min |dW - B A|_F                        B A = the leading singular triplets of dW
    weighted   min |(dW - B A) C^(1/2)|_F, C = X^T X   B = U_r, A = U_r^T dW, U_r the leading eigenvectors of dW C dW^T

The second is the least error at the layer's output over the calibration inputs X. A hundredth of C's mean diagonal is added to it, so that
what a few inputs happen not to show is not taken for nothing. Source: Eckart and Young, on dW C^(1/2).
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
from adaptome.forms.singular import singular
from adaptome.interop.formats import provenance
from adaptome.interop.lora_factors import Factors, update_pair
from adaptome.interop.peft import write_lora

#: what vLLM takes for --max-lora-rank: a file's rank is one of them
SERVED_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
#: share of an adapter's effect that a conversion may lose unless told otherwise
LIMIT = 0.1
#: share of the second moment's mean diagonal that is added to it
DAMPING = 0.01


@dataclass(frozen=True)
class Converted:
    """One layer: how many ranks are used, and the relative error of its update and of what that adds to its output (None: not measured)."""

    rank: int
    weight_error: float
    output_error: float | None


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
            path: _cut(
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


# -- one layer -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def _cut(
    pair: tuple[Tensor, Tensor, bool],
    C: Tensor | None,
    weighted: bool,
    rank: int | None,
    energy: float | None,
    max_error: float | None,
    path: str,
) -> tuple[Tensor, Tensor, Converted]:
    """Factors of the rank that was asked for, on the CPU in float32, and what they lack."""
    A0, B0, exact = pair
    A, B = A0.double(), B0.double()
    C = None if C is None else C.to(A)
    chosen = rank is not None or energy is not None or max_error is not None
    if not (exact or chosen):
        raise MergeError(
            f"the update of {path} has no bounded rank: give rank=, energy= or max_error= to say how much of it to keep."
        )
    basis, S = _basis(A, B, _damped(C) if weighted else None)
    k = A.shape[-2]
    if rank is not None:
        k = rank
    elif energy is not None or (max_error is not None and not exact):
        lost = 1 - energy if energy is not None else float(max_error or 0.0) ** 2
        k = _needed(S, lost)
    if k < A.shape[-2] or not exact:
        U = basis[..., :k]
        right = (U.mT @ B) @ A
        norms = right.norm(dim=-1).clamp_min(torch.finfo(right.dtype).tiny).sqrt()
        A1, B1 = right / norms[..., None], U * norms[..., None, :]
    else:
        A1, B1 = A, B
    dW, gap = B @ A, B @ A - B1 @ A1
    weight_error = float(gap.norm() / dW.norm().clamp_min(1e-300)) if k < A.shape[-2] or not exact else 0.0
    output_error = None
    if C is not None:
        missed, whole = (float((M @ C * M).sum().clamp_min(0).sqrt()) for M in (gap, dW))
        output_error = missed / max(whole, 1e-300) if weight_error else 0.0
    told = Converted(min(k, A1.shape[-2]), weight_error, output_error)
    return A1.float().cpu().contiguous(), B1.float().cpu().contiguous(), told


def _damped(C: Tensor | None) -> Tensor | None:
    return (
        None
        if C is None
        else C + DAMPING * C.diagonal().mean() * torch.eye(len(C), dtype=C.dtype, device=C.device)
    )


def _basis(A: Tensor, B: Tensor, C: Tensor | None) -> tuple[Tensor, Tensor]:
    """The output directions `[*, out, k]` in which B A (on inputs of second moment C) is largest, and its squared norm along each."""
    if C is None:
        U, S, _ = singular(A, B)
        return U, S.square()
    Q, R = torch.linalg.qr(B)
    values, vectors = torch.linalg.eigh(R @ (A @ C @ A.mT) @ R.mT)
    return Q @ vectors.flip(-1), values.flip(-1).clamp_min(0)


def _needed(energies: Tensor, lost: float) -> int:
    """How many directions must stay so that no more than this share of the squared norm goes; of stacked layers the most."""
    total = energies.sum(-1, keepdim=True).clamp_min(1e-300)
    left = 1 - energies.cumsum(-1) / total
    enough = left <= max(lost, 1e-12)
    enough[..., -1] = True
    return int(enough.int().argmax(-1).max()) + 1


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
