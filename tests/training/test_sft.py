"""TRL's SFTTrainer over adapters: same checkpoints, exact resume, nothing sent, dtypes kept."""

import pytest
import torch
from transformers import PreTrainedTokenizerFast, TrainerCallback

import adaptome as ad
from adaptome.core.errors import TrainingError
from adaptome.training.checkpoint import checkpoints, verify
from tests.training.killable import model_of

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", "<unk>", *"abcdefghij "])}
    fast = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=fast, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


def trainer_of(folder, tokenizer, model=None, callbacks=(), **settings):
    from adaptome.training.sft import AdaptomeSFTTrainer, SFTConfig

    rows = [{"prompt": "abc"[: 1 + i % 3], "completion": " " + "defghij"[: 2 + i % 4]} for i in range(20)]
    own = {
        "output_dir": str(folder), "num_train_epochs": 2, "per_device_train_batch_size": 2, "save_steps": 3,
        "gradient_accumulation_steps": 2, "learning_rate": 0.02, "max_length": 16, "bf16": False, "use_cpu": True,
        "report_to": [], "disable_tqdm": True, "gradient_checkpointing": False, "logging_steps": 1,
    }  # fmt: skip
    return AdaptomeSFTTrainer(
        model or model_of("llama"),
        SFTConfig(**own | settings),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=list(callbacks),
    )


