"""Grammar correction: what is learned of a sentence, what is read out of an answer, scores by category, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adaptome.continual.losses import Former, right_logits
from adaptome.core.errors import DataError
from adaptome.data.makers import make
from adaptome.data.splits import to_split
from adaptome.grammar import corpus
from adaptome.objectives import Seen
from adaptome.tasks import get_task
from adaptome.tasks.characters import SPECIAL, alphabet, character_tokenizer
from tests.tasks.tiny import small, spec, splits_of

ROWS = [
    {"id": "1", "source": "大约三年左右。", "references": ["大约三年。", "三年左右。"], "category": "法学"},
    {"id": "2", "source": "他去学校。", "references": ["他去学校。"], "category": "农学"},
    {"id": "3", "source": "他在去学校。", "references": ["他去学校。"], "category": "农学"},
]
MODEL = small("llama", num_key_value_heads=2, vocab_size=3872)


def prepared(tmp_path, rows=ROWS, **options):
    task = get_task("grammar-correction", template="plain", **options)
    processor = task.load_processor(spec(from_config=MODEL, tokenizer="characters"))
    splits = splits_of(tmp_path / "data", rows, rows)
    return task, processor, splits, task.prepare(splits, processor)


def test_the_loss_is_on_the_correction_alone(tmp_path):
    """And the labels of the prompt's tokens are ignored, whatever the prompt is."""
    _, processor, _, data = prepared(tmp_path, instruction="改：")
    row = data["train"][0]
    assert processor.decode(row["input_ids"]) == "改：\n大约三年左右。\n大约三年。</s>"
    assert processor.decode([t for t, label in zip(row["input_ids"], row["labels"], strict=True) if label >= 0]) == "大约三年。</s>"  # fmt: skip
    _, processor, _, other = prepared(tmp_path, instruction="改正：")
    assert [x for x in other["train"][0]["labels"] if x >= 0] == [x for x in row["labels"] if x >= 0]


def test_all_corrections_are_learned_where_asked(tmp_path):
    _, _, _, data = prepared(tmp_path, learn="all")
    assert (len(data["train"]), len(data["validation"])) == (4, 3)


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("大约三年。", "大约三年。"),
        ("\n大约三年。\n因为大约和左右重复。", "大约三年。"),  # what explains is no part of it
        ("", "大约三年左右。"),
        ("  ", "大约三年左右。"),
        ("很" * 40, "大约三年左右。"),  # much longer: no correction
    ],
)
def test_one_line_is_read_and_else_the_sentence_stays(monkeypatch, written, kept):
    task = get_task("grammar-correction", template="plain")
    monkeypatch.setattr(task, "written", lambda *args, **settings: [written])
    (found,) = task.predict(nn.Identity(), None, ["大约三年左右。"])
    assert found["correction"] == kept and found["source"] == "大约三年左右。"
    assert [e["was"] for e in found["edits"]] == (["左右"] if kept == "大约三年。" else [])


def test_changes_are_shown_where_they_are():
    task = get_task("grammar-correction")
    shown = task.shown("他在去学校", task._told("他在去学校", "昨天他去了学校"))
    assert {shown.text[s.start : s.end] for s in shown.spans} == {"昨天", "了"}


def test_scores_are_those_of_the_corpus_and_of_each_category(tmp_path):
    task, _, splits, _ = prepared(tmp_path)
    told = ["大约三年。", "他去学校。", "他在学校。"]
    found = task.judge(splits["validation"], [{"correction": text} for text in told])
    whole = corpus([r["source"] for r in ROWS], told, [r["references"] for r in ROWS])
    assert found["f0.5"] == whole.f() and found["precision"] == whole.precision
    assert found["f0.5_法学"] == 1.0
    assert found["f0.5_农学"] == corpus(["他去学校。", "他在去学校。"], told[1:], [["他去学校。"], ["他去学校。"]]).f() == 0.0  # fmt: skip


