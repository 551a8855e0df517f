"""Tags as entities, against seqeval; entities in characters as tags; BigBio's documents."""

from __future__ import annotations

import random

import pytest
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import IOB2, Entities

from adaptome.tasks.metrics import span_metrics
from adaptome.tasks.spans import entities, from_bigbio, tagged, words_of


def random_tags(rng: random.Random) -> list[str]:
    return [rng.choice(["O", "B-X", "I-X", "B-Y", "I-Y"]) for _ in range(rng.randint(1, 12))]


def as_tuples(found):
    return [(e["type"], e["start"], e["end"]) for e in found]


def test_random_tags_give_the_entities_that_seqeval_sees():
    rng, differ = random.Random(0), 0
    for _ in range(500):
        tags = random_tags(rng)
        lenient, strict = as_tuples(entities(tags)), as_tuples(entities(tags, strict=True))
        assert lenient == [(kind, a, b + 1) for kind, a, b in get_entities(tags)]
        assert strict == [(e.tag, e.start, e.end) for e in Entities([tags], IOB2).entities[0]]
        differ += lenient != strict
    assert differ > 100


@pytest.mark.parametrize(
    "tags, lenient, strict",
    [
        (["O", "I-X"], [("X", 1, 2)], []),
        (["B-X", "B-X"], [("X", 0, 1), ("X", 1, 2)], [("X", 0, 1), ("X", 1, 2)]),
        (["B-X", "I-Y", "I-Y"], [("X", 0, 1), ("Y", 1, 3)], [("X", 0, 1)]),
    ],
)
def test_odd_tags(tags, lenient, strict):
    assert as_tuples(entities(tags)) == lenient and as_tuples(entities(tags, strict=True)) == strict


def counts(predicted, truth, strict):
    """Summed right, predicted and true entities, by hand."""
    right = guessed = real = 0
    for p, t in zip(predicted, truth, strict=True):
        a, b = set(as_tuples(entities(p, strict))), set(as_tuples(entities(t, strict)))
        right, guessed, real = right + len(a & b), guessed + len(a), real + len(b)
    return right, guessed, real


@pytest.mark.parametrize("strict", [False, True])
def test_f1_is_of_summed_counts(strict):
    rng = random.Random(1)
    truth = [random_tags(rng) for _ in range(60)]
    predicted = [[tag if rng.random() < 0.7 else "O" for tag in row] for row in truth]
    right, guessed, real = counts(predicted, truth, strict)
    found = span_metrics(predicted, truth, strict)
    assert found["precision"] == pytest.approx(right / guessed)
    assert found["recall"] == pytest.approx(right / real)
    assert found["f1"] == pytest.approx(2 * right / (guessed + real))
    assert found["f1"] != pytest.approx(span_metrics(predicted, truth, not strict)["f1"])


def test_f1_is_no_mean_over_types():
    truth = [["B-X"]] * 9 + [["B-Y"]]
    predicted = [["B-X"]] * 9 + [["O"]]
    assert span_metrics(predicted, truth)["f1"] == pytest.approx(18 / 19)  # the mean over X and Y is 1/2


@pytest.mark.parametrize("strict", [False, True])
def test_nothing_found_is_zero(strict):
    for truth in (["B-X", "O"], ["O", "O"]):
        found = span_metrics([["O", "O"]], [truth], strict)
        assert (found["f1"], found["precision"], found["recall"]) == (0, 0, 0)


# -- characters ------------------------------------------------------------------------------------------------------


def test_words_and_entities_round_trip():
    text = "Mutant BRCA1 (p.C61G)  causes breast cancer."
    spans = [(7, 12, "Gene"), (14, 20, "Variant"), (30, 43, "Disease")]
    words, tags, lost = tagged(text, spans)
    assert (
        lost == 0
        and words[:3] == ["Mutant", "BRCA1", "("]
        and words == [text[a:b] for a, b in words_of(text)]
    )
    places = words_of(text)
    back = [(places[e["start"]][0], places[e["end"] - 1][1], e["type"]) for e in entities(tags)]
    assert back == spans


def test_a_word_is_parted_where_an_entity_ends_inside_it():
    assert tagged("preBRCA1mutant", [(3, 8, "G")]) == (["pre", "BRCA1", "mutant"], ["O", "B-G", "O"], 0)
    assert tagged("ab", [(0, 1, "X"), (1, 2, "X")]) == (["a", "b"], ["B-X", "B-X"], 0)


def test_of_overlapping_entities_the_longest_stays():
    words, tags, lost = tagged("breast cancer cells", [(7, 13, "X"), (0, 13, "Y"), (0, 40, "Z")])
    assert tags == ["B-Y", "I-Y", "O"] and lost == 2


def test_documents_of_bigbio():
    document = {
        "passages": [
            {"type": "title", "text": ["Aspirin and ulcers"], "offsets": [[0, 18]]},
            {"type": "abstract", "text": ["It blocks COX."], "offsets": [[19, 33]]},
        ],
        "entities": [
            {"type": "Chemical", "text": ["Aspirin"], "offsets": [[0, 7]]},
            {"type": "Gene", "text": ["COX"], "offsets": [[29, 32]]},
            {"type": "Gene", "text": ["It", "COX"], "offsets": [[19, 21], [29, 32]]},
        ],
    }
    assert from_bigbio(document) == [
        (["Aspirin", "and", "ulcers"], ["B-Chemical", "O", "O"], 0),
        (["It", "blocks", "COX", "."], ["O", "O", "B-Gene", "O"], 1),
    ]
