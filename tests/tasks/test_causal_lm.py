"""Causal language modelling: columns for the SFTTrainer, exact scores, generation."""

from __future__ import annotations

import json
import math
import sys
from types import SimpleNamespace

import pytest
import torch

from adaptome.core.errors import DataError, RecipeError
from adaptome.tasks import get_task
from adaptome.tasks.language import perplexity
from tests.tasks.tiny import small, spec, splits_of

PAIRS = [
    {"question": q, "answer": a}
    for q, a in (("1+1", "two"), ("2+2", "four"), ("3+3", "six"), ("4+4", "eight"))
]
CHATS = [
    {"messages": [{"role": "user", "content": p["question"]}, {"role": "assistant", "content": p["answer"]}]}
    for p in PAIRS
]
TEMPLATES = {"prompt": "Q: {question}\nA:", "completion": " {answer}"}


@pytest.fixture
def model(byte_tokenizer_folder):
    return spec(
        from_config=small("llama", num_key_value_heads=2, vocab_size=258), tokenizer=byte_tokenizer_folder
    )


def prepared(tmp_path, model, rows=PAIRS, columns=None, **options):
    task = get_task("causal-lm", **options)
    processor = task.load_processor(model)
    return (
        task,
        processor,
        task.prepare(splits_of(tmp_path / "data", rows, rows[:2], columns=columns), processor),
    )


def trainer_of(tmp_path, task, processor, data, model, **arguments):
    trl = pytest.importorskip("trl")
    plain = {"use_cpu": True, "bf16": False, "report_to": [], "save_strategy": "no", "disable_tqdm": True}
    small_run = {"per_device_train_batch_size": 2, "max_steps": 2}
    config = trl.SFTConfig(
        str(tmp_path / "run"), **{**plain, **small_run, **task.sft_arguments(), **arguments}
    )
    built = task.load_model(model, processor)
    sets = {"train_dataset": data["train"], "eval_dataset": data["validation"]}
    return trl.SFTTrainer(built, config, **sets, processing_class=processor)


def test_templates_make_prompts_and_completions(tmp_path, model):
    task, processor, data = prepared(tmp_path, model, **TEMPLATES, max_length=64)
    assert data["train"][1] == {"prompt": "Q: 2+2\nA:", "completion": " four"}
    trainer = trainer_of(tmp_path, task, processor, data, model)
    row = trainer.train_dataset[1]
    learned = [t for t, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
    assert processor.decode(learned) == " four<eos>"
    assert processor.decode(row["input_ids"]) == "Q: 2+2\nA: four<eos>"


def test_the_whole_example_may_be_learned(tmp_path, model):
    task, processor, data = prepared(tmp_path, model, **TEMPLATES, completion_only_loss=False)
    arguments = task.sft_arguments()
    row = trainer_of(tmp_path, task, processor, data, model, **arguments).train_dataset[0]
    assert row["labels"] == row["input_ids"]


def test_chats_use_the_tokenizers_template(tmp_path, model):
    task, processor, data = prepared(tmp_path, model, CHATS)
    row = trainer_of(tmp_path, task, processor, data, model).train_dataset[0]
    assert processor.decode(row["input_ids"]).startswith("user: 1+1\nassistant: two")


def test_mapped_columns_and_plain_text(tmp_path, model):
    columns = {"prompt": "question", "completion": "answer"}
    _, _, data = prepared(tmp_path, model, columns=columns)
    assert data["train"][0] == {"prompt": "1+1", "completion": "two"}
    _, _, data = prepared(tmp_path, model, columns={"text": "answer"})
    assert data["train"].column_names == ["text"]


def test_wrapped_rows_are_full(tmp_path, model):
    rows = [{"text": "x" * n} for n in (9, 5, 12, 3)]
    task, processor, data = prepared(
        tmp_path, model, rows, packing=True, packing_strategy="wrapped", max_length=8
    )
    packed = trainer_of(tmp_path, task, processor, data, model).train_dataset
    lengths = [len(ids) for ids in packed["input_ids"]]
    assert lengths[:-1] == [8] * (len(lengths) - 1)
    assert sum(lengths) == 9 + 5 + 12 + 3 + 4  # and an end-of-sequence token each


def test_packed_examples_do_not_see_each_other(tmp_path, model):
    scores = {}
    for packing in (False, True):
        task, processor, data = prepared(tmp_path, model, **TEMPLATES, packing=packing, max_length=40)
        torch.manual_seed(0)
        trainer = trainer_of(tmp_path, task, processor, data, model)
        assert len(trainer.train_dataset) == (2 if packing else 4)
        scores[packing] = task.score(trainer.model, trainer.get_train_dataloader())
    assert scores[True] == pytest.approx(scores[False], rel=1e-5)


def test_training_and_scores(tmp_path, model):
    torch.manual_seed(0)
    task, processor, data = prepared(tmp_path, model, **TEMPLATES, max_length=64)
    trainer = trainer_of(
        tmp_path, task, processor, data, model, max_steps=60, learning_rate=5e-3, lr_scheduler_type="constant",
        per_device_eval_batch_size=1,
    )  # fmt: skip
    trainer.train()
    logs = trainer.evaluate()
    assert set(task.from_logs(logs)) == {"perplexity", "token_accuracy"}
    assert task.from_logs(logs)["perplexity"] == pytest.approx(math.exp(logs["eval_loss"]))
    exact = task.score(trainer.model, trainer.get_eval_dataloader())
    assert exact["loss"] < 0.3 and exact["token_accuracy"] > 0.9
    found = get_task("causal-lm", max_new_tokens=6).predict(
        trainer.model, processor, ["Q: 1+1\nA:", "Q: 2+2\nA:"]
    )
    assert [f["completion"] for f in found] == [" two", " four"]
    assert processor.padding_side == "right"


def test_scores_are_means_over_tokens_not_batches(model):
    task = get_task("causal-lm")
    torch.manual_seed(0)
    built = task.load_model(model)
    ids = torch.randint(2, 258, (3, 7))
    labels = ids.clone()
    labels[0, :5] = -100
    batches = [{"input_ids": ids[:1], "labels": labels[:1]}, {"input_ids": ids[1:], "labels": labels[1:]}]
    scores = task.score(built, batches)
    log = built.eval()(input_ids=ids).logits[:, :-1].log_softmax(-1)
    kept = labels[:, 1:] != -100
    losses = -log.gather(-1, ids[:, 1:, None])[..., 0][kept]
    assert scores["loss"] == pytest.approx(losses.mean().item(), rel=1e-5)
    assert scores["perplexity"] == pytest.approx(losses.mean().exp().item(), rel=1e-5)
    assert scores["token_accuracy"] == pytest.approx(
        (log.argmax(-1) == ids[:, 1:])[kept].float().mean().item()
    )
    result = SimpleNamespace(
        predictions=built(input_ids=ids).logits.detach().numpy(), label_ids=labels.numpy()
    )
    assert task.metrics(result) == pytest.approx(scores, rel=1e-4)


def test_a_loss_without_tokens_is_an_error(model):
    task = get_task("causal-lm")
    ids = torch.zeros(1, 4, dtype=torch.long)
    with pytest.raises(DataError, match="No token counts towards the loss"):
        task.score(task.load_model(model), [{"input_ids": ids, "labels": torch.full_like(ids, -100)}])


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([{"role": "usr", "content": "x"}], r"message 1 has the role 'usr'\. Did you mean 'user'\?"),
        ([{"role": "user", "content": "x"}], "the chat has no assistant's message"),
        ([], "a chat is a list of messages"),
        ([{"role": "user", "text": "x"}], "message 1 needs role and content; it has role, text"),
    ],
)
def test_bad_chats_name_the_line(tmp_path, model, messages, text):
    with pytest.raises(DataError, match=rf"train\.jsonl, line 2: {text}"):
        prepared(tmp_path, model, [CHATS[0], {"messages": messages}])


