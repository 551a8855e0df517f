"""Views of a picture and the patches that are hidden in them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adaptome.data.views import Crops, Hidden, blurred, crop, recoloured, resized, turned


def generator(seed=0):
    return np.random.default_rng(seed)


def test_views_follow_from_the_generator_and_show_the_share_asked_for():
    picture = torch.rand(3, 40, 30)
    crops = Crops(3, 16, (0.3, 1.0), dihedral=True)
    views = crops.draw(picture, generator())
    assert views.shape == (3, 3, 16, 16) and torch.equal(views, crops.draw(picture, generator()))
    assert not torch.equal(views, crops.draw(picture, generator(1)))
    assert views.min() >= 0 and views.max() <= 1
    ramp = torch.linspace(0, 1, 60).expand(1, 60, 60)  # what a window shows of it tells its width
    widths = [
        float(w.max() - w.min()) for w in (crop(ramp, 20, (0.25, 0.25), generator(i)) for i in range(40))
    ]
    assert 0.38 < min(widths) and max(widths) < 0.62


def test_colours_change_alike_for_rgb_and_bands_and_nothing_changes_at_strength_0():
    rgb, bands = torch.rand(3, 8, 8), torch.rand(5, 8, 8)
    for picture in (rgb, bands):
        assert not torch.equal(recoloured(picture, 1.0, generator(3)), picture)
        assert recoloured(picture, 1.0, generator(3)).shape == picture.shape
    plain = Crops(1, 8, (1.0, 1.0), colour=0).draw(torch.rand(2, 8, 8), generator())
    assert plain.shape == (1, 2, 8, 8)
    grey = [recoloured(rgb, 1.0, generator(i)) for i in range(60)]
    share = np.mean([bool(torch.allclose(one[0], one[1])) for one in grey])
    assert 0.08 < share < 0.35


def test_blur_keeps_the_mean_and_turns_keep_every_pixel():
    picture = torch.rand(2, 12, 12)
    flat = blurred(torch.full((2, 12, 12), 0.3), 1.5)
    torch.testing.assert_close(flat, torch.full((2, 12, 12), 0.3))
    assert blurred(picture, 1.5).var() < picture.var() / 2
    made = {turned(picture, generator(i), True).numpy().tobytes() for i in range(60)}
    assert len(made) == 8
    assert all(
        torch.equal(turned(picture, generator(i), False).sort().values, picture.sort().values)
        for i in range(3)
    )
    assert resized(picture, 12) is picture and resized(picture, 7).shape == (2, 7, 7)


@pytest.mark.parametrize("blocks", [True, False])
def test_as_many_patches_are_hidden_as_asked(blocks):
    shares = [Hidden((0.25, 0.25), 1.0, blocks).draw(8, 2, generator(i)).mean() for i in range(20)]
    assert np.allclose(shares, 0.25)
    drawn = [Hidden((0.1, 0.5), 0.5, blocks).draw(8, 1, generator(i)).mean() for i in range(200)]
    assert (
        0.35 < np.mean(np.array(drawn) > 0) < 0.65 and 0.09 < min(d for d in drawn if d) and max(drawn) < 0.51
    )
    both = Hidden((0.25, 0.25), 1.0, blocks).draw(8, 2, generator(0)).reshape(2, 64)
    assert (both[0] == both[1]).all() == blocks  # blocks hide a place, single patches are drawn in each group


def test_blocks_lie_together():
    def neighbours(mask):
        return (mask[1:] & mask[:-1]).sum() + (mask[:, 1:] & mask[:, :-1]).sum()

    pairs = [
        sum(
            neighbours(Hidden((0.4, 0.4), 1.0, blocks).draw(12, 1, generator(i)).reshape(12, 12))
            for i in range(20)
        )
        for blocks in (True, False)
    ]
    assert pairs[0] > 1.3 * pairs[1]
