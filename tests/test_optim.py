"""Optimizer groups."""

import pytest
import torch
from torch import nn

import adaptome as ad
from adaptome.optim import PowerCourse, parameter_groups


def model():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3))
    ad.attach(net, "lora", r=2, targets=["0"], train=["2"])
    return net


def test_only_b_learns_faster_and_only_matrices_decay():
    found = {}
    for group in parameter_groups(model(), lr=0.1, weight_decay=0.5, ratio=16.0):
        for name in group["param_names"]:
            found[name.rsplit(".", 1)[-1]] = (group["lr"], group["weight_decay"])
    assert found == {"A": (0.1, 0.5), "B": (1.6, 0.5), "weight": (0.1, 0.5), "bias": (0.1, 0.0)}


def test_without_a_ratio_everything_learns_alike():
    assert {group["lr"] for group in parameter_groups(model(), lr=0.1)} == {0.1}


def test_every_trainable_parameter_is_in_one_group_and_no_other_is():
    net = model()
    net[0].adaptome["default"].B.requires_grad_(False)
    grouped = [id(p) for group in parameter_groups(net, 0.1, 0.5, 4.0) for p in group["params"]]
    assert sorted(grouped) == sorted({id(p) for p in net.parameters() if p.requires_grad})
    assert all(group["params"] for group in parameter_groups(net, 0.1, 0.5, 4.0))


def test_the_order_does_not_depend_on_when_an_adapter_was_attached():
    def names(*order):
        net = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3))
        for place in order:
            ad.attach(net, "lora", f"on{place}", r=2, targets=[place])
        ad.activate(net, ["on0", "on1"])
        return [group["param_names"] for group in parameter_groups(net, 0.1, 0.5, 4.0)]

    assert names("0", "1") == names("1", "0")


def test_a_torch_optimizer_takes_the_groups():
    net = model()
    optimizer = torch.optim.AdamW(parameter_groups(net, 0.1, 0.5, 4.0))
    net(torch.randn(5, 4)).sum().backward()
    before = net[0].adaptome["default"].B.detach().clone()
    optimizer.step()
    assert not torch.equal(net[0].adaptome["default"].B, before)


def test_a_power_course_rises_falls_as_a_power_and_keeps_its_floor():
    """PeftCD's: 3,000 steps up to 3e-4, then cubic, not below 3e-5, which holds in the warm-up too."""
    course = PowerCourse(power=3, floor=0.1)
    rates = [3e-4 * course.factor(step, 3000, 15000) for step in (0, 150, 600, 3000, 9000, 15000, 20000)]
    assert rates == pytest.approx([3e-5, 3e-5, 6e-5, 3e-4, 3e-4 / 8, 3e-5, 3e-5])
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler, seen = course.scheduler(optimizer, 2, 6), []
    for _ in range(7):
        seen.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert seen == pytest.approx([0.2, 1, 2, 2 * 0.75**3, 2 * 0.5**3, 0.2, 0.2])
    with pytest.raises(ValueError, match="floor=2"):
        PowerCourse(floor=2)
