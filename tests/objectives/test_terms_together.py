"""Terms with a model: what they look at, what they weigh, and that memory tricks change no number."""

import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments

import adaptome as ad
from adaptome.core.errors import RecipeError, TrainingError
from adaptome.objectives import PARTS, Needs, Objective, Schedule, Term, Terms, get_objective
from adaptome.training.trainer import AdaptomeTrainer
from tests.core.models import IDS, llama, move


def term(name, weight=1.0, schedule="constant", label="", **settings):
    return Term(get_objective(name, **settings), weight, Schedule.model_validate(schedule), label)


def adapted(terms=(), **settings):
    model = llama()
    also = Terms.install(model, terms)
    ad.attach(model, "lora", r=2, targets="all-linear", train=also, seed=0, **settings)
    move(model)
    return model.train()


def test_terms_are_weighed_scheduled_and_summed():
    model = adapted()
    terms = Terms(model, [term("model", 2.0), term("cross-entropy", 0.5, "linear-up", "again")])
    with terms.watching():
        outputs = model(IDS % 32, labels=IDS % 32)
        loss, values = terms.loss(outputs, {"labels": IDS % 32}, progress=0.4)
    assert set(values) == {"model", "again"}
    torch.testing.assert_close(
        values["again"], values["model"]
    )  # a causal model's own loss is the shifted cross-entropy
    torch.testing.assert_close(loss, 2.2 * values["model"])
    with pytest.raises(RecipeError, match="two terms are called 'model'"):
        Terms(model, [term("model"), term("model")])


def test_what_modules_gave_is_seen_and_no_hook_is_left():
    model = adapted()
    terms = Terms(model, [term("activation-density", targets="down")])

    def hooks():
        return sum(len(m._forward_hooks) for m in model.modules())

    before = hooks()
    with terms.watching():
        outputs = model(IDS % 32)
        loss, _ = terms.loss(outputs, {})
        loss.backward()
    assert hooks() == before
    kept = {}
    handles = [
        layer.mlp.down_proj.register_forward_hook(lambda m, args, out, i=i: kept.__setitem__(i, args[0]))
        for i, layer in enumerate(model.model.layers)
    ]
    model(IDS % 32)
    phi = [(o.square() / (o.square() + 1e-7)).mean() for o in kept.values()]
    assert len(phi) == 2
    torch.testing.assert_close(loss.detach(), torch.stack(phi).mean())
    [handle.remove() for handle in handles]
    with pytest.raises(TrainingError, match="none of them ran"):
        terms.loss(outputs, {})


def test_a_teacher_is_the_base_in_evaluation_without_its_adapters():
    model = llama()
    with torch.no_grad():
        base = model(IDS % 32).logits
    ad.attach(model, "lora", r=2, targets="all-linear", dropout=0.5, seed=0)
    move(model)
    model.train()
    asked = []

    class Look(Objective):
        name = "look"

        def needs(self):
            return Needs(teacher="base", second=True)

        def value(self, outputs, batch, seen):
            asked.append((seen.teacher.logits, outputs.logits, seen.second.logits))
            return outputs.logits.mean()

    terms = Terms(model, [Term(Look(None))])
    with terms.watching():
        terms.loss(model(IDS % 32), {"input_ids": IDS % 32})
    teacher, first, second = asked[0]
    assert torch.equal(teacher, base) and not teacher.requires_grad
    assert not torch.equal(first, second)  # another draw of the dropout
    assert model.training and ad.active(model) == ["default"]


def test_a_second_view_is_read_from_its_own_columns():
    model, other = adapted(), (IDS + 3) % 32
    terms = Terms(model, [term("info-nce", left="hidden_states", right="second")])
    with terms.watching():
        outputs = model(IDS % 32, **terms.asks())
        loss, _ = terms.loss(outputs, {"input_ids": IDS % 32, "second_input_ids": other})
    u, v = (
        nn.functional.normalize(model(x, output_hidden_states=True).hidden_states[-1].mean(1), dim=-1)
        for x in (IDS % 32, other)
    )
    scores = u @ v.T / 0.07
    right = torch.arange(2)
    wanted = (nn.functional.cross_entropy(scores, right) + nn.functional.cross_entropy(scores.T, right)) / 2
    torch.testing.assert_close(loss, wanted)


def test_what_a_term_trains_is_saved_with_the_adapter_and_its_buffers_in_checkpoints(tmp_path):
    terms = [
        term("info-nce", left="hidden_states", right="second", learnable=True),
        term("margin-softmax", kind="adaface"),
    ]
    model = adapted(terms)
    assert f"{PARTS}.info-nce.log_scale" in ad.parameters_of(model)
    ad.save(model, tmp_path / "a")
    again = llama()
    Terms.install(again, terms)
    ad.load(again, tmp_path / "a")
    state = Terms(model, terms).state()
    assert set(state) == {"margin-softmax.mean", "margin-softmax.deviation"}
    Terms(model, terms).restore({k: v + 1 for k, v in state.items()})
    assert float(Terms(model, terms).state()["margin-softmax.mean"]) == 21


def gradients(model):
    return {k: p.grad.clone() for k, p in ad.parameters_of(model).items()}


