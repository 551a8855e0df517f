"""Adapters that take turns: who leaves when, what a turn moves, how many passes a batch has, and that a run goes on as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss
from transformers import TrainerCallback, TrainingArguments

import adaptome as ad
from adaptome.core.errors import GradientError, TrainingError
from adaptome.training import AdaptomeTrainer
from adaptome.training.turns import Turns, gradient_norm


def fed(norms, **settings) -> tuple[Turns, list[int]]:
    """Turns of one adapter after epochs of these norms, and the epochs at whose end it left."""
    turns, gone = Turns(**settings), []
    for epoch, norm in enumerate(norms):
        for each in (0.5, 1.5):  # two batches, whose mean it is
            turns.see("a", norm * each)
        if turns.end_epoch():
            gone.append(epoch)
    return turns, gone


def test_flat_gradients_never_leave():
    assert fed([1.0] * 12, factor=1.01)[1] == []


def test_gradients_twice_as_large_leave_at_their_epoch_and_not_before_the_patience():
    assert fed([1.0] * 6 + [2.0], factor=1.4)[1] == [6]
    assert fed([1.0, 1.0, 1.0, 2.0, 1.0, 1.0, 1.0], factor=1.4)[1] == []
    assert fed([1.0] * 5 + [2.0], factor=1.4)[1] == [5]
    assert fed([1.0] * 4 + [2.0], factor=1.4)[1] == []
    assert fed([1.0] * 6 + [2.0], factor=None)[1] == []


def test_the_mean_leaves_out_the_epoch_that_is_judged():
    """With it 1.4 times the mean of these would be 1.49, and nobody would leave."""
    assert fed([1.0] * 6 + [1.45], factor=1.4)[1] == [6]
    assert 1.4 * (6 + 1.45) / 7 > 1.45


def test_who_has_left_stays_away():
    turns, gone = fed([1.0] * 6 + [2.0], factor=1.4)
    assert gone == [6] and turns.staying(["a", "b"]) == ["b"]
    turns.see("b", 1.0)
    assert turns.end_epoch() == [] and turns.left == ["a"] and turns.history["a"][-1] == 2.0


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.both = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 2)
        self.seen = 0

    def forward(self, x, labels=None):
        self.seen += self.training
        out = self.both(torch.tanh(self.first(x)) + torch.tanh(self.second(x)))
        return {"loss": mse_loss(out, labels), "logits": out}


def rows(count: int = 12):
    draw = torch.Generator().manual_seed(1)
    return [
        {"x": torch.randn(4, generator=draw), "labels": torch.randn(2, generator=draw)} for _ in range(count)
    ]


def trainer(folder, turns=None, epochs=2, callbacks=(), **changes):
    model = Two()
    ad.attach(model, "lora", "a", targets="first", r=2, train=["both"], seed=0)
    ad.attach(model, "lora", "b", targets="second", r=2, seed=1)
    settings = {"per_device_train_batch_size": 4, "num_train_epochs": epochs, "learning_rate": 0.1, "weight_decay": 0.1, "use_cpu": True, "report_to": [], "disable_tqdm": True, "save_strategy": "epoch", **changes}  # fmt: skip
    return AdaptomeTrainer(
        model,
        TrainingArguments(str(folder), **settings),
        train_dataset=rows(),
        turns=turns,
        callbacks=list(callbacks),
    )


def tensors(model, name):
    return [p.detach().clone() for one in ad.adapters(model)[name].modules() for p in one.parameters()]


class Snapshots(TrainerCallback):
    """What differs after each optimizer step, of those between and of the Trainer's own."""

    def __init__(self):
        self.moved, self.trainer = [], None

    def watch(self, trainer):
        self.trainer, step = trainer, trainer.create_optimizer().step

        def stepped(*args, **kwargs):
            before = {name: self._state(name) for name in ("a", "b")}
            result = step(*args, **kwargs)
            after = {name: self._state(name) for name in ("a", "b")}
            self.moved.append({name for name in after if any(not torch.equal(x, y) for x, y in zip(before[name], after[name], strict=True))})  # fmt: skip
            return result

        trainer.optimizer.step = stepped

    def _state(self, name):
        """Parameters of an adapter on its layers, and what the optimizer keeps of them."""
        own = [p for one in ad.adapters(self.trainer.model)[name].adapters.values() for p in one.parameters()]
        state = self.trainer.optimizer.state
        kept = [v.detach().clone() for p in own for v in state.get(p, {}).values() if isinstance(v, torch.Tensor)]  # fmt: skip
        return [torch.cat([p.detach().flatten() for p in own]), torch.cat([k.flatten() for k in kept]) if kept else torch.zeros(0)]  # fmt: skip


