"""Density of activations: of the right modules, by hand, with padding, stacks and gates; and in a run's metrics."""

import copy

import pytest
import torch
from datasets import Dataset
from transformers import T5Config, T5ForConditionalGeneration, TrainingArguments

import adaptome as ad
from adaptome.core.activations import mlps
from adaptome.core.errors import TrainingError
from adaptome.objectives import Term, Terms, get_objective
from adaptome.training.trainer import AdaptomeTrainer
from tests.core.models import bert, move

SETTINGS = {
    "d_model": 8, "d_ff": 12, "d_kv": 4, "num_heads": 2, "vocab_size": 20, "num_layers": 2, "num_decoder_layers": 3, "dropout_rate": 0.0,
}  # fmt: skip


def t5(**settings):
    torch.manual_seed(0)
    return T5ForConditionalGeneration(T5Config(**SETTINGS, decoder_start_token_id=0, **settings)).eval()


def recorded(model, batch):
    """The outputs of the activations, by a hook of the test's own."""
    kept, handles = {}, []
    for mlp in mlps(model):
        module = model.get_submodule(mlp.activation)
        handles.append(
            module.register_forward_hook(lambda m, a, out, p=mlp.activation: kept.__setitem__(p, out))
        )
    with torch.no_grad():
        model(**batch)
    [handle.remove() for handle in handles]
    return kept


def evaluated(model, batch, **settings):
    terms = Terms(model, [Term(get_objective("activation-density", **settings))])
    with torch.no_grad(), terms.watching():
        loss, _ = terms.loss(model(**batch), batch)
    return loss, terms.measured


BATCH = {
    "input_ids": torch.tensor([[5, 6, 7, 8], [9, 4, 0, 0], [3, 2, 1, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]]),
    "labels": torch.tensor([[3, 4, 1], [6, -100, -100], [7, 1, -100]]),
}


@pytest.mark.parametrize("form", ["relu", "gated-gelu"])
@pytest.mark.parametrize("masked", [True, False])
def test_encoder_and_decoder_are_counted_apart_and_padding_left_out(form, masked):
    model = t5(feed_forward_proj=form)
    loss, measured = evaluated(model, BATCH, mask=masked, threshold=0.05)
    wanted, smooth = {}, 0.0
    for stack, mask in (("encoder", BATCH["attention_mask"]), ("decoder", (BATCH["labels"] != -100).long())):
        outs = [o for path, o in recorded(model, BATCH).items() if path.startswith(stack)]
        rows = [[i for i in range(mask.shape[1]) if not masked or row[i]] for row in mask]
        for name, least in (("density", 0.0), ("density_above", 0.05)):
            layers = [
                sum(float((o[b][kept].abs() > least).double().mean()) for b, kept in enumerate(rows)) / 3
                for o in outs
            ]
            wanted[f"{name}_{stack}"] = sum(layers) / len(layers)
        tokens = [torch.cat([o[b][kept] for b, kept in enumerate(rows)]).double() for o in outs]
        smooth += sum(float((o**2 / (o**2 + 1e-7)).mean()) for o in tokens) / len(tokens)
    assert measured.keys() == wanted.keys()
    for name, value in wanted.items():
        assert float(measured[name]) == pytest.approx(value, abs=1e-6), name
    assert float(loss) == pytest.approx(smooth, rel=1e-5)


def test_gates_weigh_the_layers():
    model = bert().eval()
    batch = {"input_ids": BATCH["input_ids"], "attention_mask": BATCH["attention_mask"]}
    with pytest.raises(TrainingError, match="mlp-gate"):
        evaluated(model, batch, gated=True)
    ad.attach(model, "mlp-gate")
    gates = [m.adaptome["default"] for m in model.modules() if hasattr(m, "adaptome")]
    for number, gate in enumerate(gates):
        gate.a.data.fill_(number - 1.0)
    outs = recorded(model, batch)
    mask = batch["attention_mask"].bool()
    each = [(o[mask].double() ** 2 / (o[mask].double() ** 2 + 1e-7)).mean() for o in outs.values()]
    g = [torch.tensor(number - 1.0).double().sigmoid() for number in range(len(each))]
    loss, _ = evaluated(model, batch, gated=True)
    assert len(gates) == len(each) > 1
    assert float(loss) == pytest.approx(
        float(sum(a * b for a, b in zip(g, each, strict=True)) / len(g)), rel=1e-5
    )
    model.train()
    terms = Terms(model, [Term(get_objective("activation-density", gated=True))])
    with terms.watching():
        terms.loss(model(**batch), batch)[0].backward()
    assert all(float(gate.a.grad) > 0 for gate in gates)  # gradient descent closes gates where density costs


def test_adapters_after_the_first_mlp_do_not_change_its_density():
    model = bert().eval()
    batch = {"input_ids": BATCH["input_ids"], "attention_mask": BATCH["attention_mask"]}
    before = list(recorded(model, batch).values())
    ad.attach(model, "pfeiffer", size=2)
    move(model)
    after = list(recorded(model, batch).values())
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1])


def trainer(folder, model, objectives, **settings):
    data = Dataset.from_dict(
        {"input_ids": [[5, 6, 7], [9, 4, 2], [3, 2, 1], [8, 8, 1]], "labels": [0, 1, 0, 1]}
    )
    args = TrainingArguments(
        str(folder), max_steps=settings.pop("steps", 3), per_device_train_batch_size=2, report_to=[], seed=3, use_cpu=True,
        disable_tqdm=True, save_strategy="no", learning_rate=0.05, **settings,
    )  # fmt: skip
    terms = None if objectives is None else Terms(model, objectives)
    return AdaptomeTrainer(model, args, train_dataset=data, eval_dataset=data, terms=terms)


def test_weight_0_trains_bit_for_bit_as_without_and_the_base_stays(tmp_path):
    first = bert().train()
    ad.attach(first, "lora", r=2, targets="attention", train=["classifier"], seed=0)
    second = copy.deepcopy(first)
    base = {
        k: v.clone() for k, v in first.state_dict().items() if "adaptome" not in k and "classifier" not in k
    }
    trainer(tmp_path / "a", first, None).train()
    terms = [Term(get_objective("model")), Term(get_objective("activation-density"), 0.0)]
    other = trainer(tmp_path / "b", second, terms)
    other.train()
    for (name, a), (_, b) in zip(first.state_dict().items(), second.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    after = second.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in base.items())
    found = other.evaluate()
    assert 0 < found["eval_density"] <= 1 and found["eval_density_above"] <= found["eval_density"]


def test_checkpointing_changes_no_number(tmp_path):
    losses = []
    for checkpointing in (False, True):
        model = bert().train()
        ad.attach(model, "lora", r=2, targets="attention", seed=0)
        settings = {
            "gradient_checkpointing": checkpointing,
            "gradient_checkpointing_kwargs": {"use_reentrant": False},
        }
        terms = [Term(get_objective("model")), Term(get_objective("activation-density"), 1.0)]
        made = trainer(tmp_path / str(checkpointing), model, terms, logging_steps=1, **settings)
        made.train()
        losses.append([entry["loss"] for entry in made.state.log_history if "loss" in entry])
    assert len(losses[0]) == 3 and losses[0] == losses[1]
