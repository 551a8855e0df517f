"""Instructions answered in words: prompts, labels, batches, generation, scores by set, and what is refused."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from transformers import AutoTokenizer

from adaptome.cli import main
from adaptome.core.errors import DataError, RecipeError
from adaptome.data import load_splits
from adaptome.recipe import load_recipe
from adaptome.tasks import get_task, instructed
from adaptome.training import evaluate, predict, run
from tests.tasks.tiny import jsonl, small, spec, splits_of

ROWS = [
    {
        "instruction": f"Is {n} even?",
        "input": "",
        "output": f"the correct answer is {str(n % 2 == 0).lower()}",
        "answer": str(n % 2 == 0).lower(),
    }
    for n in range(12)
]
SUMS = [{"instruction": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(6)]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 258}
FAMILIES = {
    "llama": small("llama", num_key_value_heads=2, vocab_size=258),
    "bloom": {"model_type": "bloom", "n_layer": 2, "n_head": 2, "hidden_size": 32, "vocab_size": 258},
    "opt": {"model_type": "opt", "ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 512, **SIZES},
    "gptj": {"model_type": "gptj", "n_embd": 32, "n_layer": 2, "n_head": 2, "rotary_dim": 8, "vocab_size": 258},
    "gpt_neo": {"model_type": "gpt_neo", "hidden_size": 32, "num_layers": 2, "num_heads": 2, "vocab_size": 258, "attention_types": [[["global"], 2]]},
    "gpt2": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 258},
}  # fmt: skip


@pytest.fixture
def model(byte_tokenizer_folder):
    return spec(from_config=FAMILIES["llama"], tokenizer=byte_tokenizer_folder)


def prepared(tmp_path, model, rows=ROWS, **options):
    task = get_task("reasoning", **options)
    processor = task.load_processor(model)
    return task, processor, task.prepare(splits_of(tmp_path / "data", rows, rows[:3]), processor)


def learned(processor, row):
    return processor.decode(
        [t for t, label in zip(row["input_ids"], row["labels"], strict=True) if label >= 0]
    )


# -- prompts and labels --------------------------------------------------------------------------------------------


def test_the_clean_template(tmp_path, model):
    _, processor, data = prepared(tmp_path, model, max_length=512)
    expected = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nIs 1 even?\n\n### Response:\nthe correct answer is false<eos>"
    )
    assert processor.decode(data["train"][1]["input_ids"]) == expected


def test_the_template_of_the_released_checkpoints(tmp_path, model):
    """Sixteen spaces before every line but the first, also between the sections; and the spaces that end the first line."""
    rows = [{"instruction": "Add.", "input": "1 2", "output": "3"}, {"instruction": "Say 4.", "input": None, "output": "4"}] * 4  # fmt: skip
    _, processor, data = prepared(tmp_path, model, rows, template="alpaca-indented", max_length=512)
    s = " " * 16
    assert processor.decode(data["train"][0]["input_ids"]) == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request. \n\n"
        f"{s}### Instruction:\n{s}Add.\n{s}\n{s}### Input:\n{s}1 2\n{s}\n{s}### Response:\n{s}3<eos>"
    )
    assert processor.decode(data["train"][1]["input_ids"]) == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.  \n\n"
        f"{s}### Instruction:\n{s}Say 4.\n{s}\n{s}### Response:\n{s}4<eos>"
    )


def test_the_loss_is_over_the_whole_sequence_or_over_the_answer(tmp_path, model):
    _, processor, data = prepared(tmp_path, model, max_length=512)
    row = data["train"][0]
    assert row["labels"] == [-100, *row["input_ids"][1:]]  # the first token has nothing to be predicted from
    _, processor, data = prepared(tmp_path, model, max_length=512, train_on_inputs=False)
    row = data["train"][0]
    assert learned(processor, row) == "the correct answer is true<eos>"
    assert row["labels"][: -len("the correct answer is true") - 1] == [-100] * (len(row["labels"]) - 27)


def test_a_chat_template_is_the_tokenizers(tmp_path, model):
    _, processor, data = prepared(tmp_path, model, template="chat", train_on_inputs=False)
    assert (
        processor.decode(data["train"][0]["input_ids"])
        == "user: Is 0 even?\nassistant: the correct answer is true<eos>"
    )
    assert learned(processor, data["train"][0]) == "the correct answer is true<eos>"


def test_what_is_too_long_is_cut_and_told(tmp_path, model):
    rows = [*ROWS[:4], {**ROWS[4], "instruction": "x" * 300}]
    whole = len(prepared(tmp_path, model, rows, max_length=512)[2]["train"][0]["input_ids"])
    _, processor, data = prepared(tmp_path, model, rows, max_length=whole)
    assert data["train"][0]["input_ids"][-1] == processor.eos_token_id  # just room for it
    assert (
        len(data["train"][4]["input_ids"]) == whole
        and processor.eos_token_id not in data["train"][4]["input_ids"]
    )
    assert data.notes[0] == f"1 of 5 examples of train exceed {whole} tokens and were cut (task.max_length)."
    _, processor, data = prepared(tmp_path, model, rows, max_length=whole, train_on_inputs=False)
    assert len(data["train"]) == 4 and "left out of the loss" in data.notes[1]
    with pytest.raises(DataError, match=r"within task\.max_length=32"):
        prepared(tmp_path, model, rows, max_length=32, train_on_inputs=False)


def test_without_an_output_the_answer_is_learned(tmp_path, model):
    _, processor, data = prepared(tmp_path, model, SUMS, train_on_inputs=False)
    assert learned(processor, data["train"][2]) == "3<eos>"


# -- batches -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_on_the_left_changes_no_loss(tmp_path, byte_tokenizer_folder, family):
    """Rows of unequal length in one batch have the losses they have alone, whatever the model's kind of positions."""
    model = spec(from_config=FAMILIES[family], tokenizer=byte_tokenizer_folder)
    rows = [{"instruction": "x" * n, "output": "yes"} for n in (3, 20, 9, 1, 7)]
    task, processor, data = prepared(tmp_path, model, rows, template="chat")
    torch.manual_seed(0)
    network = task.load_model(model, processor).eval()
    batch = data.collator([data["train"][i] for i in range(4)])
    assert batch["input_ids"].shape[1] % 8 == 0
    assert (batch["input_ids"][batch["attention_mask"] == 0] == processor.pad_token_id).all()
    assert ((batch["labels"] == -100).sum(1) == 1 + (batch["attention_mask"] == 0).sum(1)).all()
    assert batch["attention_mask"][:, -1].all() and not batch["attention_mask"][0, 0]
    with torch.no_grad():
        together = task.reduce(network(**batch).logits, batch["labels"])
        for i in range(4):
            ids = torch.tensor([data["train"][i]["input_ids"]])
            alone = task.reduce(network(input_ids=ids).logits, ids)[0]
            assert torch.allclose(together[i], alone, rtol=1e-4), family


