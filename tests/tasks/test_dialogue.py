"""Dialogues: what is learned of them, that a model is asked as it was trained, and how answers are scored."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adaptome.core.errors import DataError, RecipeError
from adaptome.tasks import get_task
from adaptome.tasks.byte_tokenizer import byte_tokenizer
from adaptome.tasks.chat_templates import answer_spans, rendered, set_template
from adaptome.tasks.dialogue_scores import bleu, gains, of_facts, of_form, of_likeness, states
from tests.tasks.tiny import small, spec, splits_of

MODEL = small("llama", num_key_value_heads=2, vocab_size=258, max_position_embeddings=512)
#: as Mistral writes it: no role for a system prompt, answers end with the end-of-sequence token
BRACKETS = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }}[/INST]{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}"
    "{% else %}{{ raise_exception('roles are user and assistant') }}{% endif %}{% endfor %}"
)
TALK = [
    {"role": "user", "content": "Which permit?"},
    {"role": "assistant", "content": "The blue one."},
    {"role": "user", "content": "And the test?"},
    {"role": "assistant", "content": "Tamber."},
]
ANSWER = "## Papers\n- blue permit\n\n## Action Steps\n1. Apply."


def tokenizer(template="human-assistant"):
    made = byte_tokenizer()
    if template in ("human-assistant", None):
        set_template(made, template)
    else:
        made.chat_template = template
    return made


def prepared(tmp_path, rows, test=None, **options):
    task = get_task("dialogue", chat_template="human-assistant", **options)
    processor = task.load_processor(spec(from_config=MODEL, tokenizer="bytes"))
    splits = task.shaped(splits_of(tmp_path / "data", rows, test or [{"messages": TALK[2:]}]))
    return task, processor, splits, task.prepare(splits, processor)


def learned(row):
    return [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label >= 0]


# -- what is learned -----------------------------------------------------------------------------------------------


def test_answers_alone_are_learned_each_with_its_end(tmp_path):
    _, processor, _, data = prepared(tmp_path, [{"messages": TALK}])
    row = data["train"][0]
    assert processor.decode(row["input_ids"]) == (
        "Human: Which permit?\n\nAssistant: The blue one.<eos>\n\nHuman: And the test?\n\nAssistant: Tamber.<eos>"
    )
    assert processor.decode(learned(row)) == " The blue one.<eos> Tamber.<eos>"


def test_the_published_way_learns_every_token_but_the_first(tmp_path):
    _, processor, _, data = prepared(tmp_path, [{"messages": TALK}], train_on_inputs=True)
    row = data["train"][0]
    assert learned(row) == row["input_ids"][1:] and processor.decode(row["input_ids"]).endswith(
        "Tamber.<eos>"
    )


@pytest.mark.parametrize("template", ["human-assistant", BRACKETS])
def test_a_model_is_asked_in_the_text_that_it_was_trained_on(template):
    """Not in another template, as the released code does."""
    made = tokenizer(template)
    text, spans = answer_spans(made, TALK)
    for i, (begin, end) in zip((1, 3), spans, strict=True):
        assert text[:begin] == rendered(made, TALK[:i], answering=True)
        assert text[begin:end] == f" {TALK[i]['content']}<eos>"


def test_a_system_prompt_goes_where_the_template_has_room_for_it(tmp_path):
    talk = [{"role": "system", "content": "Be brief."}, *TALK[:2]]
    assert rendered(tokenizer(), talk).startswith("Be brief.\n\nHuman: Which")
    assert rendered(tokenizer(BRACKETS), talk).startswith("[INST] Be brief.\n\nWhich permit?[/INST]")
    _, processor, _, data = prepared(
        tmp_path, [{"messages": TALK[:2]}, {"messages": talk}], system="Be long."
    )
    assert [processor.decode(row["input_ids"])[:9] for row in data["train"]] == ["Be long.\n", "Be brief."]
    with pytest.raises(DataError, match="refuses the dialogue: roles are user and assistant"):
        rendered(tokenizer(BRACKETS), [{"role": "tool", "content": "x"}])


@pytest.mark.parametrize(
    ("template", "told"),
    [
        (BRACKETS.replace("{{ eos_token }}", "."), "ends answers without the end-of-sequence token '<eos>'"),
        (BRACKETS.replace("{% if m.role == 'user' %}", "{% if loop.last and m.role == 'assistant' %}#{% endif %}{% if m.role == 'user' %}"), "writes a turn in another way"),
    ],
)  # fmt: skip
def test_templates_that_would_teach_something_else_are_refused(template, told):
    with pytest.raises(RecipeError, match=told):
        answer_spans(tokenizer(template), TALK)


def test_a_tokenizer_without_a_template_and_a_name_that_is_none():
    with pytest.raises(RecipeError, match="'bytes' has no chat template"):
        get_task("dialogue").load_processor(spec(from_config=MODEL, tokenizer="bytes"))
    with pytest.raises(RecipeError, match="human-asistant.*human-assistant"):
        get_task("dialogue", chat_template="human-asistant").load_processor(spec(from_config=MODEL, tokenizer="bytes"))  # fmt: skip


def test_rows_are_checked_cleaned_and_told(tmp_path):
    _, _, splits, data = prepared(tmp_path, [{"messages": TALK}, {"messages": TALK}, {"messages": TALK[:2]}])
    assert len(splits["train"]) == 2 == len(data["train"])
    assert "1 of 3 dialogues of train are the same as an earlier one and were left out." in data.notes
    with pytest.raises(DataError, match=r"train\.jsonl, line 1: message 1 is from 'assistant'"):
        prepared(tmp_path, [{"messages": TALK[1:]}])


# -- answers -------------------------------------------------------------------------------------------------------


def test_answers_are_written_after_the_prompt_and_say_whether_they_ended(tmp_path):
    task, processor, splits, _ = prepared(tmp_path, [{"messages": TALK}], max_new_tokens=5)
    torch.manual_seed(0)
    model = task.load_model(spec(from_config=MODEL, tokenizer="bytes"), processor)
    (by_text,) = task.predict(model, processor, ["And the test?"])
    (by_chat,) = task.predict(model, processor, task.inputs(splits["validation"].rows))
    assert by_text["completion"] == by_chat["completion"] and by_text["finished"] is False
    model.lm_head.weight.data.zero_()
    model.lm_head.weight.data[processor.eos_token_id] = 1e-9  # whatever stands before it
    model.generation_config.eos_token_id = processor.eos_token_id
    model.lm_head.weight.data[0] = -1
    found = task.predict(model, processor, ["And the test?"])[0]
    assert found["completion"] == "" or found["finished"] is False


def test_form_is_that_of_markdown_and_not_of_its_signs():
    found = of_form([ANSWER, "C## is a language. Action Steps: none", "I'm not sure; ask the office.", "## Papers\n- one"])  # fmt: skip
    assert {name: values.tolist() for name, values in found.items()} == {
        "headings": [1, 0, 0, 1], "lists": [1, 0, 0, 1], "action_steps": [1, 0, 0, 0], "markdown": [1, 0, 0, 0], "abstains": [0, 0, 1, 0],
    }  # fmt: skip


def test_facts_are_whole_words_in_any_case_and_either_of_two():
    assert states("Take the  Blue\npermit.", "blue permit") and not states("a permittance", "permit")
    assert states("the TOEFL", "IELTS|TOEFL") and not states("the ICELTS", "IELTS|TOEFL")
    found = of_facts(["a and b", "a", "a, b and c", "x"], [["a", "b"], ["a", "b"], ["a", "b"], []], [["c"], ["c"], ["c"], []])  # fmt: skip
    assert found["domain_accuracy"].tolist() == [1, 0.5, 1]
    assert found["contradicts"].tolist() == [0, 0, 1] and found["all_right"].tolist() == [1, 0, 0]


def test_rouge_and_bleu_are_the_libraries_of_the_field():
    # longest common subsequence: 3 of 3 and of 6 words
    assert of_likeness(["the cat sat"], ["the cat on the mat sat"])["rouge_l"].tolist() == [pytest.approx(2 / 3)]  # fmt: skip
    assert bleu(["a b c d e"], ["a b c d e"]) == pytest.approx(1) and bleu(["x"], ["a b c d e"]) == 0


def test_what_was_gained_has_an_interval_over_the_items():
    draw = np.random.default_rng(0)
    before = draw.normal(size=50)
    difference = draw.normal(0.3, 1, size=50)
    told = gains({"x": before + difference, "same": before}, {"x": before, "same": before})
    half = 1.96 * difference.std() / 50**0.5  # what the bootstrap is near
    assert told["x_gain"] == pytest.approx(difference.mean())
    assert told["x_gain_low"] == pytest.approx(difference.mean() - half, abs=0.06)
    assert told["x_gain_high"] == pytest.approx(difference.mean() + half, abs=0.06)
    assert told["same_gain"] == told["same_gain_low"] == told["same_gain_high"] == 0


def test_answers_at_the_limit_are_counted_and_the_base_is_set_beside(tmp_path):
    rows = [{"messages": [*TALK[:3], {"role": "assistant", "content": ANSWER}], "facts": ["blue permit"], "wrong": ["red permit"]}] * 3  # fmt: skip
    task, _, splits, _ = prepared(tmp_path, [{"messages": TALK, "facts": [""], "wrong": [""]}], rows, measure_before=True)  # fmt: skip
    now = [{"completion": ANSWER, "finished": True}] * 2 + [
        {"completion": "the red permit", "finished": False}
    ]
    before = [{"completion": "I don't know.", "finished": True}] * 3
    found = task.judge(splits["validation"], now)
    assert found["unfinished"] == pytest.approx(1 / 3) and found["domain_accuracy"] == pytest.approx(2 / 3)
    assert found["contradicts"] == pytest.approx(1 / 3) and found["markdown"] == pytest.approx(2 / 3)
    told = task.contrast(splits["validation"], now, before)
    assert told["abstains_gain"] == -1 and told["domain_accuracy_gain"] == pytest.approx(2 / 3)
    assert told["domain_accuracy_gain_low"] == 0 and told["domain_accuracy_gain_high"] == 1
