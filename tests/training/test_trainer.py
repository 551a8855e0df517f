"""AdaptomeTrainer: what stops a run, what its loss and its groups are, and what it refuses."""

import json
import logging
import pickle

import pytest
import torch
from torch.testing import assert_close
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    EarlyStoppingCallback,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.training_args import ParallelMode

import adaptome as ad
from adaptome.core.errors import CheckpointError, GradientError, TrainingError
from adaptome.training.arguments import CHECKPOINTING
from adaptome.training.checkpoint import checkpoints
from adaptome.training.trainer import AdaptomeTrainer
from tests.training.killable import Examples, Run, arguments, collate, model_of, trainer_of


def trained(run, **settings):
    trainer = trainer_of(Run(run, settings=tuple(settings.items())))
    trainer.train()
    return trainer


# -- NaN ---------------------------------------------------------------------------------------------------------


def test_a_nan_loss_stops_with_its_step_and_the_last_good_checkpoint(tmp_path):
    run = Run(tmp_path, nan_step=8)
    with pytest.raises(TrainingError, match=r"(?s)step 8.*checkpoint-6") as caught:
        trainer_of(run).train()
    assert "Lower the learning rate" in str(caught.value)
    assert [step for step, _ in checkpoints(tmp_path / "run")] == [3, 6]


def test_a_nan_loss_before_the_first_checkpoint_says_that_there_is_none(tmp_path):
    with pytest.raises(TrainingError, match=r"(?s)step 1\b.*no checkpoint"):
        trainer_of(Run(tmp_path, nan_step=1)).train()


def test_where_every_look_costs_a_wait_nan_is_found_before_anything_is_saved(tmp_path, monkeypatch):
    """As on an accelerator: the loss is looked at when logging and saving only."""
    run = Run(tmp_path, nan_step=4, settings=(("logging_steps", 100), ("save_steps", 5)))
    trainer = trainer_of(run)
    looks = []
    real = trainer._finite.first
    monkeypatch.setattr(
        "adaptome.training.finite.FiniteLoss.first", lambda self: looks.append(1) or real.__func__(self)
    )
    monkeypatch.setattr(type(trainer), "_stops_at_once", lambda self, loss: False)
    with pytest.raises(TrainingError, match="step 4"):
        trainer.train()
    assert trainer.state.global_step == 5 and len(looks) == 1
    assert checkpoints(tmp_path / "run") == []


def test_weights_that_became_infinite_are_not_saved(tmp_path):
    trainer = trainer_of(Run(tmp_path))
    trainer.create_optimizer_and_scheduler(12)
    next(iter(ad.parameters_of(trainer.model).values())).data[0] = float("inf")
    with pytest.raises(TrainingError, match="NaN or infinite"):
        trainer._save_checkpoint(trainer.model, None)
    assert checkpoints(tmp_path / "run") == []


# -- the loss ----------------------------------------------------------------------------------------------------


def test_a_language_models_loss_keeps_no_logits_and_is_the_same(tmp_path, monkeypatch):
    trainer = trainer_of(Run(tmp_path, kind="llama"))
    trainer.model.eval()
    batch = dict(next(iter(trainer.get_train_dataloader())))
    expected, outputs = trainer.compute_loss(trainer.model, dict(batch), return_outputs=True)
    assert type(outputs.logits) is torch.Tensor
    monkeypatch.setattr("adaptome.objectives.deferred.DeferredLogits.whole", None)
    assert_close(trainer.compute_loss(trainer.model, dict(batch)), expected)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_accumulated_batches_give_the_gradient_of_one_large_batch(tmp_path, kind):
    def gradient(batch, accumulated):
        settings = {
            "per_device_train_batch_size": batch,
            "gradient_accumulation_steps": accumulated,
            "max_steps": 1,
        }
        settings |= {"max_grad_norm": 0.0, "train_sampling_strategy": "sequential", "learning_rate": 0.0}
        run = Run(tmp_path / f"{batch}", kind, settings=(*settings.items(), ("save_strategy", "no")))
        trainer = AdaptomeTrainer(model_of(kind, dropout=0.0), arguments(run), collate, Examples(4, kind))
        kept = {}
        trainer.add_callback(Keep(kept))
        trainer.train()
        return kept

    whole, parts = gradient(4, 1), gradient(1, 4)
    assert whole.keys() == parts.keys() and len(whole) > 4
    for name, value in whole.items():
        assert_close(parts[name], value, rtol=1e-4, atol=1e-7)


class Keep(EarlyStoppingCallback.__bases__[0]):
    def __init__(self, kept):
        self.kept = kept

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.kept.update({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})