def test_generation_in_batches_gives_what_each_prompt_gives_alone(tmp_path, byte_tokenizer_folder):
    for family in ("llama", "gpt2"):
        model = spec(from_config=FAMILIES[family], tokenizer=byte_tokenizer_folder)
        task, processor, _ = prepared(tmp_path, model, template="chat", max_new_tokens=5, num_beams=2)
        torch.manual_seed(0)
        network = task.load_model(model, processor)
        with torch.no_grad():  # sharper, so that prompts matter to what is written
            for parameter in network.parameters():
                parameter.mul_(6 if parameter.dim() > 1 else 1)
        asked = ["a", "a much longer question", {"instruction": "b", "input": "c"}]
        together = task.predict(network, processor, asked, 3)
        assert together == [task.predict(network, processor, [one], 1)[0] for one in asked]
        assert len({one["completion"] for one in together}) > 1
        assert processor.padding_side == "left" and network.training


def test_a_bar_tells_how_far_generation_is_on_a_terminal_alone(tmp_path, model, monkeypatch, capsys):
    task, processor, _ = prepared(tmp_path, model, max_new_tokens=1)
    network = task.load_model(model, processor)
    task.predict(network, processor, ["a", "b"], 1)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    task.predict(network, processor, ["a", "b"], 1)
    shown = capsys.readouterr()
    assert "generating" in shown.err and "2/2" in shown.err and shown.out == ""


