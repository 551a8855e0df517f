"""Masked language modelling: what is hidden, what is scored, and which parts of a head train."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

import adaptome as ad
from adaptome.core.errors import DataError, RecipeError
from adaptome.data import load_splits
from adaptome.tasks import get_task
from adaptome.tasks.masked_lm import IGNORED, hidden
from tests.tasks.tiny import WORDS, small, spec


@pytest.fixture
def model(tokenizer_folder):
    return spec(from_config=small("bert", vocab_size=40), tokenizer=tokenizer_folder)


def files(tmp_path, lines):
    for name in ("train", "test"):
        (tmp_path / f"{name}.txt").write_text("\n".join(lines))
    return load_splits(str(tmp_path), validation_fraction=0)


def test_the_shares_of_hidden_tokens(model):
    task = get_task("masked-lm")
    processor = task.load_processor(model)
    torch.manual_seed(0)
    ids = torch.randint(5, len(processor), (400, 100))
    ids[:, 0], ids[:, -1] = processor.cls_token_id, processor.sep_token_id
    shown, labels = hidden(ids, processor, task.options)
    chosen = labels != IGNORED
    assert not chosen[:, 0].any() and not chosen[:, -1].any()
    assert torch.equal(labels[chosen], ids[chosen]) and torch.equal(shown[~chosen], ids[~chosen])
    assert chosen[:, 1:-1].float().mean().item() == pytest.approx(0.15, abs=0.005)
    masked = (shown == processor.mask_token_id)[chosen].float().mean().item()
    same = (shown == ids)[chosen].float().mean().item()
    size = len(processor)
    # a random token may be the mask token or the very one that stood there
    assert masked == pytest.approx(0.8 + 0.1 / size, abs=0.015)
    assert same == pytest.approx(0.1 + 0.1 / size, abs=0.015)


def test_validation_is_masked_once_and_train_anew(tmp_path, model):
    lines = ["the cat runs in paris and the dog sleeps in london"] * 12
    task = get_task("masked-lm")
    processor = task.load_processor(model)
    data, again = (task.prepare(files(tmp_path, lines), processor) for _ in range(2))
    assert data["test"][:] == again["test"][:] and "labels" not in data["train"].column_names
    rows = [data["train"][i] for i in range(12)]
    first, second = data.collator(rows), data.collator(rows)
    assert not torch.equal(first["labels"], second["labels"])
    fixed = data.collator([data["test"][i] for i in range(12)])
    assert fixed["input_ids"].tolist() == data["test"]["input_ids"]
    assert fixed["labels"].tolist() == data["test"]["labels"]


def test_long_texts_become_windows_that_lose_nothing(tmp_path, model):
    text = " ".join(WORDS * 3)
    task = get_task("masked-lm", max_length=20)
    processor = task.load_processor(model)
    data = task.prepare(files(tmp_path, [text, "a cat"]), processor)
    windows = data["train"]["input_ids"]
    inner = [i for row in windows[:-1] for i in row[1:-1]]
    assert inner == processor(text, add_special_tokens=False)["input_ids"] and len(windows) == 4
    assert max(data["train"]["length"]) == 20
    assert data.notes[0] == "1 texts of train exceed 20 tokens and became several windows (task.max_length)."


def test_the_perplexity_is_of_all_hidden_tokens(tmp_path, model):
    """Against the definition, computed for every hidden token by itself in float64."""
    task = get_task("masked-lm")
    processor = task.load_processor(model)
    data = task.prepare(files(tmp_path, ["the cat runs", "anna and bob in paris and london"] * 6), processor)
    built = task.load_model(model, processor).eval()
    batch = data.collator([data["test"][i] for i in range(12)])
    logits = built(**{k: v for k, v in batch.items() if k != "labels"}).logits.detach()
    found = task.metrics(SimpleNamespace(predictions=task.reduce(logits, batch["labels"])))
    losses = [
        -math.log(torch.softmax(logits[i, j].double(), 0)[batch["labels"][i, j]].item())
        for i, j in (batch["labels"] != IGNORED).nonzero().tolist()
    ]
    assert found["perplexity"] == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)
    with pytest.raises(DataError, match="no token of the split is hidden"):
        task.metrics(SimpleNamespace(predictions=torch.zeros(3, 3)))


@pytest.mark.parametrize("kind", ["bert", "deberta-v2", "electra"])
def test_a_new_head_trains_without_the_embeddings_it_shares(kind, model, tmp_path):
    """DeBERTa-v3 and ELECTRA ship no head for guessing tokens; their decoder is tied to the embeddings, which stay frozen."""
    extra = {"embedding_size": 32} if kind == "electra" else {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]} if kind == "deberta-v2" else {}  # fmt: skip
    model.from_config = small(kind, vocab_size=40, **extra)
    task = get_task("masked-lm")
    built = task.load_model(model)
    assert "no weights for the masked-LM head" in task.loading_notes[0]
    before = {n: p.detach().clone() for n, p in built.named_parameters()}
    ad.attach(built, "lora", r=2, targets=["q", "k", "v"], train=task.head_patterns(built))
    trained = ad.parameters_of(built)
    embeddings = built.get_input_embeddings().weight
    assert all(p.shape != embeddings.shape for p in trained.values())
    ids = torch.randint(5, 30, (4, 9))
    built.train()
    optimizer = torch.optim.SGD(trained.values(), lr=0.5)
    built(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad is not None for p in trained.values())
    optimizer.step()
    for name, value in built.named_parameters():
        if name in before:
            assert torch.equal(value, before[name]), name


def test_a_checkpoint_with_a_head_trains_the_adapter_alone(model, tmp_path):
    task = get_task("masked-lm")
    task.load_model(model).save_pretrained(tmp_path / "whole")
    whole = spec(name=str(tmp_path / "whole"), tokenizer=model.tokenizer)
    other = get_task("masked-lm")
    assert other.head_patterns(other.load_model(whole)) == [] and other.loading_notes == []


def test_predict_fills_the_masks(model):
    task = get_task("masked-lm")
    processor = task.load_processor(model)
    built = task.load_model(model, processor)
    found = task.predict(built, processor, ["the [MASK] runs", "a [MASK] and [MASK]"], batch_size=2)
    assert [len(f["fills"]) for f in found] == [1, 2]
    assert found[0]["completion"] == f"the {found[0]['fills'][0]} runs"
    with pytest.raises(DataError, match="where a token is to be guessed"):
        task.predict(built, processor, ["the cat"])


def test_what_cannot_be_masked_is_refused(byte_tokenizer_folder, model, tmp_path):
    with pytest.raises(RecipeError, match="has no mask token"):
        get_task("masked-lm").load_processor(spec(tokenizer=byte_tokenizer_folder))
    task = get_task("masked-lm", masked=0.8, random=0.3)
    with pytest.raises(RecipeError, match="together are more than 1"):
        task.prepare(files(tmp_path, ["the cat"] * 4), task.load_processor(model))