def test_the_methods_own_terms_are_added_while_training_only(tmp_path, monkeypatch):
    trainer = trainer_of(Run(tmp_path))
    batch = collate([trainer.train_dataset[i] for i in range(2)])
    trainer.model.eval()
    plain = trainer.compute_loss(trainer.model, dict(batch))
    monkeypatch.setattr(ad, "penalty", lambda model: torch.tensor(10.0))
    assert_close(trainer.compute_loss(trainer.model, dict(batch)), plain)
    trainer.model.train()
    trainer.model.eval = trainer.model.train  # keep the mode, not the dropout
    torch.manual_seed(0)
    with_terms = trainer.compute_loss(trainer.model, dict(batch))
    monkeypatch.setattr(ad, "penalty", lambda model: None)
    torch.manual_seed(0)
    assert_close(with_terms - trainer.compute_loss(trainer.model, dict(batch)), torch.tensor(10.0))


def test_evaluating_changes_no_training(tmp_path):
    never = trained(tmp_path / "never")
    often = trained(tmp_path / "often", eval_strategy="steps", eval_steps=1)
    assert sum("eval_loss" in entry for entry in often.state.log_history) == 12
    for name, value in ad.parameters_of(never.model).items():
        assert torch.equal(value, ad.parameters_of(often.model)[name])


# -- gradient checkpointing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", ["bert", "llama", "vit"])
def test_gradient_checkpointing_changes_nothing_but_memory(tmp_path, kind, reentrant):
    def final(**settings):
        settings |= {"max_steps": 2, "save_strategy": "no"}
        run = Run(tmp_path / str(len(settings)), kind, settings=tuple(settings.items()))
        if kind == "vit":
            trainer = AdaptomeTrainer(vit(), arguments(run), None, Pictures())
        else:
            trainer = trainer_of(run)
        trainer.train()
        return ad.parameters_of(trainer.model)

    how = {CHECKPOINTING: True, f"{CHECKPOINTING}_kwargs": {"use_reentrant": reentrant}}
    plain, checkpointed = final(), final(**how)
    for name, value in plain.items():
        assert_close(checkpointed[name], value, rtol=1e-4, atol=1e-6)


class Pictures(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        draw = torch.Generator().manual_seed(index)
        return {"pixel_values": torch.randn(3, 8, 8, generator=draw), "labels": index % 3}


def vit():
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20}
    model = ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, num_labels=3, **shape))
    ad.attach(model, "lora", r=2, targets="attention", train=["classifier"], seed=1)
    return model


def test_adapters_no_gradient_reaches_are_told_after_the_first_backward(tmp_path):
    trainer = trainer_of(Run(tmp_path))
    real = trainer.model.bert.forward
    trainer.model.bert.forward = lambda *args, **kwargs: detached(real(*args, **kwargs))
    with pytest.raises(GradientError, match="no gradient reached"):
        trainer.train()
    # in training mode it looks at eight steps, for layers may be skipped at random
    assert trainer.state.global_step == 7


def detached(output):
    output.pooler_output = output.pooler_output.detach()
    return output


def test_bf16_keeps_adapters_and_checkpoints_in_float32(tmp_path):
    trainer = trained(tmp_path, bf16=True, max_steps=3)
    assert {p.dtype for p in ad.parameters_of(trainer.model).values()} == {torch.float32}


# -- the best, the last, and what is kept ------------------------------------------------------------------------

BEST = {
    "eval_strategy": "steps",
    "eval_steps": 2,
    "save_steps": 2,
    "load_best_model_at_end": True,
    "metric_for_best_model": "eval_score",
    "greater_is_better": True,
}


def scored(tmp_path, scores, **more):
    """A run whose evaluations score as given, at steps 2, 4, 6, ..."""
    left = iter(scores)
    trainer = trainer_of(
        Run(tmp_path, settings=tuple((BEST | more).items())),
        compute_metrics=lambda result: {"score": next(left)},
    )
    return trainer


def test_the_best_checkpoint_is_kept_and_loaded(tmp_path):
    trainer = scored(tmp_path, [0.1, 0.9, 0.2, 0.3, 0.4, 0.5], save_total_limit=2)
    trainer.train()
    assert [step for step, _ in checkpoints(tmp_path / "run")] == [4, 12]
    other = model_of("bert")
    ad.detach(other)
    ad.load(other, tmp_path / "run" / "checkpoint-4" / "adapters" / "default")
    for name, value in ad.parameters_of(other).items():
        assert torch.equal(value, ad.parameters_of(trainer.model)[name])


def test_an_altered_best_checkpoint_is_not_loaded(tmp_path):
    trainer = scored(tmp_path, [0.9, 0.1, 0.1, 0.1, 0.1, 0.1])
    trainer.add_callback(Spoil(tmp_path / "run" / "checkpoint-2" / "random.json"))
    with pytest.raises(CheckpointError, match="checkpoint-2"):
        trainer.train()


class Spoil(Keep):
    def __init__(self, path):
        self.path = path

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == 11:
            self.path.write_text("{}")