def test_fields_of_sampling_reach_generate_only_with_sampling(tmp_path, model, monkeypatch):
    seen = []
    for options in ({"num_beams": 4}, {"sample": True, "temperature": 0.1, "top_p": 0.75, "top_k": 40}):
        task, processor, _ = prepared(tmp_path, model, max_new_tokens=2, **options)
        network = task.load_model(model, processor)
        monkeypatch.setattr(network, "generate", lambda **given: seen.append(given) or given["input_ids"])
        task.predict(network, processor, ["a"])
    assert {k: v for k, v in seen[0].items() if k not in ("input_ids", "attention_mask", "stopping_criteria")} == {
        "pad_token_id": 0, "eos_token_id": [1], "use_cache": True, "max_new_tokens": 2, "num_beams": 4, "do_sample": False,
    }  # fmt: skip
    assert seen[1]["do_sample"] and (seen[1]["temperature"], seen[1]["top_p"], seen[1]["top_k"]) == (
        0.1,
        0.75,
        40,
    )
    with pytest.raises(RecipeError, match=r"task\.temperature has no effect without sampling"):
        get_task("reasoning", temperature=0.1, num_beams=4)


# -- scores --------------------------------------------------------------------------------------------------------


def folder_of(tmp_path, **sets):
    files = []
    for name, rows in sets.items():
        (tmp_path / name).mkdir(exist_ok=True)
        files.append(jsonl(tmp_path / name / "test.jsonl", rows))
    return files


def row(answer, instruction="q"):
    return {"instruction": instruction, "answer": answer}


def test_accuracy_is_the_unweighted_mean_over_the_sets(tmp_path):
    files = folder_of(
        tmp_path,
        gsm8k=[row("3"), row("4"), row("1,200"), row("6")],
        AQuA=[row("A"), row("B")],
        boolq=[row("true")],
    )
    split = load_splits(test=files)["test"]
    texts = [
        "3 or so 3.",
        "none",
        "it is 1200.",
        "60",
        "All: the answer is (B)",
        "the answer is B",
        "false or true",
    ]
    predictions = [{"completion": text} for text in texts]
    scores = get_task("reasoning").judge(split, predictions)
    assert scores == {
        "accuracy": pytest.approx((0.5 + 0.5 + 0.0) / 3), "micro_accuracy": pytest.approx(3 / 7), "unread": pytest.approx(1 / 7),
        "accuracy_gsm8k": 0.5, "accuracy_aqua": 0.5, "accuracy_aqua_first_letter": 1.0, "accuracy_boolq": 0.0,
    }  # fmt: skip
    assert [one["right"] for one in predictions] == [True, False, True, False, False, True, False]
    assert predictions[1]["answer"] is None and predictions[2]["answer"] == 1200
    assert {one["dataset"] for one in predictions} == {"gsm8k", "aqua", "boolq"}
    json.dumps(predictions, allow_nan=False)


def test_a_column_names_the_set_row_by_row_and_the_answer_may_stand_in_the_output(tmp_path):
    rows = [{"instruction": "q", "output": "2+1 = <<2+1=3>>3\n#### 3", "dataset": "GSM8K"}, {"instruction": "q", "output": "The answer is C.", "dataset": "AQuA"}]  # fmt: skip
    split = load_splits(test=jsonl(tmp_path / "mix.jsonl", rows))["test"]
    scores = get_task("reasoning").judge(split, [{"completion": "3"}, {"completion": "the answer is D"}])
    assert scores["accuracy_gsm8k"] == 1 and scores["accuracy_aqua"] == 0 and scores["accuracy"] == 0.5


def test_files_of_other_shapes_go_together(tmp_path):
    """GSM8K's question with a worked answer, MAWPS's numbers, and the records of the study, in one split."""
    task = get_task("reasoning")
    files = folder_of(
        tmp_path,
        gsm8k=[{"question": "q", "answer": "1+2 = <<1+2=3>>3\n#### 3"}],
        mawps=[
            {"question": "q", "equation": "x=3", "answer": 18.0},
            {"question": "q", "equation": "x", "answer": "12"},
        ],
        piqa=[ROWS[0] | {"answer": "solution2"}],
    )
    split = load_splits(test=files, texts=task.texts)["test"]
    texts = ["3.0005", "18", "13", "solution2"]
    scores = task.judge(split, [{"completion": text} for text in texts])
    assert scores == {
        "accuracy": pytest.approx(2.5 / 3), "micro_accuracy": 0.75, "unread": 0, "accuracy_gsm8k": 1, "accuracy_mawps": 0.5,
        "accuracy_piqa": 1,
    }  # fmt: skip
    assert task.inputs(split.rows)[0] == {"instruction": "q", "input": None}


