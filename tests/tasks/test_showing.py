"""What a command line gives, and what predictions look like."""

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from adaptome.core.errors import DataError
from adaptome.report import Span
from adaptome.tasks import tasks
from adaptome.tasks.scores import Scores, softmax_scores
from adaptome.tasks.showing import answer, covered, gathered, path_of, plain, shown


def test_a_folder_stands_for_its_files(tmp_path):
    for name in ("b.txt", "a.txt", "c.bin", "sub/d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name, encoding="utf-8")
    found = gathered(["a sentence", str(tmp_path)], frozenset())
    assert [one.value for one in found] == ["a sentence", "a.txt", "b.txt", "sub/d.txt"]
    assert found[1].name == str(tmp_path / "a.txt")
    with pytest.raises(DataError, match="no file that ends in .png"):
        gathered([str(tmp_path)], frozenset({".png"}))
    with pytest.raises(DataError, match="no such file or folder: none.png"):
        gathered(["none.png"], frozenset({".png"}))
    words = "a sentence that is longer than the name of a file can be " * 6
    assert gathered([words], frozenset())[0].value == words


def test_entities_are_marked_by_characters_or_by_words():
    by_characters = {"entities": [{"type": "X", "text": "big cat", "start": 2, "end": 9}]}
    assert shown("a big cat", by_characters).spans == (Span(2, 9, "X"),)
    by_words = {
        "tokens": ["a", "big", "cat"],
        "entities": [{"type": "X", "text": "big cat", "start": 1, "end": 3}],
    }
    made = shown("a big  cat", by_words)
    assert (
        made.text == "a big cat"
        and made.text[slice(*made.spans[0][:2])] == "big cat"
        and made.answer == "X: big cat"
    )


def test_answers_are_lines():
    assert answer({"label": "cat", "score": 0.915, "scores": {}}) == "cat (91.5%)"
    assert answer({"labels": []}) == "-" and answer({"labels": ["a", "b"]}) == "a, b"
    assert covered([[0, 1], [2, 1]], ["ground", "house", "road"]) == "house 50.0 %, road 25.0 %"
    assert answer({"score": 0.5, "array": np.zeros(3)}) == "score 0.5"


def test_pictures_are_made_from_masks_and_boxes_and_left_out_of_json():
    picture = Image.new("RGB", (4, 4))
    prediction = {
        "mask": np.ones((2, 2), int),
        "boxes": [{"box": (0, 0, 3, 3), "label": "x"}],
        "image": picture,
        "score": np.float32(0.5),
    }
    made = shown("a.png", prediction, picture).made
    assert list(made) == ["image", "mask", "boxes"] and made["mask"].size == (4, 4)
    told = plain(prediction)
    assert set(told) == {"boxes", "score"} and isinstance(told["score"], float)


def test_every_task_says_what_files_it_takes():
    kinds = tasks()
    assert ".png" in kinds["image-classification"].takes and ".wav" in kinds["audio-classification"].takes
    assert not kinds["text-classification"].takes


def test_calibration_is_the_mean_distance_over_the_bins():
    rng = np.random.default_rng(0)
    p = rng.uniform(0.5, 1, 500)
    probabilities = np.stack([1 - p, p], 1)
    truth = (rng.uniform(size=500) < p**2).astype(int)
    told = Scores(probabilities, truth).calibration()
    expected = 0.0
    for low in np.arange(0, 1, 0.1):
        inside = (p > low) & (p <= low + 0.1)
        if inside.any():
            expected += inside.mean() * abs(p[inside].mean() - truth[inside].mean())
    assert told["ece"] == pytest.approx(expected, abs=1e-9) and sum(told["examples"]) == 500


def test_the_roc_curve_is_of_two_labels_alone():
    logits, truth = np.array([[2.0, 1.0], [0.0, 3.0], [1.0, 1.5], [0.2, 0.1]]), np.array([0, 1, 0, 1])
    found = softmax_scores(logits, truth)
    assert found.roc()["auroc"] == roc_auc_score(truth, logits[:, 1] - logits[:, 0])
    assert (
        softmax_scores(np.zeros((2, 3)), [0, 1]).roc() is None
        and softmax_scores(logits, [1, 1, 1, 1]).roc() is None
    )


def test_a_long_text_is_no_path():
    """A name of more than 255 bytes is an error to a file system, not a file that is not there."""
    assert path_of("a dog " * 50) is None and path_of("é" * 128) is None
    assert path_of("a dog/" * 50) is not None and path_of("photo.jpg") is not None
    assert [one.value for one in gathered(["a dog " * 50], frozenset())] == ["a dog " * 50]