def test_other_layouts_and_bad_rows(tmp_path):
    fcgec = [{"source": "他在去。", "targets": ["他去。"], "error_flag": 1}] * 2
    assert len(prepared(tmp_path, fcgec)[3]["train"]) == 2
    for bad, match in (
        ({"source": "", "references": ["a"]}, "line 2.*'source' is ''"),
        ({"source": "a", "references": []}, "line 2.*expected a correction or a list"),
        ({"source": "a", "references": [" "]}, "line 2.*expected a correction or a list"),
    ):
        with pytest.raises(DataError, match=match):
            prepared(tmp_path, [ROWS[1], {**ROWS[1], **bad}])
    with pytest.raises(DataError, match="no column references"):
        prepared(tmp_path, [{"source": "a", "refs": ["b"]}] * 2)


def test_a_small_model_writes_corrections(tmp_path):
    task, processor, splits, _ = prepared(tmp_path, max_new_tokens=8)
    model = task.load_model(spec(from_config=MODEL, tokenizer="characters"), processor)
    found = task.predict(model, processor, task.inputs(splits["validation"].rows))
    assert [one["source"] for one in found] == [row["source"] for row in ROWS]


# -- what continual learning asks of texts -----------------------------------------------------------------------------


def test_terms_for_texts_look_at_the_tokens_that_count():
    torch.manual_seed(0)
    own, led = torch.randn(2, 5, 7).double(), torch.randn(2, 5, 7).double()
    labels = torch.tensor([[-100, -100, 3, 4, 1], [-100, 2, 6, -100, -100]])
    expected = [own[0, 1, 3], own[0, 2, 4], own[0, 3, 1], own[1, 0, 2], own[1, 1, 6]]
    torch.testing.assert_close(right_logits(own, labels, ahead=1), torch.stack(expected))
    value = Former([], 2.0, ahead=1).value({"logits": own}, {"labels": labels}, Seen(nn.Identity(), teacher={"logits": led}))  # fmt: skip
    at = ([0, 0, 0, 1, 1], [1, 2, 3, 0, 1])
    p, q = (torch.softmax(z[at] / 2, -1) for z in (led, own))
    torch.testing.assert_close(value.double(), 4 * (p * (p / q).log()).sum(-1).mean(), atol=1e-6, rtol=1e-5)
    same = Former([], 2.0, ahead=1).value({"logits": own}, {"labels": labels}, Seen(nn.Identity(), teacher={"logits": own}))  # fmt: skip
    assert float(same) == pytest.approx(0, abs=1e-6)  # at the first step of a task


# -- what the demo is made of ------------------------------------------------------------------------------------------


def test_the_tokenizer_has_a_token_for_each_character_and_goes_back(tmp_path):
    made = character_tokenizer()
    assert len(made) == len(SPECIAL) + len(set(alphabet())) == 3872
    text = "他 去\n school（1980）。"
    assert len(made(text)["input_ids"]) == len(text) and made.decode(made(text)["input_ids"]) == text
    made.save_pretrained(tmp_path)
    from transformers import AutoTokenizer

    again = AutoTokenizer.from_pretrained(tmp_path)
    assert (
        again(text)["input_ids"] == made(text)["input_ids"] and again.decode(again(text)["input_ids"]) == text
    )


@pytest.mark.parametrize("name", ["corrections", "corrections-base"])
def test_made_corrections_are_the_same_for_a_seed_and_known_to_the_tokenizer(name):
    tables = make(f"made:{name}", 0)
    assert (
        tables["train"].columns
        == make(f"made:{name}", 0)["train"].columns
        != make(f"made:{name}", 1)["train"].columns
    )
    split, made = to_split([tables["test"]], "test"), character_tokenizer()
    assert made.unk_token_id not in {t for ids in made(list(split.rows["source"]))["input_ids"] for t in ids}
    wrong = sum(row["source"] != row["references"][0] for row in split.rows)
    assert wrong == 0 if name.endswith("base") else 0.6 < wrong / len(split) < 0.8