QUIZ = {
    "question": "What is 3 + 4?",
    "options": ["A)5", "B) 7", "(C) 1,200", "D)B)", "E)E"],
    "rationale": "3 + 4 = 7.\nAnswer B",
    "correct": "B",
}


def test_the_options_of_a_question_are_shown_with_it(tmp_path):
    """The files of AQuA have them in a column; those of LLM-Adapters in the instruction, in this form."""
    task = get_task("reasoning")
    lists = jsonl(tmp_path / "quiz.jsonl", [QUIZ, {**QUIZ, "options": None}])
    split = load_splits(test=lists, texts=task.texts, columns={"output": "rationale", "answer": "correct"})[
        "test"
    ]
    shown = "What is 3 + 4? Answer Choices: (A) 5 (B) 7 (C) 1,200 (D) B) (E) E"
    assert [one["instruction"] for one in task.inputs(split.rows)] == [shown, "What is 3 + 4?"]
    assert task.judge(split, [{"completion": QUIZ["rationale"]}, {"completion": "7"}])["accuracy"] == 0.5
    files = [
        jsonl(tmp_path / "quiz.jsonl", [{"question": "q", "options": ["A)1", "B)2"], "answer": "B"}]),
        jsonl(tmp_path / "aqua.jsonl", [row("A")]),
    ]
    mixed = load_splits(test=files, texts=task.texts)["test"]
    assert [one["instruction"] for one in task.inputs(mixed.rows)] == ["q Answer Choices: (A) 1 (B) 2", "q"]


def test_options_that_are_no_list_of_texts_are_refused(tmp_path, model):
    with pytest.raises(DataError, match=r"line 2: 'options' is \[1\]; expected a list of texts"):
        prepared(tmp_path, model, [row("A") | {"options": None}, row("B") | {"options": [1]}])


@pytest.mark.parametrize(
    ("name", "answer", "right", "wrong"),
    [
        ("gsm8k", "1,000 + 234 = <<1000+234=1234>>1,234\n#### 1,234", ["The answer is 1,234.00 dollars.", "**Answer:** $1,234$", "#### 1234"], ["1234.01", "234", "12"]),
        ("svamp", "8.0", ["He has 8 hens left.", "16 / 2 = 8.0", "10 - 2 = 8."], ["-8", "80", "eight"]),
        ("mawps", "1.8333333333333335", ["about 1.833", "1.83333333 inches"], ["1.83", "11/6"]),
        ("singleeq", "-3", ["x = -3", "it is -3.0 degrees"], ["3"]),
        ("aqua", "C", ["The answer is (C) 20.", "Therefore, the correct option is C.", "C"], ["The answer is (D)", "See"]),
        ("boolq", "true", ["the correct answer is true", "true, not false"], ["the correct answer is false", ""]),
        ("piqa", "solution2", ["the correct answer is solution2"], ["the correct answer is solution1"]),
        ("social_iqa", "answer3", ["the correct answer is answer3", "answer3: they rest"], ["answer1"]),
        ("winogrande", "option1", ["the correct answer is option1"], ["option2", "option"]),
        ("arc_challenge", "answer4", ["the correct answer is answer4."], ["answer5"]),
        ("openbookqa", "answer2", ["the correct answer is answer2"], ["solution2"]),
    ],
)  # fmt: skip
def test_answers_in_the_words_of_each_set(tmp_path, name, answer, right, wrong):
    """A text that is the record's own answer is right, and so is the answer in other words; another is not."""
    texts = [answer, *right, *wrong]
    split = load_splits(
        test=folder_of(tmp_path, **{name: [row(answer)] * len(texts)}), texts=get_task("reasoning").texts
    )["test"]
    predictions = [{"completion": text} for text in texts]
    get_task("reasoning").judge(split, predictions)
    assert [one["right"] for one in predictions] == [True] * (1 + len(right)) + [False] * len(wrong)


