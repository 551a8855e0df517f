"""Callbacks: the frameworks are needed only when their callback is asked for."""

import subprocess
import sys
import types

import pytest
import torch
from torch import nn

import adaptome as ad
from adaptome import callbacks
from adaptome.core.errors import GradientError, MissingExtraError


@pytest.fixture
def steps(monkeypatch):
    seen = []
    monkeypatch.setattr(ad, "on_step", lambda model, step, total: seen.append((step, total)))
    return seen


def adapted():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    ad.attach(net, "lora", r=2, targets=["0", "1"])
    return net


def test_importing_needs_neither_framework():
    code = """
import sys
sys.modules["transformers"] = sys.modules["lightning"] = sys.modules["pytorch_lightning"] = None
import adaptome.callbacks as c
from adaptome.core.errors import MissingExtraError
for name in ("AdaptomeCallback", "LightningCallback"):
    try:
        getattr(c, name)
    except MissingExtraError as error:
        print(error)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "transformers is not installed" in found and "lightning is not installed" in found


def test_a_missing_lightning_names_the_extra(monkeypatch):
    monkeypatch.delitem(vars(callbacks), "LightningCallback", raising=False)
    for name in ("lightning", "lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"adaptome\[lightning\]"):
        callbacks.LightningCallback  # noqa: B018


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="KerasCallback"):
        callbacks.KerasCallback  # noqa: B018


def test_a_loop_of_ones_own(steps):
    net = adapted()
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1)
    callbacks.before_training(net, 0, 2)
    for step in (1, 2):
        net(torch.randn(5, 3)).sum().backward()
        callbacks.after_backward(net, step)
        optimizer.step()
        callbacks.after_step(net, step, 2)
    assert steps == [(0, 2), (1, 2), (2, 2)]


def test_missing_gradients_are_told_at_the_first_step_of_a_model_that_skips_nothing_at_random():
    net = adapted().eval()
    net[0](torch.randn(5, 3)).sum().backward()
    with pytest.raises(GradientError, match="1 of 2"):
        callbacks.after_backward(net, 1)
    assert callbacks.after_backward(net, 2)


def test_in_training_they_are_told_at_the_eighth_step_or_the_last():
    for total, judged in ((None, 8), (20, 8), (3, 3)):
        net = adapted()
        net[0](torch.randn(5, 3)).sum().backward()
        for step in range(1, judged):
            assert not callbacks.after_backward(net, step, total)
        with pytest.raises(GradientError, match=rf"(?s)1 of 2 adapters in {judged} steps.*LayerDrop"):
            callbacks.after_backward(net, judged, total)
        assert callbacks.after_backward(net, judged + 1, total)


def test_a_gradient_in_a_later_step_will_do():
    net = adapted()
    net[0](torch.randn(5, 3)).sum().backward()
    assert not callbacks.after_backward(net, 1, 9)
    net.zero_grad()
    net[1](net[0](torch.randn(5, 3)).detach()).sum().backward()
    assert callbacks.after_backward(net, 2, 9)


def test_the_trainers_callback_drives_every_optimizer_step(steps):
    callback, net = callbacks.AdaptomeCallback(), adapted()
    net(torch.randn(5, 3)).sum().backward()
    callback.on_train_begin(None, types.SimpleNamespace(global_step=4, max_steps=7), None, model=net)
    for step in (5, 6, 7):
        state = types.SimpleNamespace(global_step=step, max_steps=7)
        callback.on_pre_optimizer_step(None, state, None, model=net)
        callback.on_step_end(None, state, None, model=net)
    assert steps == [(4, 7), (5, 7), (6, 7), (7, 7)]


def test_lightnings_callback_counts_optimizer_steps_not_batches(steps, monkeypatch):
    """Against a stand-in for Lightning's base class, which the callback uses nothing of."""
    stand_in = types.ModuleType("lightning.pytorch")
    stand_in.Callback = object
    monkeypatch.setitem(sys.modules, "lightning", types.ModuleType("lightning"))
    monkeypatch.setitem(sys.modules, "lightning.pytorch", stand_in)
    monkeypatch.delitem(vars(callbacks), "LightningCallback", raising=False)
    callback, net = callbacks.LightningCallback(), adapted()
    del callbacks.LightningCallback  # made on the stand-in: the next test wants the real one
    net(torch.randn(5, 3)).sum().backward()
    callback.on_train_start(types.SimpleNamespace(global_step=0, estimated_stepping_batches=2), net)
    for batch, step in enumerate([0, 1, 1, 2]):
        trainer = types.SimpleNamespace(global_step=step, estimated_stepping_batches=2)
        callback.on_after_backward(trainer, net)
        callback.on_train_batch_end(trainer, net, None, None, batch)
    assert steps == [(0, 2), (1, 2), (2, 2)]


def test_lightning_itself(steps):
    lightning = pytest.importorskip("lightning.pytorch")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = adapted()

        def training_step(self, batch, index):
            return self.net(batch).sum()

        def configure_optimizers(self):
            return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], 0.1)

    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        accumulate_grad_batches=2, callbacks=[callbacks.LightningCallback()],
    )  # fmt: skip
    trainer.fit(Module(), torch.utils.data.DataLoader(torch.randn(8, 3), batch_size=2))
    assert steps == [(0, 2), (1, 2), (2, 2)]
