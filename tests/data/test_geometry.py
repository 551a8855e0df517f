"""Geometric changes made of several pictures alike."""

from __future__ import annotations

import numpy as np
import pytest

from adaptome.data.geometry import Drawn, Geometry, cropped


def drawn(**changes) -> Drawn:
    given = dict(turns=0, flipped=False, angle=0.0, factor=1.0, cells=None, height=9, width=9)
    return Drawn(**{**given, **changes})


def test_the_eight_symmetries_put_pixels_elsewhere_and_mix_none():
    picture = np.random.default_rng(0).integers(0, 255, (9, 9, 3)).astype(np.uint8)
    seen = set()
    for turns in range(4):
        for flipped in (False, True):
            moved = drawn(turns=turns, flipped=flipped).picture(picture)
            expected = np.rot90(picture, turns)
            assert np.array_equal(moved, expected[:, ::-1] if flipped else expected)
            assert np.array_equal(
                drawn(turns=turns, flipped=flipped).numbers(picture[..., 0], 255), moved[..., 0]
            )
            seen.add(moved.tobytes())
    assert len(seen) == 8


def test_a_picture_and_its_mask_stay_together_and_what_lies_outside_is_not_known():
    square = np.zeros((40, 60), np.uint8)
    square[10:25, 20:45] = 1
    picture = np.repeat(square[..., None] * np.uint8(200), 3, -1)
    bent = drawn(angle=25.0, factor=1.1, cells=np.random.default_rng(1).uniform(-0.15, 0.15, (2, 6, 6)), height=40, width=60)  # fmt: skip
    moved, mask = bent.picture(picture), bent.numbers(square, 255)
    known = mask != 255
    assert (mask == 255).any() and set(np.unique(mask)) == {0, 1, 255}
    assert ((moved[..., 0] > 100) == (mask == 1))[known].mean() > 0.98


def test_a_turn_is_a_turn_where_the_picture_is_no_square():
    """Quarter turns by sampling equal those that put pixels elsewhere, within the square in the middle."""
    picture = np.random.default_rng(0).integers(0, 9, (12, 20)).astype(np.uint8)
    for angle, turns in ((90.0, -1), (-90.0, 1), (180.0, 2)):
        found = drawn(angle=angle, height=12, width=20).numbers(picture, 255)
        middle = picture[:, 4:16]
        assert np.array_equal(found[:, 4:16], np.rot90(middle, turns)), angle


@pytest.mark.parametrize(
    "changes",
    [{"turns": 1}, {"turns": 3, "flipped": True}, {"flipped": True}, {"angle": 90.0}, {"angle": 37.0}],
)
def test_directions_turn_with_the_picture(changes):
    """A ramp's gradient, taken before the change and turned with it, is the gradient of the changed ramp."""
    y, x = np.meshgrid(np.arange(21.0), np.arange(21.0), indexing="ij")
    ramp = (3 * x + 5 * y).astype(np.float32)
    change = drawn(height=21, width=21, **changes)
    moved = change._sampled(change._moved(ramp)[..., None], "bilinear", "zeros")[..., 0] if change.bent else change.numbers(ramp, 0)  # fmt: skip
    gy, gx = (g[8:13, 8:13].mean() for g in np.gradient(moved))
    turned = change.vectors(np.array([3.0, 5.0, 1.0], np.float32))
    assert turned[:2] == pytest.approx([gx, gy], abs=0.02) and turned[2] == 1


def test_what_is_drawn_is_told_by_the_settings():
    rng = np.random.default_rng(0)
    still = [Geometry().draw(rng, 8, 8) for _ in range(20)]
    assert all((d.turns, d.flipped, d.bent) == (0, False, False) for d in still)
    many = [Geometry(dihedral=True, degrees=30, distortion=0.15).draw(rng, 8, 6) for _ in range(300)]
    assert {(d.turns, d.flipped) for d in many} == {(t, f) for t in range(4) for f in (False, True)}
    assert all((d.height, d.width) == ((6, 8) if d.turns % 2 else (8, 6)) for d in many)
    assert 0.35 < np.mean([d.angle != 0 for d in many]) < 0.65 and max(abs(d.angle) for d in many) <= 30
    assert all(np.abs(d.cells).max() <= 0.15 for d in many if d.cells is not None)
    scaled = [Geometry(mirror=True, scale=(0.75, 1.25)).draw(rng, 8, 8).factor for _ in range(100)]
    assert min(scaled) >= 0.75 and max(scaled) <= 1.25 and len(set(scaled)) > 20


def test_a_window_lies_in_the_picture():
    rng = np.random.default_rng(0)
    for _ in range(20):
        rows, columns = cropped(rng, 30, 10, 16)
        assert rows.stop - rows.start == 16 and rows.stop <= 30 and (columns.start, columns.stop) == (0, 10)