def test_texts_without_an_answer_are_counted(tmp_path, caplog):
    """Not right, and told apart from answers that are wrong: the form failed, not the sum."""
    split = load_splits(test=folder_of(tmp_path, boolq=[row("true")] * 4))["test"]
    scores = get_task("reasoning").judge(
        split, [{"completion": text} for text in ("True", "", "false", "true")]
    )
    assert (scores["accuracy"], scores["unread"]) == (0.25, 0.5)
    assert "micro_accuracy" not in scores  # of one set it is the accuracy
    assert caplog.messages == []
    get_task("reasoning").judge(split, [{"completion": text} for text in ("True", "", "False", "true")])
    assert (
        "boolq: no answer (one of true, false) can be read from 3 of 4 texts, such as 'True'"
        in caplog.messages[0]
    )


def test_how_an_unknown_set_is_read_is_told(tmp_path, model):
    told = {"yes": "one of no, yes", "7": "a number", "B": "a letter from A to E"}
    for answer, how in told.items():
        rows = [row(answer), row("no" if answer == "yes" else answer)]
        notes = prepared(tmp_path, model, rows, max_length=512)[2].notes
        assert notes == [
            f"the set 'data' is not known, so its answers are read as they look: {how}. task.read says otherwise."
        ]
    assert prepared(tmp_path, model, rows, max_length=512, read="text")[2].notes == []


def test_the_recipe_may_say_how_answers_are_read(tmp_path):
    split = load_splits(test=jsonl(tmp_path / "mine.jsonl", [row("no"), row("yes")]))["test"]
    task = get_task("reasoning", read="choice", choices=["yes", "no"])
    assert task.judge(split, [{"completion": "I say no."}, {"completion": "no"}])["accuracy_mine"] == 0.5
    with pytest.raises(RecipeError, match="go together"):
        get_task("reasoning", read="choice")
    with pytest.raises(
        RecipeError, match=r"task\.choices=\[True, False\]: without quotes, YAML takes yes, no"
    ):
        get_task("reasoning", read="choice", choices=[True, False])


# -- what is refused -----------------------------------------------------------------------------------------------


def test_columns_and_answers_that_cannot_be_used_are_named(tmp_path, model):
    with pytest.raises(DataError, match=r"no column 'instruction'"):
        prepared(tmp_path, model, [{"task": "q", "answer": "1"}] * 4)
    with pytest.raises(DataError, match=r"neither output.*\n.*\{answer: Answer\}"):
        prepared(tmp_path, model, [{"instruction": "q", "Answer": "1", "reply": "1"}] * 4)
    with pytest.raises(DataError, match=r"train\.jsonl, line 2: no value for 'output'"):
        prepared(tmp_path, model, [row("1"), row(""), row("2")])
    with pytest.raises(DataError, match=r"line 3: 'instruction' is ' '"):
        prepared(tmp_path, model, [row("1"), row("1"), row("1", " ")])
    with pytest.raises(DataError, match=r"empty"):
        prepared(tmp_path, model, [])
    (file,) = folder_of(tmp_path, svamp=[row("3"), row("many")])
    with pytest.raises(
        DataError, match=r"svamp/test\.jsonl, line 2: no number can be read from the answer 'many'"
    ):
        task = get_task("reasoning")
        task.prepare(load_splits(test=file), task.load_processor(model))


def test_tokenizers_without_what_the_task_needs_are_refused(tmp_path, byte_tokenizer_folder):
    bare = AutoTokenizer.from_pretrained(byte_tokenizer_folder)
    bare.chat_template = None
    bare.save_pretrained(tmp_path / "no-chat")
    with pytest.raises(RecipeError, match="has no chat template"):
        get_task("reasoning", template="chat").load_processor(spec(tokenizer=str(tmp_path / "no-chat")))
    bare.eos_token = None
    bare.save_pretrained(tmp_path / "no-end")
    with pytest.raises(RecipeError, match="no end-of-sequence token"):
        get_task("reasoning").load_processor(spec(tokenizer=str(tmp_path / "no-end")))
    unpadded = AutoTokenizer.from_pretrained(byte_tokenizer_folder)
    unpadded.pad_token = None
    unpadded.save_pretrained(tmp_path / "no-pad")
    assert get_task("reasoning").load_processor(spec(tokenizer=str(tmp_path / "no-pad"))).pad_token == "<eos>"


def test_questions_without_their_numbers_are_told(tmp_path, model):
    rows = [row("9", "Tom has number0 hens and buys number1 .")] * 4
    _, _, data = prepared(tmp_path, model, rows, max_length=512)
    assert data.notes[0].startswith("4 of 4 questions of train have placeholders such as number0")


