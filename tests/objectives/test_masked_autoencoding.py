"""The loss of masked autoencoders against its equation."""

from __future__ import annotations

import pytest
import torch

from adaptome.core.errors import TrainingError
from adaptome.objectives import Seen, get_objective


def value(said, target, masked, **settings):
    outputs = {"reconstruction": said, "target": target, "masked": masked}
    return get_objective("masked-autoencoding", **settings).value(outputs, {}, Seen(torch.nn.Identity()))


def test_hidden_patches_alone_count_each_by_its_own_mean_and_spread():
    torch.manual_seed(0)
    said, target = torch.randn(2, 4, 6), 3 + 2 * torch.randn(2, 4, 6)
    masked = torch.tensor([[1, 0, 1, 0], [0, 1, 1, 0]], dtype=torch.bool)
    rows = target[masked]
    normed = (rows - rows.mean(-1, keepdim=True)) / (rows.var(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(value(said, target, masked), (said[masked] - normed).square().mean())
    torch.testing.assert_close(
        value(said, target, masked, norm_pixels=False), (said[masked] - rows).square().mean()
    )
    other = target.clone()
    other[~masked] = torch.nan
    torch.testing.assert_close(value(said, other, masked), value(said, target, masked))


def test_groups_count_by_their_patches_and_none_hidden_is_refused():
    torch.manual_seed(0)
    said, target = [torch.randn(1, 3, 4), torch.randn(1, 3, 2)], [torch.randn(1, 3, 4), torch.randn(1, 3, 2)]
    masked = [torch.tensor([[True, True, False]]), torch.tensor([[False, True, False]])]
    alone = [value(*one, norm_pixels=False) for one in zip(said, target, masked, strict=True)]
    torch.testing.assert_close(value(said, target, masked, norm_pixels=False), (2 * alone[0] + alone[1]) / 3)
    with pytest.raises(TrainingError, match="no patch of the batch is masked"):
        value(said[0], target[0], masked[0] & False)
