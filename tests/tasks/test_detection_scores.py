"""Scores of frames, videos and data sets, against what is worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from adaptome.tasks.detection_scores import detection_metrics, per_video, table

# videos 0, 1 real; 2, 3 fake; of 3, 1, 2 and 4 frames
VIDEOS = np.array([0, 0, 0, 1, 2, 2, 3, 3, 3, 3])
SCORES = np.array([0.1, 0.2, 0.9, 0.5, 0.3, 0.9, 0.2, 0.4, 0.6, 0.2])
TRUTH = (VIDEOS >= 2).astype(int)


def test_a_videos_score_is_the_mean_of_its_frames():
    scores, truth = per_video(SCORES, TRUTH, VIDEOS)
    np.testing.assert_allclose(scores, [0.4, 0.5, 0.6, 0.35])
    assert truth.tolist() == [0, 0, 1, 1]
    # pairs (fake, real): .6 > .4, .6 > .5, .35 < .4, .35 < .5
    assert detection_metrics(scores, truth)["auroc"] == 0.5
    np.testing.assert_allclose(per_video(SCORES, TRUTH, VIDEOS, "median")[0], [0.2, 0.5, 0.6, 0.3])


def test_the_order_of_frames_does_not_matter_and_videos_weigh_the_same():
    sets = np.zeros_like(VIDEOS)
    found = table(SCORES, TRUTH, VIDEOS, sets, ["one"])
    order = np.random.default_rng(0).permutation(len(VIDEOS))
    assert found == table(SCORES[order], TRUTH[order], VIDEOS[order], sets, ["one"])
    # ten copies of every frame of one video change what frames say, not what videos do
    more = np.concatenate([np.arange(len(VIDEOS)), *[np.flatnonzero(VIDEOS == 3)] * 9])
    heavy = table(SCORES[more], TRUTH[more], VIDEOS[more], np.zeros_like(more), ["one"])
    assert heavy["auroc"] == found["auroc"] and heavy["frame_auroc"] != found["frame_auroc"]


def test_the_figures_of_one_set_by_hand():
    truth, scores = np.array([0, 0, 0, 0, 1, 1, 1, 1]), np.array([0.1, 0.2, 0.3, 0.7, 0.4, 0.6, 0.8, 0.9])
    found = detection_metrics(scores, truth, (0.0, 0.25))
    assert found["auroc"] == 14 / 16  # .7 is above .4 and .6
    assert found["eer"] == 0.25  # from .6 on: one of four real ones taken for fake, one of four fakes missed
    assert (found["tpr_at_0"], found["tpr_at_0.25"]) == (0.5, 1.0)
    fake, real = (1 + 1 + 3 / 4 + 4 / 5) / 4, (1 + 1 + 1 + 4 / 6) / 4
    assert found["map"] == pytest.approx((fake + real) / 2)


@pytest.mark.parametrize(("scores", "eer"), [([0.1, 0.9], 0.0), ([0.9, 0.1], 1.0), ([0.5, 0.5], 0.5)])
def test_the_equal_error_rate_at_its_ends(scores, eer):
    assert detection_metrics(np.array(scores), np.array([0, 1]))["eer"] == pytest.approx(eer)


def test_each_data_set_has_its_figures_and_their_mean_counts_sets_not_videos():
    scores = np.array([0.1, 0.9, 0.2, 0.8, 0.9, 0.1])
    truth, sets = np.array([0, 1, 0, 1, 0, 1]), np.array([0, 0, 0, 0, 1, 1])
    found = table(scores, truth, np.arange(6), sets, ["easy", "hard"])
    assert (found["auroc@easy"], found["auroc@hard"], found["auroc"]) == (1.0, 0.0, 0.5)
    assert {name.partition("@")[0] for name in found if "@" in name} == {
        "auroc", "eer", "map", "tpr_at_0.1", "frame_auroc"
    }  # fmt: skip
    assert not [
        name for name in table(scores[:4], truth[:4], np.arange(4), sets[:4], ["easy"]) if "@" in name
    ]
