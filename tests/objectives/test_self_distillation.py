"""DINOv2's terms against their equations, and its teacher."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

import adaptome as ad
from adaptome.core.errors import RecipeError, TrainingError
from adaptome.models import composite_models
from adaptome.objectives import Terms, get_objective
from adaptome.objectives.dinov2 import momentum, patch_loss, temperature, view_loss
from adaptome.objectives.self_distillation import Distilled, koleo, sinkhorn, taught, trained
from adaptome.objectives.terms import Term

SMALL = {
    "image_size": 16,
    "patch_size": 8,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
HEAD = {"prototypes": 6, "hidden": 8, "bottleneck": 4, "hold": 0}


def made(kind="dinov2", **settings):
    torch.manual_seed(0)
    model = composite_models()["view-encoder"].from_settings(
        encoder={"from_config": {"model_type": kind, **SMALL}}
    )
    terms = [Term(get_objective("dinov2", **HEAD, **settings))]
    also = Terms.install(model, terms)
    ad.attach(model, "lora", targets=["encoder.q", "encoder.v"], r=2, train=["encoder.norms", *also], seed=0)
    return model, Terms(model, terms), model.objective_parts["dinov2"]


def batch(views=2, local=1):
    torch.manual_seed(1)
    masks = torch.tensor([[[1, 0, 0, 1], [0, 0, 0, 0]], [[0, 1, 0, 0], [1, 1, 1, 0]]], dtype=torch.bool)
    found = {"pixel_values": torch.randn(2, views, 3, 16, 16), "masks": masks[:, :views]}
    return found | ({"local_pixels": torch.randn(2, local, 3, 8, 8)} if local else {})


def loss_of(model, terms, given, progress=0.0):
    with terms.watching():
        return terms.loss(model(**given), given, progress)[0]


def test_pairs_of_views_are_compared_by_cross_entropy_and_none_with_itself():
    torch.manual_seed(0)
    targets, scores = torch.rand(3, 2, 4).softmax(-1), torch.randn(3, 4, 4)
    pairs = [(t, s) for t in range(2) for s in range(4) if t != s]
    expected = sum(F.cross_entropy(scores[:, s], targets[:, t]) for t, s in pairs) / len(pairs)
    torch.testing.assert_close(view_loss(scores.log_softmax(-1), targets), expected)


def test_the_whole_loss_is_that_of_its_equation_with_a_centre():
    model, terms, parts = made(centring="softmax", koleo=0.3)
    given = batch()
    parts.centre.normal_()
    parts.patch_centre.normal_()
    centres = parts.centre.clone(), parts.patch_centre.clone()
    found = loss_of(model.train(), terms, given, progress=0.5)
    with torch.no_grad():  # the teacher is still the model
        own, whole = model(**given), model(given["pixel_values"])
        t = ((parts(whole["first"]) - centres[0]) / 0.07).softmax(-1)
        views = torch.cat([own["first"], own["local"]], 1)
        expected = view_loss((parts(views) / 0.1).log_softmax(-1), t)
        for b, v in ((0, 0), (1, 0), (1, 1)):
            hidden = given["masks"][b, v]
            p = ((parts(whole["patches"][b, v, hidden], patches=True) - centres[1]) / 0.07).softmax(-1)
            said = (parts(own["patches"][b, v, hidden], patches=True) / 0.1).log_softmax(-1)
            expected += -(p * said).sum(-1).mean() / 4
        expected += 0.3 * sum(koleo(own["first"][:, v]) for v in range(2))
    torch.testing.assert_close(found.detach(), expected, rtol=1e-5, atol=1e-5)
    mean = parts(whole["first"].flatten(0, 1)).mean(0)
    torch.testing.assert_close(
        parts.centre[0], (0.9 * centres[0][0] + 0.1 * mean).detach(), rtol=1e-4, atol=1e-5
    )


def test_only_hidden_patches_count():
    told, targets = torch.randn(3, 5).log_softmax(-1), torch.rand(3, 5).softmax(-1)
    masks = torch.zeros(1, 2, 4, dtype=torch.bool)
    masks[0, 0, :3] = True
    torch.testing.assert_close(patch_loss(told, targets, masks), -(targets * told).sum(-1).mean() / 2)
    model, terms, _ = made(dino=0, koleo=0)
    given = batch(local=0)
    given["masks"] = torch.zeros_like(given["masks"])
    assert float(loss_of(model, terms, given).detach()) == 0


def test_sinkhorn_gives_every_prototype_its_share_where_softmax_does_not():
    torch.manual_seed(0)
    scores = torch.randn(64, 8) + torch.tensor([5.0, *[0.0] * 7])
    shares = sinkhorn(scores, 0.5, rounds=20)
    torch.testing.assert_close(shares.sum(1), torch.ones(64))
    torch.testing.assert_close(shares.sum(0), torch.full((8,), 8.0), rtol=0.02, atol=0)
    assert (scores / 0.5).softmax(-1).sum(0)[0] > 50
    assert sinkhorn(scores[:0], 0.5).shape == (0, 8)
    assert sinkhorn(scores * 1000, 0.04).isfinite().all()


@pytest.mark.parametrize(("spread", "falls"), [(sinkhorn, False), (lambda t, at: (t / at).softmax(-1), True)])
def test_without_centring_all_pictures_are_told_to_be_of_one_prototype(spread, falls):
    torch.manual_seed(0)
    own, shared = (
        torch.nn.Parameter(0.1 * torch.randn(32, 4)),
        torch.nn.Parameter(torch.tensor([0.3, 0, 0, 0])),
    )
    teacher = own.detach() + shared.detach()
    optimizer = torch.optim.Adam([own, shared], 0.02)
    for _ in range(150):
        optimizer.zero_grad()
        said = ((own + shared) / 0.1).log_softmax(-1)
        targets = spread(teacher, 0.04)
        view_loss(torch.stack([said, said], 1), torch.stack([targets, targets], 1)).backward()
        optimizer.step()
        teacher = torch.lerp(teacher, (own + shared).detach(), 0.1)
    share = torch.bincount((own + shared).argmax(1), minlength=4) / 32
    entropy = -(share * share.clamp_min(1e-9).log()).sum()
    assert (float(entropy) < 0.5 * math.log(4)) == falls


def test_the_teacher_follows_what_trains_and_shares_what_is_frozen():
    model, terms, parts = made(momentum=0.9)
    own = trained(model)
    before = {name: value.clone() for name, value in parts.values().items()}
    assert set(before) == set(own) and sum(v.numel() for v in before.values()) < sum(p.numel() for p in model.parameters()) / 2  # fmt: skip
    with torch.no_grad():
        for value in own.values():
            value.add_(1)
    terms.stepped(0.0)
    for name, value in parts.values().items():
        torch.testing.assert_close(value, before[name] + 0.1)
    frozen = {name: p.data_ptr() for name, p in model.named_parameters() if not p.requires_grad}
    with taught(model, parts.values()):
        assert not torch.is_grad_enabled() and not model.training
        assert frozen == {n: p.data_ptr() for n, p in model.named_parameters() if not p.requires_grad}
        assert all(torch.equal(p.data, parts.values()[n]) for n, p in trained(model).items())
    assert all(torch.equal(p, own[n]) for n, p in trained(model).items()) and torch.is_grad_enabled()
    terms.end()
    assert all(torch.equal(p, parts.values()[n]) for n, p in trained(model).items())


def test_the_teacher_follows_in_small_steps_what_is_of_half_precision():
    layer, parts = torch.nn.Linear(2, 2, bias=False, dtype=torch.bfloat16), Distilled(4, 4, 3, 5, apart=False)
    layer.weight.data.fill_(1.0)
    parts.begin(layer)
    layer.weight.data.fill_(2.0)
    for _ in range(400):
        parts.follow(layer, 0.992)
    torch.testing.assert_close(parts.values()["weight"], torch.full((2, 2), 2 - 0.992**400))
    with taught(layer, parts.values()):
        assert layer.weight.dtype == torch.bfloat16 and (layer.weight < 2).all()


def test_the_teacher_is_the_teacher_under_autocast_too():
    layer, x = torch.nn.Linear(4, 4, bias=False), torch.randn(2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        own = layer(x)  # leaves a copy of the weight in half precision behind
        with taught(layer, {"weight": torch.zeros(4, 4)}):
            assert not layer(x).any()
        assert torch.equal(layer(x), own) and torch.is_autocast_cache_enabled()


def test_the_model_has_gradients_and_the_teacher_none():
    model, terms, parts = made()
    loss_of(model.train(), terms, batch()).backward()
    missing = [n for n, p in trained(model).items() if p.grad is None]
    assert missing == [] and not any(v.requires_grad for v in parts.values().values())
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


def test_courses_end_where_they_should():
    assert momentum(0.992, 0.0) == pytest.approx(0.992) and momentum(0.992, 1.0) == 1
    assert temperature((0.04, 0.07), 0.3, 0.0) == 0.04 and temperature(
        (0.04, 0.07), 0.3, 0.5
    ) == pytest.approx(0.07)
    assert temperature((0.04, 0.07), 0.3, 0.15) == pytest.approx(0.055)


def test_koleo_is_its_equation_and_prototypes_can_be_held():
    torch.manual_seed(0)
    x = torch.randn(5, 3, dtype=torch.float64)
    unit = F.normalize(x, dim=-1)
    away = (unit[:, None] - unit[None]).norm(dim=-1).fill_diagonal_(math.inf).min(1).values
    torch.testing.assert_close(koleo(x), -away.log().mean().float(), rtol=1e-4, atol=1e-4)
    assert float(koleo(x[:1])) == 0
    parts = Distilled(4, 4, 3, 5, apart=True)
    parts(torch.randn(2, 4), held=True).sum().backward()
    assert (
        parts.head.prototypes.weight.grad.abs().max() == 0
        and parts.head.layers[0].weight.grad.abs().max() > 0
    )
    assert parts.patch_head.layers[0].weight.grad is None


def test_what_cannot_be_compared_is_refused():
    model, terms, _ = made()
    given = batch(views=1, local=0)
    with pytest.raises(TrainingError, match=r"a picture has one.*task\.views at least 2"):
        loss_of(model, terms, given)
    with pytest.raises(RecipeError, match="centring"):
        get_objective("dinov2", centring="sinkhorm")