class Interrupt(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 5:
            raise KeyboardInterrupt


@pytest.mark.parametrize("packing", [False, True])
def test_an_interrupted_run_resumes_to_the_same_bits(tmp_path, tokenizer, packing):
    settings = {"packing": packing, "packing_strategy": "wrapped", "save_steps": 2 if packing else 3}
    settings |= {"gradient_accumulation_steps": 1} if packing else {}
    whole = trainer_of(tmp_path / "whole", tokenizer, **settings)
    whole.train()
    with pytest.raises(KeyboardInterrupt):
        trainer_of(tmp_path / "cut", tokenizer, callbacks=[Interrupt()], **settings).train()
    again = trainer_of(tmp_path / "cut", tokenizer, **settings)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == whole.state.global_step > 5
    for name, value in ad.parameters_of(whole.model).items():
        assert torch.equal(value, ad.parameters_of(again.model)[name])
    for _, path in checkpoints(tmp_path / "cut"):
        verify(path)
        assert sorted(p.name for p in (path / "adapters").iterdir()) == ["default"]


def test_nothing_is_sent_anywhere(tmp_path, tokenizer, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("sent")

    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", refuse)
    trainer_of(tmp_path, tokenizer)


def test_adapters_on_a_quantised_base_keep_their_dtype(tmp_path, tokenizer):
    model = model_of("llama")
    model.is_loaded_in_4bit = True  # what TRL goes by; the layers are plain
    trainer = trainer_of(tmp_path, tokenizer, model, max_steps=2)
    assert {p.dtype for p in ad.parameters_of(model).values()} == {torch.float32}
    model.is_loaded_in_4bit = False  # accelerate would look for the device it was loaded on
    before = {name: p.detach().clone() for name, p in ad.parameters_of(model).items()}
    trainer.train()
    assert any(not torch.equal(p, before[name]) for name, p in ad.parameters_of(model).items())


def test_a_models_name_is_refused(tmp_path, tokenizer):
    with pytest.raises(TrainingError, match="attach an adapter"):
        trainer_of(tmp_path, tokenizer, "some/model")


def test_examples_that_nothing_is_learned_from_are_counted_and_refused_when_there_are_no_others(
    tmp_path, tokenizer
):
    from adaptome.core.errors import DataError

    assert trainer_of(tmp_path / "a", tokenizer).notes == []
    few = trainer_of(tmp_path / "b", tokenizer, max_length=3)
    assert few.notes == [
        "6 of 20 examples of train were left out: their prompts fill all 3 tokens (task.max_length)."
    ]
    with pytest.raises(
        DataError, match=r"every example of train is longer than 1 tokens .*\n.*task\.max_length"
    ):
        trainer_of(tmp_path / "c", tokenizer, max_length=1)


def both(trainer, **inputs):
    """Ours and TRL's loss of one batch, each with the adapters' gradients and the metrics."""
    from trl import SFTTrainer

    found = []
    for kind in (type(trainer), SFTTrainer):
        trainer.model.zero_grad()
        trainer._metrics["train"].clear()
        loss = kind.compute_loss(trainer, trainer.model, dict(inputs), num_items_in_batch=torch.tensor(9))
        loss.backward()
        gradients = {name: p.grad.clone() for name, p in ad.parameters_of(trainer.model).items()}
        found.append((loss.detach(), gradients, {k: v[-1] for k, v in trainer._metrics["train"].items()}))
    return found


@pytest.mark.parametrize("packing", [False, True])
def test_loss_gradients_and_metrics_are_those_of_trls_forward(tmp_path, tokenizer, packing, monkeypatch):
    monkeypatch.setattr("adaptome.objectives.deferred.DeferredLogits.whole", None)  # nobody makes all of them
    model = model_of("llama", dropout=0.0)
    for p in ad.parameters_of(model).values():
        torch.nn.init.normal_(p, std=0.1)
    trainer = trainer_of(tmp_path, tokenizer, model, packing=packing)
    trainer.model.train()
    batch = next(iter(trainer.get_train_dataloader()))
    ours, theirs = both(trainer, **batch)
    torch.testing.assert_close(ours[0], theirs[0])
    for name, gradient in theirs[1].items():
        assert gradient.abs().sum() > 0
        torch.testing.assert_close(ours[1][name], gradient)
    steps = {"num_tokens"}
    assert ours[2].keys() == theirs[2].keys() >= {"entropy", "mean_token_accuracy"} | steps
    for name in ours[2].keys() - steps:
        assert ours[2][name] == pytest.approx(theirs[2][name], rel=1e-4)
    assert theirs[2]["num_tokens"] == 2 * ours[2]["num_tokens"]


def test_a_model_that_hands_no_items_on_is_scaled_by_them_all_the_same(tmp_path, tokenizer):
    model = model_of("llama", dropout=0.0)
    trainer = trainer_of(tmp_path, tokenizer, model)
    batch = dict(next(iter(trainer.get_train_dataloader())))
    expected = trainer.compute_loss(model, dict(batch), num_items_in_batch=torch.tensor(9))
    trainer.model_accepts_loss_kwargs = False
    torch.testing.assert_close(
        trainer.compute_loss(model, dict(batch), num_items_in_batch=torch.tensor(9)), expected
    )


@pytest.mark.filterwarnings("ignore:`label_smoothing_factor`:FutureWarning")
def test_label_smoothing_costs_no_second_forward_and_is_the_cross_entropys(tmp_path, tokenizer):
    model, calls = model_of("llama", dropout=0.0), []
    trainer = trainer_of(tmp_path, tokenizer, model, label_smoothing_factor=0.2)
    batch = dict(next(iter(trainer.get_train_dataloader())))
    model.model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    loss, outputs = trainer.compute_loss(model.train(), batch, return_outputs=True)
    assert len(calls) == 1
    expected = torch.nn.functional.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), label_smoothing=0.2)  # fmt: skip
    torch.testing.assert_close(loss, expected)


def test_an_adapter_on_the_head_is_trained_and_refused_where_it_would_be_passed_over(tmp_path, tokenizer):
    from adaptome.training.sft import AdaptomeSFTTrainer

    model = model_of("llama")
    ad.detach(model)
    ad.attach(model, "lora", targets="=lm_head")
    trainer = trainer_of(tmp_path / "a", tokenizer, model, max_steps=2)
    trainer.train()
    assert model.lm_head.adaptome["default"].B.abs().sum() > 0
    assert AdaptomeSFTTrainer.captures_outputs
    dft = trainer_of(tmp_path / "b", tokenizer, model, max_steps=1, loss_type="dft")
    with pytest.raises(TrainingError, match="adapter on the head would be passed over"):
        dft.train()