@pytest.mark.parametrize("how", ["checkpointing", "compile"])
def test_memory_and_speed_tricks_change_no_number(how):
    def step(trick):
        model = adapted()
        terms = Terms(model, [term("cross-entropy"), term("activation-density", 0.3, phi="tanh", beta=1.0)])
        run = model
        if trick == "checkpointing":
            model.gradient_checkpointing_enable({"use_reentrant": False})
        elif trick == "compile":
            run = torch.compile(model, backend="aot_eager")
        for _ in range(2):
            model.zero_grad()
            with terms.watching():
                loss, _ = terms.loss(run(IDS % 32), {"labels": IDS % 32})
                loss.backward()
        return loss.detach(), gradients(model)

    plain, tricked = step(None), step(how)
    torch.testing.assert_close(plain[0], tricked[0])
    for key, grad in plain[1].items():
        torch.testing.assert_close(grad, tricked[1][key])


def test_reentrant_checkpointing_hides_activations_and_is_told():
    model = adapted()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    terms = Terms(model, [term("activation-density")])
    with terms.watching(), pytest.raises(TrainingError, match="use_reentrant=False"):
        terms.loss(model(IDS % 32), {})


def test_no_memory_grows_over_steps():
    model = adapted()
    terms = Terms(model, [term("activation-density")])
    for _ in range(5):
        with terms.watching():
            terms.loss(model(IDS % 32), {})[0].backward()
    assert not any(terms._watched.values()) and not terms._hooks


# -- in the Trainer ----------------------------------------------------------------------------------------------------


def trainer(folder, terms, batch=4, accumulate=1, rows=8, **more):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=20,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = BertForSequenceClassification(config)
    also = Terms.install(model, terms)
    ad.attach(model, "lora", r=2, targets="attention", train=["classifier", *also], seed=0)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 20, (rows, 6), generator=generator).tolist()
    data = Dataset.from_dict({"input_ids": ids, "labels": [i % 2 for i in range(rows)]})
    args = TrainingArguments(
        str(folder), per_device_train_batch_size=batch, gradient_accumulation_steps=accumulate, max_steps=3,
        learning_rate=1e-2, use_cpu=True, report_to=[], disable_tqdm=True, logging_steps=1, save_strategy="no",
        max_grad_norm=0.0, **more,
    )  # fmt: skip
    return AdaptomeTrainer(
        model, args, train_dataset=data, eval_dataset=data, terms=Terms(model, terms) if terms else None
    )


def final(made):
    return {k: p.detach().clone() for k, p in ad.parameters_of(made.model).items()}


def test_the_trainer_logs_every_term_and_sums_them(tmp_path):
    made = trainer(
        tmp_path, [term("model"), term("activation-density", 0.5, targets="output.dense", label="density")]
    )
    made.train()
    logs = [entry for entry in made.state.log_history if "loss" in entry]
    assert len(logs) == 3
    for entry in logs:
        assert entry["loss"] == pytest.approx(entry["loss/model"] + 0.5 * entry["loss/density"], rel=1e-4)
    found = made.evaluate()
    assert found["eval_loss"] == pytest.approx(
        found["eval_loss/model"] + 0.5 * found["eval_loss/density"], rel=1e-4
    )


def test_the_models_own_loss_as_a_term_trains_the_same_bits(tmp_path):
    plain, termed = trainer(tmp_path / "a", []), trainer(tmp_path / "b", [term("model")])
    plain.train(), termed.train()
    a, b = final(plain), final(termed)
    assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize(
    "names", [("cross-entropy",), ("model", "activation-density"), ("cross-entropy", "activation-density")]
)
def test_accumulated_batches_give_the_steps_of_one_large_batch(tmp_path, names):
    made = [term(n, **({"targets": "output.dense"} if n == "activation-density" else {})) for n in names]
    whole, parts = (
        trainer(tmp_path / "a", made, batch=8),
        trainer(tmp_path / "b", made, batch=2, accumulate=4),
    )
    whole.train(), parts.train()
    a, b = final(whole), final(parts)
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-3, atol=1e-5)


def test_a_weight_of_zero_changes_no_bit(tmp_path):
    one = trainer(tmp_path / "a", [term("model")])
    two = trainer(tmp_path / "b", [term("model"), term("activation-density", 0.0, targets="output.dense")])
    one.train(), two.train()
    a, b = final(one), final(two)
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_columns_set_aside_steer_and_feed_terms_and_never_reach_the_model(tmp_path):
    seen = []

    class Look(Objective):
        name = "look"

        def value(self, outputs, batch, seen_):
            seen.append((batch["quality"].tolist(), ad.steered("quality").tolist()))
            return outputs["logits"].mean() * 0

    made = trainer(tmp_path, [term("model"), Term(Look(None))], remove_unused_columns=False)
    made.aside, made.facts = ("quality",), lambda batch: {"quality": batch["quality"]}
    made.train_dataset = made.train_dataset.add_column("quality", [float(i) for i in range(8)])
    made.eval_dataset = made.train_dataset
    made.train()
    made.evaluate()
    assert all(column == steered for column, steered in seen) and len(seen) == 3 + 1
    assert ad.steered("quality") is None