def test_columns_and_templates_that_do_not_fit_are_told(tmp_path, model):
    with pytest.raises(DataError) as caught:
        prepared(tmp_path, model)
    assert "none of the columns messages, prompt and completion, or text." in str(caught.value)
    assert "Columns there: question, answer." in str(caught.value)
    with pytest.raises(
        RecipeError, match=r"task\.prompt: .* has no column 'quest'\. Did you mean 'question'\?"
    ):
        prepared(tmp_path, model, prompt="{quest}", completion="{answer}")
    with pytest.raises(RecipeError, match="give both"):
        prepared(tmp_path, model, prompt="{question}")
    with pytest.raises(RecipeError, match=r"task\.prompt='\{question': expected '\}'"):
        prepared(tmp_path, model, prompt="{question", completion="{answer}")
    with pytest.raises(DataError, match="has no column 'completion'"):
        prepared(tmp_path, model, columns={"prompt": "question"})
    with pytest.raises(DataError, match=r"train\.jsonl, line 2: 'text' is empty"):
        prepared(tmp_path, model, [{"text": "x"}, {"text": ""}])


def test_chats_need_a_template(tmp_path, model, tokenizer_folder):
    task = get_task("causal-lm")
    processor = task.load_processor(model)
    processor.chat_template = None
    with pytest.raises(DataError, match=r"holds chats \(messages\), but the tokenizer has no chat template"):
        task.prepare(splits_of(tmp_path / "data", CHATS, CHATS), processor)
    (tmp_path / "own.jinja").write_text("{% for m in messages %}<{{ m['content'] }}>{% endfor %}")
    own = get_task("causal-lm", chat_template=str(tmp_path / "own.jinja")).load_processor(model)
    assert own.apply_chat_template(CHATS[0]["messages"], tokenize=False) == "<1+1><two>"
    with pytest.raises(RecipeError, match="no such file"):
        get_task("causal-lm", chat_template="nowhere.jinja").load_processor(model)
    with pytest.raises(RecipeError, match="has no end-of-sequence token"):
        task.load_processor(spec(from_config=small("llama"), tokenizer=tokenizer_folder))


def test_a_perplexity_out_of_range_stays_a_number_that_json_has():
    assert json.loads(json.dumps(perplexity(1e4), allow_nan=False)) == sys.float_info.max