def test_testing_on_what_was_trained_on_is_refused_or_told(tmp_path, model):
    train = tmp_path / "mawps" / "train.jsonl"
    train.parent.mkdir()
    jsonl(train, [row("3", "Tom has 3 hens . How many ?"), row("4", "Ann has 4 .")] * 4)
    files = folder_of(
        tmp_path, addsub=[row("3", "tom has 3 hens. How many?")], svamp=[row("9", "Sue has 9.")]
    )
    refused = get_task("reasoning")
    processor = refused.load_processor(model)
    with pytest.raises(DataError, match=r"mawps holds questions of addsub.*\n.*task\.allow_contamination"):
        refused.prepare(load_splits(train=str(train), test=files), processor)
    told = get_task("reasoning", allow_contamination=True).prepare(
        load_splits(train=str(train), test=files, validation_fraction=0), processor
    )
    assert "mawps is known to hold questions of addsub." in told.notes
    assert "1 of 2 questions of test stand in train." in told.notes
    clean = refused.prepare(load_splits(train=str(train), test=files[1]), processor)
    assert clean.notes == []


# -- in a run ------------------------------------------------------------------------------------------------------


@pytest.fixture
def recipe(tmp_path, byte_tokenizer_folder):
    train = tmp_path / "train.json"
    train.write_text(json.dumps(ROWS * 4))
    tests = folder_of(tmp_path, boolq=ROWS[:5], gsm8k=[{**ROWS[0], "answer": "3", "output": "3"}])
    return {
        "model": {"from_config": FAMILIES["llama"], "tokenizer": byte_tokenizer_folder},
        "task": {"name": "reasoning", "template": "chat", "max_new_tokens": 40},
        "data": {"train": str(train), "test": tests},
        "methods": [{"name": "lora", "r": 8, "targets": "all-linear"}],
        "training": {"max_steps": 4, "batch_size": 8, "learning_rate": 0.01, "device": "cpu"},
        "evaluation": {"predictions": True},
        "output": str(tmp_path / "out"),
    }  # fmt: skip


def test_a_run_is_scored_by_its_answers_and_again_by_eval_and_predict(tmp_path, recipe, capsys, monkeypatch):
    result = run(load_recipe(recipe))
    assert set(result.metrics) == {
        "loss", "perplexity", "token_accuracy", "accuracy", "micro_accuracy", "unread", "accuracy_boolq", "accuracy_gsm8k",
    }  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    rights = [line["prediction"]["right"] for line in lines]
    assert result.metrics["accuracy"] == (sum(rights[:5]) / 5 + rights[5]) / 2
    assert [line["truth"] for line in lines] == [*(r["answer"] for r in ROWS[:5]), "3"]
    assert "boolq/test.jsonl, line 1" in lines[0]["where"]
    assert evaluate(tmp_path / "out") == pytest.approx(result.metrics)
    given = []
    monkeypatch.setattr(instructed, "generate", lambda *a, **k: given.append(k) or ["true"] * len(a[2]))
    told = evaluate(tmp_path / "out", overrides=["task.max_new_tokens=1", "task.num_beams=2"])
    assert (given[0]["max_new_tokens"], given[0]["num_beams"]) == (1, 2) and told["accuracy_boolq"] == 0.6
    monkeypatch.undo()
    with pytest.raises(RecipeError, match="learned reasoning"):
        evaluate(tmp_path / "out", overrides=["task={name: causal-lm}"])
    written = predict(tmp_path / "out", ["Is 0 even?"])
    assert written == [{"completion": lines[0]["prediction"]["completion"]}]
    with pytest.raises(SystemExit):
        main(["predict", str(tmp_path / "out"), "Is 0 even?"])
    assert capsys.readouterr().out.splitlines()[-1].endswith("\tIs 0 even?")


def test_the_loss_told_is_the_mean_over_tokens(tmp_path, recipe):
    """However the rows fall into batches; computed here row by row."""
    result = run(load_recipe(recipe))
    other = evaluate(tmp_path / "out", overrides=["evaluation.batch_size=1"])
    assert result.metrics["loss"] == pytest.approx(other["loss"], rel=1e-5)
    assert result.metrics["token_accuracy"] == pytest.approx(other["token_accuracy"])
