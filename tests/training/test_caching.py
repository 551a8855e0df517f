"""Gradient caching: a batch in parts has the loss and the gradients of the whole, to the last places of float64, dropout included."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from transformers import TrainingArguments

import adaptome as ad
from adaptome.core.errors import TrainingError
from adaptome.core.steer import require
from adaptome.objectives import Term, Terms, get_objective
from adaptome.recipe import load_recipe
from adaptome.training.caching import in_parts, require_cacheable
from adaptome.training.trainer import AdaptomeTrainer
from tests.models.test_lvlm_embedder import adapted, batch, embedder


def uneven() -> dict[str, torch.Tensor]:
    """Five examples whose long captions differ in length, so that means of means would be wrong."""
    given = {
        k: v.double() if v.is_floating_point() else v for k, v in batch((21, 22, 23, 24), rows=5).items()
    }
    for row, length in enumerate((4, 1, 0, 3, 2)):
        given["targets"][row, 7 + length :] = -100
    given["input_ids"][:, 7:] += torch.arange(5)[:, None]
    given["targets"] = torch.where(given["targets"] >= 0, given["input_ids"], given["targets"])
    return given


def terms(model: nn.Module) -> Terms:
    info = get_objective("info-nce", left="image_embeds", right="text_embeds", learnable=False)
    return Terms(model, [Term(info, 2.0), Term(get_objective("next-token"))])


def gradients(model, given, size, seed=3) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    torch.manual_seed(seed)
    outputs = model(**given) if size is None else in_parts(model, given, size, lambda a, b: nullcontext())
    loss, _ = terms(model).loss(outputs, given)
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_gradients_are_those_of_the_plain_batch(size):
    model = adapted(embedder()).double().train()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    given = uneven()
    whole, plain = gradients(model, given, None)
    loss, cached = gradients(model, given, size)
    torch.testing.assert_close(loss, whole, rtol=1e-12, atol=0)
    assert plain.keys() == cached.keys() and len(plain) > 20
    for name in plain:
        torch.testing.assert_close(cached[name], plain[name], rtol=1e-9, atol=1e-13, msg=name)


def test_both_passes_draw_the_same_random_numbers():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.map, self.drop, self.seen = nn.Linear(4, 4).double(), nn.Dropout(0.5), []
            self.one = nn.Parameter(
                torch.ones(()).double()
            )  # used last: the second pass ends with what is kept last

        def forward(self, x):
            made = self.drop(self.map(x))
            self.seen.append(made.detach().clone())
            return {"image_embeds": made * self.one}

    torch.manual_seed(0)
    model, x = Noisy().train(), torch.randn(6, 4).double()
    outputs = in_parts(model, {"x": x}, 2, lambda a, b: nullcontext())
    assert len(model.seen) == 3
    outputs["image_embeds"].square().sum().backward()
    assert len(model.seen) == 6  # a part again when its backward begins, the last one first
    again = model.seen[3:][::-1]
    assert all(torch.equal(one, two) for one, two in zip(model.seen[:3], again, strict=True))
    kept = torch.cat(model.seen[:3])
    mask = (kept != 0) * 2.0  # dropout at a half doubles what it keeps
    torch.testing.assert_close(model.map.weight.grad, (2 * kept * mask).T @ x)


def test_the_trainer_ends_where_the_plain_one_does(tmp_path):
    given = {k: v.float() if v.is_floating_point() else v for k, v in uneven().items()}
    rows = [{k: v[i] for k, v in given.items()} for i in range(5)]

    def trained(size):
        model = adapted(embedder())
        args = TrainingArguments(
            str(tmp_path / str(size)), max_steps=3, per_device_train_batch_size=5, learning_rate=1e-3, save_strategy="no", logging_steps=1,
            report_to=[], use_cpu=True, remove_unused_columns=False, disable_tqdm=True, lr_scheduler_type="constant",
        )  # fmt: skip
        trainer = AdaptomeTrainer(model, args, train_dataset=rows, terms=terms(model), gradient_cache=size)
        trainer.train()
        return {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}

    plain, cached = trained(None), trained(2)
    assert plain.keys() == cached.keys()
    for name in plain:
        torch.testing.assert_close(cached[name], plain[name], rtol=1e-4, atol=1e-6)


def test_what_cannot_be_put_together_of_parts_is_refused():
    model = nn.Linear(2, 2)
    with pytest.raises(TrainingError, match="terms that see the whole batch"):
        require_cacheable(None)
    with pytest.raises(TrainingError, match="a mean over the rows"):
        require_cacheable(Terms(model, [Term(get_objective("model"))]))
    with pytest.raises(TrainingError, match="hidden_states"):
        require_cacheable(Terms(model, [Term(get_objective("info-nce", left="hidden_states"))]))
    with pytest.raises(TrainingError, match="'odd' has no row for each of the 3"):
        in_parts(model, {"x": torch.zeros(3, 2), "odd": torch.zeros(4)}, 2, lambda a, b: nullcontext())


def test_adapters_are_steered_by_the_facts_of_each_part():
    seen = []

    class Asking(nn.Module):
        def forward(self, x):
            seen.append((require("task", "test"), len(x)))
            return {"y": x.square()}  # which keeps x, so that the part is run again

    x = torch.ones(3, 1, requires_grad=True)
    names = ["a", "b", "c"]
    made = in_parts(Asking(), {"x": x}, 2, lambda start, stop: ad.steer(task=names[start:stop]))
    made["y"].sum().backward()
    assert seen == [(["a", "b"], 2), (["c"], 1), (["c"], 1), (["a", "b"], 2)]
    assert x.grad.unique().tolist() == [2.0]


def test_a_recipe_asks_for_it():
    assert load_recipe("vladva-llava").training.gradient_cache == 16
