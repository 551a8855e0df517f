"""Windows over long texts: every word once, the first window wins, and one window says what the whole text says."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
import torch

from adaptome.tasks import get_task
from adaptome.tasks.spans import entities
from adaptome.tasks.token_classification import IGNORED
from adaptome.tasks.windows import Frame
from tests.tasks.tiny import small, spec, splits_of


def frame(room: int) -> Frame:
    return Frame(None, [1], [2], room)


def test_windows_cover_every_word_and_overlap_by_at_most_what_is_asked():
    rng = random.Random(0)
    for _ in range(300):
        room, overlap = rng.randint(4, 20), rng.randint(0, 12)
        pieces = [[7] * rng.randint(1, 6) for _ in range(rng.randint(1, 60))]
        found = frame(room).windows(pieces, overlap)
        assert found[0][0] == 0 and found[-1][1] == len(pieces)
        for (a, b), (c, d) in pairwise(found):
            assert a < c <= b < d, "each goes on, and leaves nothing between"
            assert sum(map(len, pieces[c:b])) <= min(overlap, room // 2)
        for a, b in found:
            assert sum(min(len(p), room) for p in pieces[a:b]) <= room
    assert frame(6).windows([[7]] * 10, 2) == [(0, 6), (4, 10)]


@pytest.fixture
def tagger(tmp_path, tokenizer_folder):
    """A task with a model that was never trained: what it says depends on where a word stands."""
    model = spec(from_config=small("bert", vocab_size=40), tokenizer=tokenizer_folder)
    row = {"tokens": ["anna", "playing", "."], "tags": ["B-PER", "B-ACT", "O"]}

    def make(**options):
        task = get_task("token-classification", **options)
        processor = task.load_processor(model)
        data = task.prepare(splits_of(tmp_path / "data", [row], [row]), processor)
        torch.manual_seed(0)
        return task, processor, task.load_model(model, processor), data

    return make


TEXT = "Anna  runs; bob sleeps in paris, the cat and a dog runs. what a good film! " * 2


def test_one_window_says_what_the_whole_text_says(tagger):
    (long, processor, model, _), (short, *_) = tagger(max_length=62), tagger(max_length=60, overlap=10)
    assert long.predict(model, processor, [TEXT]) == short.predict(model, processor, [TEXT])


def test_the_first_window_wins_and_every_word_is_told_once(tagger):
    task, processor, model, _ = tagger(max_length=14, overlap=6)
    words = "anna runs bob sleeps in paris the cat and a dog runs what a good film".split()
    found = task.predict(model, processor, [words])[0]
    assert len(found["tags"]) == len(words)
    whole = get_task("token-classification", labels=task.labels)
    # 12 words fit; the second window begins 6 words before the 13th
    first = whole.predict(model, processor, [words[:12]])[0]["tags"]
    second = whole.predict(model, processor, [words[6:]])[0]["tags"]
    assert found["tags"] == first + second[6:] and first[6:] != second[:6]


def test_entities_of_a_text_are_told_in_characters(tagger):
    task, processor, model, _ = tagger(max_length=20)
    found = task.predict(model, processor, [TEXT, "paris"], batch_size=3)
    assert sum(len(f["entities"]) for f in found) > 3
    for text, prediction in zip([TEXT, "paris"], found, strict=True):
        for one in prediction["entities"]:
            assert text[one["start_char"] : one["end_char"]] == one["text"]
    assert task.predict(model, processor, [""]) == [{"tokens": [], "tags": [], "entities": []}]


def test_a_word_of_five_pieces_counts_once_and_tags_survive(tmp_path, tagger):
    """The labels that count are as many as the words; reading them back gives the tags."""
    task, processor, _, _ = tagger()
    vocabulary = {**processor.get_vocab()}
    words = ["playings", "anna", "playing", "dogs", "paris"]
    tags = ["B-ACT", "B-PER", "I-PER", "O", "I-ACT"]
    pieces = processor(words, is_split_into_words=True)
    assert len(pieces["input_ids"]) - 2 > len(words) and "##s" in vocabulary
    data = task.prepare(splits_of(tmp_path / "more", [{"tokens": words, "tags": tags}] * 2, [{"tokens": words, "tags": tags}]), processor)  # fmt: skip
    kept = [label for label in data["train"][0]["labels"] if label != IGNORED]
    assert len(kept) == len(words) and [task.labels[i] for i in kept] == tags


def test_strict_counts_other_entities(tagger):
    task, *_ = tagger(strict=True)
    assert entities(["I-X", "B-X"], task.options.strict) == [{"type": "X", "start": 1, "end": 2}]