def test_early_stopping_stops_and_a_resumed_run_stops_at_the_same_step(tmp_path):
    def run(folder, scores):
        trainer = scored(folder, scores)
        trainer.add_callback(EarlyStoppingCallback(early_stopping_patience=3))
        return trainer

    scores = [0.5, 0.4, 0.3, 0.2, 0.9, 0.9]
    whole = run(tmp_path / "whole", scores)
    whole.train()
    assert whole.state.global_step == 8
    cut = run(tmp_path / "cut", scores)
    cut.add_callback(Stop(at=5))
    with pytest.raises(KeyboardInterrupt):
        cut.train()
    again = run(tmp_path / "cut", scores[2:])
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 8
    for name, value in ad.parameters_of(whole.model).items():
        assert torch.equal(value, ad.parameters_of(again.model)[name])
    killed_at_its_end = run(tmp_path / "whole", [])
    killed_at_its_end.train(resume_from_checkpoint=True)
    assert killed_at_its_end.state.global_step == 8


class Stop(Keep):
    """Ends a run as Ctrl-C does."""

    def __init__(self, at):
        self.at = at

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == self.at:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    "settings", [{}, {"max_steps": 4, "save_steps": 2}], ids=["epochs", "within an epoch"]
)
def test_a_finished_run_that_is_resumed_trains_no_further(tmp_path, settings):
    first = trained(tmp_path, **settings)
    again = trainer_of(Run(tmp_path, settings=tuple(settings.items())))
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == first.state.global_step == settings.get("max_steps", 12)
    for name, value in ad.parameters_of(first.model).items():
        assert torch.equal(value, ad.parameters_of(again.model)[name])


def test_a_finished_run_can_be_given_more_epochs(tmp_path):
    trained(tmp_path, num_train_epochs=1)
    again = trainer_of(Run(tmp_path))
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 12


def test_a_checkpoint_without_its_optimizer_is_not_resumed_from(tmp_path, caplog):
    trained(tmp_path, save_only_model=True, num_train_epochs=1)
    with caplog.at_level(logging.WARNING):
        again = trainer_of(Run(tmp_path))
        again.train(resume_from_checkpoint=True)
    assert "holds the adapters only" in caplog.text and "from the beginning" in caplog.text


def test_save_model_writes_what_load_reads(tmp_path):
    trainer = trained(tmp_path, max_steps=2)
    trainer.save_model()
    other = model_of("bert")
    ad.detach(other)
    report = ad.load(other, tmp_path / "run" / "adapter")
    assert report.method == "lora"


def test_several_adapters_are_stored_under_their_names(tmp_path):
    run = Run(tmp_path, settings=(("max_steps", 3),))
    model = model_of("bert")
    ad.attach(model, "ia3", "second", targets="mlp", seed=2)
    AdaptomeTrainer(model, arguments(run), collate, Examples(22, "bert")).train()
    folder = tmp_path / "run" / "checkpoint-3" / "adapters"
    assert sorted(p.name for p in folder.iterdir()) == ["default", "second"]
    again = model_of("bert")
    ad.attach(again, "ia3", "second", targets="mlp", seed=9)
    resumed = AdaptomeTrainer(again, arguments(run), collate, Examples(22, "bert"))
    resumed.train(resume_from_checkpoint=True)
    for name in ("default", "second"):
        for key, value in ad.parameters_of(model, name).items():
            assert torch.equal(value, ad.parameters_of(again, name)[key])


# -- refusals ----------------------------------------------------------------------------------------------------


def test_a_model_without_adapters_is_refused(tmp_path):
    model = BertForSequenceClassification(
        BertConfig(hidden_size=8, num_attention_heads=1, num_hidden_layers=1, vocab_size=9)
    )
    with pytest.raises(TrainingError, match="has no adapter"):
        AdaptomeTrainer(model, arguments(Run(tmp_path)), collate, Examples(4, "bert"))
    with pytest.raises(TrainingError, match="nothing of this"):
        AdaptomeTrainer(model.requires_grad_(False), arguments(Run(tmp_path)), collate, Examples(4, "bert"))


def test_starting_over_among_an_earlier_runs_checkpoints_is_refused(tmp_path):
    trained(tmp_path, num_train_epochs=1)
    with pytest.raises(TrainingError, match=r"up to step 6"):
        trainer_of(Run(tmp_path)).train()


def test_sharding_that_would_not_happen_is_refused(tmp_path, monkeypatch):
    args = arguments(Run(tmp_path, settings=(("fsdp", True), ("fsdp_config", {}))))
    distributed = property(
        lambda self: ParallelMode.DISTRIBUTED
    )  # as torchrun makes it; accelerate stays on the CPU
    monkeypatch.setattr(type(args), "parallel_mode", distributed)
    with pytest.raises(TrainingError, match="fsdp=True has no effect"):
        AdaptomeTrainer(model_of("bert"), args, collate, Examples(4, "bert"))


