"""Long reasoning: rows of conversations, what the loss is on, packed rows that do not see each other, rejection, spoiling, scores."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import adaptome as ad
from adaptome.core.errors import DataError, RecipeError
from adaptome.objectives.deferred import deferred_logits
from adaptome.tasks import get_task
from adaptome.traces import MARKERS, framed
from tests.tasks.tiny import small, spec, splits_of

LLAMA = small("llama", num_key_value_heads=2, vocab_size=258)
SYSTEM = "Think in steps."


def trace(n: int, steps: int = 3, answer: int | None = None) -> str:
    return framed([f"step {k} of {n}" for k in range(steps)], rf"\boxed{{{n if answer is None else answer}}}", MARKERS["sky"]).text  # fmt: skip


def sharegpt(n: int) -> dict[str, object]:
    return {"system": SYSTEM, "conversations": [{"from": "user", "value": f"What is {n}?"}, {"from": "assistant", "value": trace(n)}]}  # fmt: skip


def plain(n: int, **given: object) -> dict[str, object]:
    return {"instruction": f"What is {n}?", "output": trace(n), "answer": str(n), **given}


def prepared(tmp_path, rows, test=None, model=LLAMA, **options):
    task = get_task("long-reasoning", **{"template": "plain", "max_length": 400, **options})
    processor = task.load_processor(spec(from_config=model, tokenizer="bytes"))
    splits = task.shaped(splits_of(tmp_path / "data", rows, test or rows))
    return task, processor, splits, task.prepare(splits, processor)


def learned(processor, row) -> str:
    return processor.decode(
        [t for t, label in zip(row["input_ids"], row["labels"], strict=True) if label >= 0]
    )


# -- rows ----------------------------------------------------------------------------------------------------------


def test_rows_of_skythought_need_no_change_and_the_loss_is_on_the_trace(tmp_path):
    task, processor, splits, data = prepared(tmp_path, [sharegpt(n) for n in range(3)])
    row = data["train"][1]
    assert processor.decode(row["input_ids"]).startswith("What is 1?\n<|begin_of_thought|>")
    assert learned(processor, row) == trace(1) + processor.eos_token
    assert task.options.system == SYSTEM  # what all rows had is told to a question that comes alone
    assert task.inputs(splits["train"].rows)[0]["system"] == SYSTEM


@pytest.mark.parametrize(
    ("turns", "why"),
    [
        ([{"from": "user", "value": "a"}], "no text of the assistant"),
        ([{"from": "user", "value": "a"}, {"from": "user", "value": "b"}], "found the turn"),
        ([{"from": "nobody", "value": "a"}, {"from": "gpt", "value": "b"}], "found the turn"),
    ],
)
def test_a_conversation_is_one_question_and_one_answer(tmp_path, turns, why):
    task = get_task("long-reasoning", template="plain")
    with pytest.raises(DataError, match=rf"(?s)line 2.*{why}"):
        task.shaped(splits_of(tmp_path, [sharegpt(1), {"system": "", "conversations": turns}], [sharegpt(1)]))


def test_malformed_traces(tmp_path):
    rows = [plain(n) for n in range(3)] + [plain(3, output="3 is\nsurely\n3")]
    with pytest.raises(DataError, match=r"(?s)line 4.*no <\|begin_of_thought\|>.*task\.malformed"):
        prepared(tmp_path, rows)
    *_, data = prepared(tmp_path, rows, malformed="drop")
    assert len(data["train"]) == 3 and any(
        "1 of 4 traces of train were left out: no <|begin" in n for n in data.notes
    )
    _, processor, _, data = prepared(tmp_path, rows, malformed="frame")
    assert learned(processor, data["train"][3]).startswith(
        "<|begin_of_thought|>\n\n3 is\n\nsurely\n\n<|end_of_thought|>"
    )


@pytest.mark.parametrize(("keep", "kept"), [("right", {0, 1, 3}), ("wrong", {2})])
def test_rejection_keeps_what_matches(tmp_path, keep, kept):
    rows = [plain(0), plain(1, output=trace(1).replace("{1}", r"{\frac{2}{2}}")), plain(2, output=trace(2, answer=9)), plain(3)]  # fmt: skip
    pytest.importorskip("math_verify")
    _, processor, _, data = prepared(tmp_path, rows, keep=keep)
    there = {int(processor.decode(row["input_ids"]).split("?")[0].split()[-1]) for row in data["train"]}
    assert there == kept
    assert any(f"{len(kept)} of 4 traces of train were kept" in note for note in data.notes)


def test_long_traces_are_dropped_or_cut(tmp_path):
    rows = [plain(1), plain(2, output=trace(2, 60))]
    *_, data = prepared(tmp_path, rows)
    assert len(data["train"]) == 1 and any("1 of 2 examples of train exceed 400 tokens and were left out" in n for n in data.notes)  # fmt: skip
    *_, data = prepared(tmp_path, rows, too_long="cut")
    assert [len(row["input_ids"]) for row in data["train"]][1] == 400


# -- packing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model", [LLAMA, small("qwen2", num_key_value_heads=2, vocab_size=258), {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 258}],
    ids=lambda m: m["model_type"],
)  # fmt: skip
def test_packed_examples_do_not_see_each_other(tmp_path, model):
    """Loss and gradients of packed rows are those of their examples alone, whatever stands beside them."""
    rows = [plain(n, output=trace(n, 1 + n % 3)) for n in range(6)]
    _, _, _, alone = prepared(tmp_path, rows, model=model)
    task, processor, _, data = prepared(tmp_path, rows, model=model, packing=True)
    assert len(data["train"]) < 6 and sum(data["train"]["length"]) == sum(alone["train"]["length"])
    torch.manual_seed(0)
    net = task.load_model(spec(from_config=model), processor).double().eval()
    packed = task.collator(processor)([{k: row[k] for k in ("input_ids", "labels", "position_ids")} for row in data["train"]])  # fmt: skip
    one = task.collator(processor)([alone["train"][n] for n in range(6)])
    counted = [int((batch["labels"] >= 0).sum()) for batch in (packed, one)]
    assert counted[0] == counted[1]
    (weight,) = [p for name, p in net.named_parameters() if name.endswith(("0.self_attn.q_proj.weight", "h.0.attn.c_attn.weight"))]  # fmt: skip
    found = []
    for batch in (packed, one):
        loss = net(**batch).loss
        found.append((loss, *torch.autograd.grad(loss, weight)))
    torch.testing.assert_close(found[0], found[1], atol=1e-9, rtol=1e-7)


def test_packing_needs_a_model_that_is_told_positions(tmp_path):
    task, processor, *_ = prepared(tmp_path, [plain(1), plain(2)], packing=True)
    bloom = {"model_type": "bloom", "hidden_size": 32, "n_layer": 1, "n_head": 2, "vocab_size": 258}
    with pytest.raises(RecipeError, match=r"task\.packing: BloomForCausalLM"):
        task.load_model(spec(from_config=bloom), processor)


def test_a_packed_rows_loss_needs_no_logits_and_is_the_same(tmp_path):
    task, processor, _, data = prepared(tmp_path, [plain(n) for n in range(4)], packing=True)
    net = task.load_model(spec(from_config=LLAMA), processor)
    row = {k: data["train"][0][k] for k in ("input_ids", "labels", "position_ids")}
    batch = task.collator(processor)([row])
    whole = net(**batch).loss
    with deferred_logits(net) as seen:
        chunked = net(**batch).loss
    assert seen.unread
    torch.testing.assert_close(chunked, whole)


# -- spoiled traces, and scores ------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["wrong", "digits", "keywords", "shuffle", "delete", "insert"])
def test_training_traces_are_spoiled_and_others_are_not(tmp_path, how):
    rows = [plain(n, output=trace(n, 4).replace("step 2", "Wait, step 2")) for n in range(10, 16)]
    _, processor, _, whole = prepared(tmp_path, rows)
    _, _, _, made = prepared(tmp_path, rows, perturb={"how": how, "share": 1.0})
    before, after = ([learned(processor, row) for row in d["train"]] for d in (whole, made))
    assert all(a != b for a, b in zip(before, after, strict=True))
    assert list(whole["validation"]) == list(made["validation"])
    if how == "insert":
        assert not any(f"of {n}" in text for n, text in zip(range(10, 16), after, strict=True))
    _, _, _, again = prepared(tmp_path, rows, perturb={"how": how, "share": 1.0})
    _, _, _, other = prepared(tmp_path, rows, perturb={"how": how, "share": 1.0, "seed": 1})
    assert list(made["train"]) == list(again["train"])
    assert how in ("keywords", "delete") or list(made["train"]) != list(other["train"])


def test_wrong_traces_of_the_data_are_taken_whole(tmp_path):
    rows = [plain(n, wrong=trace(n, answer=99)) for n in range(3)]
    _, processor, _, data = prepared(tmp_path, rows, perturb={"how": "wrong"})
    assert [learned(processor, row) for row in data["train"]] == [trace(n, answer=99) + processor.eos_token for n in range(3)]  # fmt: skip


def test_scores_tell_length_keywords_form_and_passes(tmp_path, monkeypatch):
    rows = [plain(1), plain(2)]
    task, processor, splits, _ = prepared(tmp_path, rows, sample=True, samples=2, read="number")
    texts = [trace(1), trace(1, answer=5), "Wait, what? 2", "3"]
    monkeypatch.setattr(task, "written", lambda *args, **settings: texts)
    predictions = task.predict(nn.Identity(), processor, task.inputs(splits["validation"].rows))
    found = task.judge(splits["validation"], predictions)
    assert found["accuracy"] == 1.0 and found["pass@1"] == 0.5 and found["pass@2"] == 1.0
    assert found["well_formed"] == found["opens_with_keyword"] == 0.5 and found["keywords"] == 0.5
    assert found["tokens"] == (len(trace(1)) + len("Wait, what? 2")) / 2
    assert predictions[0]["solution"] == r"\boxed{1}" and predictions[1]["thought"] is None
    shown = task.shown("What is 1?", predictions[0])
    assert [shown.text[s.start : s.end] for s in shown.spans][1] == r"\boxed{1}"
    with pytest.raises(RecipeError, match="task.sample=true"):
        get_task("long-reasoning", samples=2)


# -- sizes of the paper --------------------------------------------------------------------------------------------


def test_counts_at_the_papers_size_and_the_start():
    from transformers import AutoModelForCausalLM, Qwen2Config

    config = Qwen2Config(
        hidden_size=5120, num_hidden_layers=64, intermediate_size=27648, num_attention_heads=40, num_key_value_heads=8,
        vocab_size=152064, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert sum(p.numel() for p in model.parameters()) == 32_763_876_352
    for r, count in ((64, 536_870_912), (256, 2_147_483_648)):
        assert ad.plan(model, "lora", r=r, targets="all-linear").trainable == count


def test_it_starts_as_the_base_and_merges(tmp_path):
    task, processor, _, data = prepared(tmp_path, [plain(n) for n in range(3)])
    base = task.load_model(spec(from_config=LLAMA), processor).eval()
    model = copy.deepcopy(base)
    batch = task.collator(processor)([data["train"][0]])
    ad.attach(model, "lora", r=4, targets="all-linear")
    model.eval()
    torch.testing.assert_close(model(**batch).logits, base(**batch).logits, atol=0, rtol=0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.05)
    before = model(**batch).logits
    ad.merge(model)
    torch.testing.assert_close(model(**batch).logits, before, atol=1e-5, rtol=1e-5)