def test_a_turn_moves_its_adapter_and_what_is_always_and_nothing_else(tmp_path):
    """Neither weight decay nor momentum moves those that wait, and the optimizer's state of them stays."""
    turns, watch = Turns(always=["both"]), Snapshots()
    made = trainer(tmp_path, turns, epochs=1)
    watch.watch(made)
    heads = []
    original = made._step_between
    made._step_between = lambda: (original(), heads.append(tensors(made.model, "a")[-1]))
    made.train()
    assert watch.moved == [{"a"}, {"b"}] * 3
    assert len({tuple(head.tolist()) for head in heads}) == 3
    assert all(p.requires_grad for one in ad.adapters(made.model).values() for m in one.modules() for p in m.parameters())  # fmt: skip


def test_a_batch_has_a_pass_for_each_that_stays_and_the_counter_falls(tmp_path):
    turns = Turns(always=["both"], factor=1e-9, patience=2)
    made = trainer(tmp_path, turns, epochs=6)
    made.train()
    # both leave after the third epoch: each has been judged against two before it
    assert turns.left == ["a", "b"] and made.state.global_step == 9
    assert made.model.seen == turns.passes == 2 * 9
    turns = Turns(always=["both"], factor=1e9)
    turns.left = ["b"]
    made = trainer(tmp_path / "one", turns, epochs=1)
    before = tensors(made.model, "b")
    made.train()
    assert made.model.seen == turns.passes == 3
    assert all(torch.equal(x, y) for x, y in zip(tensors(made.model, "b"), before, strict=True))


def test_a_run_goes_on_with_the_bits_of_one_that_was_not_interrupted(tmp_path):
    class Stop(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 8:
                raise KeyboardInterrupt

    settings = {"always": ["both"], "factor": 1.0001, "patience": 1}
    whole = trainer(tmp_path / "whole", Turns(**settings), epochs=4)
    whole.train()
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "cut", Turns(**settings), epochs=4, callbacks=[Stop()]).train()
    again = trainer(tmp_path / "cut", Turns(**settings), epochs=4)
    again.train(resume_from_checkpoint=True)
    for name in ("a", "b"):
        pairs = zip(tensors(again.model, name), tensors(whole.model, name), strict=True)
        assert all(torch.equal(x, y) for x, y in pairs)
    assert again.turns.history == whole.turns.history and again.turns.left == whole.turns.left
    assert again.turns.passes == whole.turns.passes


def test_the_norm_is_that_of_all_matrices_of_an_adapter_together(tmp_path):
    made = trainer(tmp_path)
    batch = {key: torch.stack([row[key] for row in rows(3)]) for key in ("x", "labels")}
    made.model(**batch)["loss"].backward()
    one = ad.adapters(made.model)["a"]
    (adapter,) = one.adapters.values()
    expected = torch.cat([adapter.A.grad.flatten(), adapter.B.grad.flatten()]).norm()
    assert gradient_norm(one) == pytest.approx(float(expected))


def test_an_adapter_that_no_gradient_reaches_is_still_told(tmp_path):
    class Deaf(Two):
        def forward(self, x, labels=None):
            self.second(x)  # and nothing is made of it
            out = self.both(torch.tanh(self.first(x)))
            return {"loss": mse_loss(out, labels), "logits": out}

    made = trainer(tmp_path, Turns(always=["both"]), epochs=4)
    made.model.__class__ = type("Deaf", (type(made.model),), {"forward": Deaf.forward})
    with pytest.raises(GradientError, match="b: second"):
        made.train()


def test_what_turns_do_not_go_with_is_refused(tmp_path):
    with pytest.raises(TrainingError, match=r"turns.*gradient_accumulation=1"):
        trainer(tmp_path, Turns(), gradient_accumulation_steps=2)
    with pytest.raises(TrainingError, match=r"always names 'bot'.*Did you mean 'both'"):
        trainer(tmp_path, Turns(always=["bot"]))


def test_a_checkpoint_after_the_last_has_left_is_gone_on_from_by_ending(tmp_path):
    class Growing(Turns):
        def see(self, name, norm):
            super().see(name, norm * 10 ** len(self.history.get(name, ())))

    done = trainer(tmp_path, Growing(factor=1.1, patience=1), epochs=4)
    done.train()
    assert set(done.turns.left) == {"a", "b"} and done.state.global_step == 6
    again = trainer(tmp_path, Growing(factor=1.1, patience=1), epochs=4)
    again.train(resume_from_checkpoint=True)
    for name in ("a", "b"):
        for before, after in zip(tensors(done.model, name), tensors(again.model, name), strict=True):
            assert torch.equal(before, after)