def test_pushing_checkpoints_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.Trainer.init_hf_repo", lambda self: None)
    args = arguments(Run(tmp_path, settings=(("push_to_hub", True),)))
    with pytest.raises(TrainingError, match="push_to_hub=True uploads"):
        AdaptomeTrainer(model_of("bert"), args, collate, Examples(4, "bert"))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda: ad_lora(alpha=99.0), "alpha=16.0"),
        (lambda: ad_lora(r=3), "r=2"),
        (lambda: ad_lora(name="other"), "holds the adapters default"),
        (lambda: ad_lora(method="dora"), "is lora"),
    ],
)
def test_resuming_with_another_adapter_is_refused(tmp_path, change, told):
    trained(tmp_path, num_train_epochs=1)
    trainer = AdaptomeTrainer(change(), arguments(Run(tmp_path)), collate, Examples(22, "bert"))
    with pytest.raises(CheckpointError, match=told):
        trainer.train(resume_from_checkpoint=True)


def ad_lora(method="lora", name="default", **settings):
    model = model_of("bert")
    ad.detach(model)
    settings = {"r": 2, "dropout": 0.2} | settings
    ad.attach(model, method, name, targets="attention", train=["classifier"], seed=1, **settings)
    return model


def test_resuming_on_another_base_is_refused(tmp_path):
    trained(tmp_path, num_train_epochs=1)
    model = model_of("bert")
    with torch.no_grad():
        for parameter in model.bert.embeddings.parameters():
            parameter.add_(1.0)
    trainer = AdaptomeTrainer(model, arguments(Run(tmp_path)), collate, Examples(22, "bert"))
    with pytest.raises(CheckpointError, match="other weights"):
        trainer.train(resume_from_checkpoint=True)


def test_a_named_checkpoint_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="is not a folder"):
        trainer_of(Run(tmp_path)).train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))


def test_nothing_is_unpickled(tmp_path, monkeypatch):
    trained(tmp_path, num_train_epochs=1)

    def refuse(*args, **kwargs):
        raise AssertionError("unpickled")

    for place, name in ((torch, "load"), (torch, "save"), (pickle, "load"), (pickle, "loads")):
        monkeypatch.setattr(place, name, refuse)
    again = trainer_of(Run(tmp_path))
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 12


# -- quantised bases ---------------------------------------------------------------------------------------------


def quantised(trainable=True):
    """A model that says of itself what a quantised one says; its layers are plain."""
    model = model_of("bert")
    model.is_quantized = True
    config = type("Config", (), {"quant_method": "awq"})()
    model.hf_quantizer = type("Quantizer", (), {"is_trainable": trainable, "quantization_config": config})()
    return model


def test_a_quantised_base_trains_and_keeps_no_mark(tmp_path):
    model = quantised()
    trainer = AdaptomeTrainer(
        model, arguments(Run(tmp_path, settings=(("max_steps", 2),))), collate, Examples(8, "bert")
    )
    trainer.train()
    assert not model._hf_peft_config_loaded


def test_a_quantisation_without_gradients_is_refused(tmp_path):
    with pytest.raises(TrainingError, match="quantised with awq"):
        AdaptomeTrainer(quantised(False), arguments(Run(tmp_path)), collate, Examples(8, "bert"))


def test_optimizer_groups_reach_the_optimizer(tmp_path):
    trainer = trainer_of(Run(tmp_path, settings=(("weight_decay", 0.3),)), loraplus_ratio=8.0)
    groups = trainer.create_optimizer().param_groups
    rates = {name.rsplit(".", 1)[-1]: g["lr"] for g in groups for name in g["param_names"]}
    assert rates == {"A": 0.02, "B": 0.16, "weight": 0.02, "bias": 0.02}
    assert {g["weight_decay"] for g in groups if "B" in str(g["param_names"])} == {0.3}


def test_the_log_says_what_the_run_did(tmp_path):
    trained(tmp_path)
    state = json.loads((tmp_path / "run" / "checkpoint-12" / "trainer_state.json").read_text())
    assert [entry["step"] for entry in state["log_history"]] == list(range(1, 13))


@pytest.mark.parametrize("fsdp, expected", [(False, True), (True, None)])
def test_a_recipes_adamw_is_one_kernel_but_over_shards(tmp_path, fsdp, expected):
    from adaptome.training.arguments import _optimizer

    named = _optimizer("adamw_torch", "cpu", fsdp)
    assert _optimizer("sgd", "cpu", fsdp) == "sgd"
    trainer = trainer_of(Run(tmp_path, settings=(("optim", named),)))
    assert bool(trainer.create_optimizer().param_groups[0]["fused"]) is bool(expected)
