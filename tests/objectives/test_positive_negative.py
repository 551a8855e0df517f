"""positive-negative: against its equation, its parts, and streams that are missing."""

import pytest
import torch
from torch.nn import functional as F

from adaptome.objectives import get_objective
from adaptome.objectives.base import Seen

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.1, 0.2, -3.0]])
LABELS = torch.tensor([0, 1])


def value(outputs, **settings):
    batch = {"labels": LABELS}
    return get_objective("positive-negative", **settings).value(outputs, batch, Seen(torch.nn.Identity()))


def by_hand(logits, y):
    wrong = [c for c in range(3) if c != y]
    return -logits.log_softmax(0)[y] - F.logsigmoid(logits[y]) - sum(F.logsigmoid(-logits[c]) for c in wrong) / 2  # fmt: skip


def test_it_is_the_equation():
    expected = torch.stack([by_hand(row, int(y)) for row, y in zip(LOGITS, LABELS, strict=True)]).mean()
    torch.testing.assert_close(value({"logits": LOGITS}), expected)
    torch.testing.assert_close(value({"logits": LOGITS}, negative=0), F.cross_entropy(LOGITS, LABELS))


def test_streams_count_where_they_are():
    each = torch.stack([LOGITS, -LOGITS], 1)
    there = torch.tensor([[True, False], [True, True]])
    found = value({"logits": LOGITS, "stream_logits": each, "available": there}, streams=0.5)
    alone = [by_hand(LOGITS[0], 0), by_hand(LOGITS[1], 1) + by_hand(-LOGITS[1], 1)]
    torch.testing.assert_close(found, value({"logits": LOGITS}) + 0.5 * sum(alone) / 2)


def test_it_pushes_the_right_class_over_half_and_the_others_below():
    o = torch.zeros(1, 3, requires_grad=True)
    get_objective("positive-negative").value({"logits": o}, {"labels": torch.tensor([2])}, Seen(torch.nn.Identity())).backward()  # fmt: skip
    assert o.grad is not None and o.grad[0, 2] < 0 < o.grad[0, 0] == pytest.approx(float(o.grad[0, 1]))
