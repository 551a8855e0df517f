r"""Adapters that take turns: every batch is trained on once for each of them, and one whose gradients grow leaves early.

    for m in the adapters that have not left, in their order:
        only adapter m (with what it trains whole) asks for gradients, and what `always` names
        loss of the whole model on the batch; backward; the optimizer's step

    after epoch e, from 0:   g_m(e) = mean over its batches of || gradients of m's matrices ||
                             m leaves where e >= patience and factor * mean(g_m(0) ... g_m(e - 1)) < g_m(e), and stays away

A step of the Trainer is a batch: its schedule, evaluations and checkpoints count batches, however many turns one has. What is not at its turn has no gradient
at all, so that neither momentum nor weight decay moves it. When all have left, training ends.

source    modality-sequential training and adaptive early exit of CREMA (Yu et al.), arXiv:2402.05889
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

import adaptome as ad
from adaptome.core.errors import TrainingError, did_you_mean
from adaptome.core.state import Attachment, state_of
from adaptome.training.termed import TermedTrainer


class Turns(TrainerCallback):
    """Whose turn it is, and who has left.

    Args:
        always: paths of modules, trained whole by one of the adapters, that train in every turn.
        factor: an adapter leaves when its gradients are so many times what they were; None for never.
        patience: epochs in which none leaves.
    """

    def __init__(self, always: Sequence[str] = (), factor: float | None = None, patience: int = 5):
        self.always, self.factor, self.patience = tuple(always), factor, patience
        #: adapter -> its mean norms by epoch, and the norms of the epoch that runs
        self.history: dict[str, list[float]] = {}
        self.norms: dict[str, list[float]] = {}
        self.left: list[str] = []
        #: forwards and backwards done
        self.passes = 0

    def staying(self, names: Sequence[str]) -> list[str]:
        """Those that have not left."""
        return [name for name in names if name not in self.left]

    def see(self, name: str, norm: float) -> None:
        """Take note of a turn's gradient norm."""
        self.passes += 1
        self.norms.setdefault(name, []).append(norm)

    def end_epoch(self) -> list[str]:
        """Judge the epoch that has ended; who leaves now."""
        leaving = []
        for name, norms in self.norms.items():
            mean, before = math.fsum(norms) / len(norms), self.history.setdefault(name, [])
            judged = self.factor is not None and len(before) >= max(self.patience, 1)
            if judged and float(self.factor or 0) * math.fsum(before) / len(before) < mean:
                leaving.append(name)
            before.append(mean)
        self.norms = {}
        self.left += leaving
        return leaving

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        leaving = self.end_epoch()
        last = {f"turns/{name}": norms[-1] for name, norms in self.history.items()}
        state.log_history.append({**last, "turns/left": len(self.left), "epoch": state.epoch, "step": state.global_step})  # fmt: skip
        if leaving and not self.staying(list(self.history)):
            control.should_training_stop = True

    def kept(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {"history": self.history, "norms": self.norms, "left": self.left, "passes": self.passes}

    def restore(self, kept: dict[str, Any]) -> None:
        """Go on from what a checkpoint held."""
        self.history, self.norms = dict(kept["history"]), dict(kept["norms"])
        self.left, self.passes = list(kept["left"]), int(kept["passes"])


class TurnTaking(TermedTrainer):
    """A Trainer whose adapters may take turns on every batch.

    Args:
        turns: how; None for all at once.
    """

    def __init__(self, *args: Any, turns: Turns | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.turns = turns
        if turns is not None:
            self.add_callback(turns)
            self._check_turns()

    def _check_turns(self) -> None:
        """Refuse what turns do not go with, before anything runs.

        Raises:
            TrainingError: accumulated batches, several processes, or `always` names what no adapter trains whole.
        """
        assert self.turns is not None
        if self.args.gradient_accumulation_steps > 1 or self.args.world_size > 1 or self.args.n_gpu > 1:
            raise TrainingError(
                "training.turns: every batch is a step of each adapter, in one process. Take training.gradient_accumulation=1 and one device."
            )
        heads = [path for one in self._taking().values() for path in one.heads]
        for name in self.turns.always:
            if not any(within(path, name) for path in heads):
                raise TrainingError(
                    f"training.turns.always names {name!r}, which no adapter trains whole.{did_you_mean(name, heads)}\n"
                    f"  They train {', '.join(heads) or 'nothing so'}; name it in an adapter's `train`."
                )

    def _taking(self) -> dict[str, Attachment]:
        """The adapters that train, in their order."""
        return {n: a for n, a in ad.adapters(self.model).items() if a.resting is None and _asking(a)}

    def training_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The Trainer's; with turns one for each adapter that stays, each but the last with the optimizer's step."""
        if self.turns is None:
            return super().training_step(model, inputs, *args, **kwargs)
        taking, losses = self._taking(), []
        staying = self.turns.staying(list(taking))
        if not staying:  # a checkpoint of the epoch after which the last one left
            return self._over(model, taking)
        for name in staying:
            with self._only(name, taking):
                losses.append(super().training_step(model, inputs, *args, **kwargs))
            self.turns.see(name, gradient_norm(taking[name]))
            self._tell_reached(name, taking)
            if name != staying[-1]:
                self._step_between()
        return torch.stack(losses).mean()

    def _over(self, model: nn.Module, taking: dict[str, Attachment]) -> Tensor:
        """Training ends here; no gradient is expected of anyone any more."""
        state_of(self.model).reached |= {f"{name}: {path}" for name, one in taking.items() for path in one.all()}  # fmt: skip
        self.control.should_training_stop = True
        return torch.zeros((), device=self.args.device)

    def _step_between(self) -> None:
        """What the Trainer does after the last turn's backward, for one before it; the schedule goes on by batches."""
        if self.args.max_grad_norm:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.args.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _tell_reached(self, name: str, taking: dict[str, Attachment]) -> None:
        """Let the check of the first gradients, which looks after the last turn, know of those of this one; of who has left none are expected."""
        state = state_of(self.model)
        if not state.unsettled:
            return
        assert self.turns is not None
        for path, one in taking[name].all().items():
            if any(p.grad is not None for p in one.parameters()):
                state.reached.add(f"{name}: {path}")
        gone = [other for other in self.turns.left if other in taking]
        state.reached |= {f"{other}: {path}" for other in gone for path in taking[other].all()}

    @contextmanager
    def _only(self, name: str, taking: dict[str, Attachment]) -> Iterator[None]:
        """Within it only this adapter asks for gradients, and what `always` names."""
        assert self.turns is not None
        always = {
            id(p)
            for one in taking.values()
            for path, head in one.heads.items()
            if any(within(path, other) for other in self.turns.always)
            for p in head.parameters()
        }
        quiet = [
            p for other, one in taking.items() if other != name for p in _asking(one) if id(p) not in always
        ]
        for parameter in quiet:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in quiet:
                parameter.requires_grad_(True)


def gradient_norm(attachment: Attachment) -> float:
    """The norm of the gradients of an adapter's matrices, together; of all it trains on its layers where it has none."""
    own = [p for adapter in attachment.adapters.values() for p in adapter.parameters() if p.grad is not None]
    chosen = [p for p in own if p.dim() >= 2] or own
    if not chosen:
        return 0.0
    norms = [torch.linalg.vector_norm(p.grad.float()) for p in chosen if p.grad is not None]
    return float(torch.linalg.vector_norm(torch.stack(norms)))


def _asking(attachment: Attachment) -> list[nn.Parameter]:
    return [p for module in attachment.modules() for p in module.parameters() if p.requires_grad]


def within(path: str, named: str) -> bool:
    """Whether a module is the named one, or inside it."""
    return path == named or path.startswith(f"{named}.")
