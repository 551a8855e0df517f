"""Filtered ranks, by hand."""

import math

import pytest
import torch

from adaptome.tasks.ranking import FILL, collate, filtered_ranks, known, measured


def test_a_rank_passes_over_every_other_answer_and_halves_ties():
    #                         0    1    2    3    4    5
    scores = torch.tensor([[0.9, 0.8, 0.5, 0.8, 0.1, 0.5]])
    # 2 and 4 are asked for, 0 is known: 1 and 3 stand before 2, which ties with 5; before 4 stand 1, 3 and 5, and not 2
    labels = torch.tensor([[2, 4, known(0), FILL]])
    ranks = filtered_ranks(scores, labels)
    assert ranks[0, :2].tolist() == [3.5, 4.0] and ranks[0, 2:].isnan().all()
    mrr, *hits = measured(ranks)[0].tolist()
    assert mrr == pytest.approx((1 / 3.5 + 1 / 4) / 2) and hits == [0.0, 0.0, 1.0]
    # without the filter, 0 would stand before both
    assert filtered_ranks(scores, torch.tensor([[2, 4]]))[0].tolist() == [4.5, 5.0]


def test_a_constant_score_gets_the_middle_rank():
    ranks = filtered_ranks(torch.zeros(1, 6), torch.tensor([[3, known(0)]]))
    assert ranks[0, 0] == 1 + 4 / 2


def test_ranks_equal_a_loop_over_entities():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(4, (7, 12), generator=generator).double()  # many ties
    labels = torch.stack([torch.randperm(12, generator=generator)[:5] for _ in range(7)])
    labels[:, 3:] = known(1) * 0 - 2 - labels[:, 3:]
    ranks = filtered_ranks(scores, labels)
    for row in range(7):
        answers = {int(n) if n >= 0 else known(int(n)) for n in labels[row]}
        for place in range(3):
            own = scores[row, labels[row, place]]
            others = [float(scores[row, e]) for e in range(12) if e not in answers]
            wanted = 1 + sum(o > own for o in others) + sum(o == own for o in others) / 2
            assert ranks[row, place] == wanted
    assert ranks[:, 3:].isnan().all()


def test_known_answers_are_told_apart_from_fillings():
    assert all(known(n) < FILL and known(known(n)) == n for n in range(5))
    batch = collate([{"a": 1, "labels": [3]}, {"a": 2, "labels": [4, known(0)]}])
    assert batch["labels"].tolist() == [[3, FILL], [4, -2]] and batch["a"].tolist() == [1, 2]


def test_measures_are_means_over_the_hard_answers():
    ranks = torch.tensor([[1.0, 4.0, math.nan], [11.0, math.nan, math.nan]])
    assert measured(ranks).tolist() == [[0.625, 0.5, 0.5, 1.0], [pytest.approx(1 / 11), 0.0, 0.0, 0.0]]
