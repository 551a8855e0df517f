"""Writing after many prompts: batches, what ends a text, and how many steps of the model it takes."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoTokenizer

from adaptome.tasks import get_task, language
from adaptome.tasks.language import generate
from tests.tasks.tiny import small, spec

LLAMA = small("llama", num_key_value_heads=2, vocab_size=258)


@pytest.fixture
def tokenizer(byte_tokenizer_folder):
    return AutoTokenizer.from_pretrained(byte_tokenizer_folder)


class Scripted(nn.Module):
    """Writes what a script says after each prompt, token by token, as transformers' greedy search would."""

    def __init__(self, tokenizer, script):
        super().__init__()
        self.anything = nn.Parameter(torch.zeros(1))
        self.tokenizer, self.script, self.steps, self.rows, self.seen = tokenizer, script, 0, 0, []

    def generate(
        self,
        input_ids,
        attention_mask,
        max_new_tokens,
        stopping_criteria,
        eos_token_id,
        pad_token_id,
        **settings,
    ):
        self.seen.append(settings)
        given = [row[mask.bool()].tolist() for row, mask in zip(input_ids, attention_mask, strict=True)]
        running = torch.ones(len(given), dtype=torch.bool)
        for _ in range(max_new_tokens):
            self.steps += 1
            self.rows += len(given)
            new = torch.tensor(
                [self.following(row) if on else pad_token_id for row, on in zip(given, running, strict=True)]
            )
            given = [[*row, token] for row, token in zip(given, new.tolist(), strict=True)]
            input_ids = torch.cat([input_ids, new[:, None]], 1)
            running &= ~torch.isin(new, torch.tensor(eos_token_id)) & ~stopping_criteria(input_ids, None)
            if not running.any():
                break
        return input_ids

    def following(self, row):
        text = self.tokenizer.decode(row)
        prompt = next(prompt for prompt in self.script if text.startswith(prompt))
        written = self.tokenizer(self.script[prompt])["input_ids"]
        return written[len(row) - len(self.tokenizer(prompt)["input_ids"])]


def scripted(tokenizer, ends="<eos>"):
    """Forty prompts of unequal length; every eighth is answered at length, and every answer ends."""
    texts = {f"{n:02d}{'?' * (n % 7)}=": f"{n} " * (60 if n % 8 == 3 else 2 + n % 3) for n in range(40)}
    return Scripted(tokenizer, {prompt: text + ends for prompt, text in texts.items()}), texts


def test_a_text_that_goes_on_and_on_does_not_hold_up_the_others(tokenizer):
    """Those who have ended are not carried on with the few who have not: these go on together."""
    model, texts = scripted(tokenizer)
    assert generate(model, tokenizer, list(texts), 8, max_new_tokens=200) == list(texts.values())
    assert generate(model, tokenizer, [*texts][:1], 8, max_new_tokens=200) == [texts["00="]]
    model.steps = model.rows = 0
    generate(model, tokenizer, list(texts), 8, max_new_tokens=200)
    longest = len(texts["11????="]) + 1
    in_batches_of_8 = 5 * longest  # each would hold one of the five long ones
    assert model.steps < 0.5 * in_batches_of_8 and model.rows < 0.5 * 8 * in_batches_of_8


def test_a_batch_is_not_broken_up_for_less_than_it_costs(tokenizer, monkeypatch):
    monkeypatch.setattr(language, "READ_AGAIN", 1e9)
    model, texts = scripted(tokenizer)
    assert generate(model, tokenizer, list(texts), 8, max_new_tokens=200) == list(texts.values())
    assert len(model.seen) == 5


def test_no_text_is_longer_than_allowed_however_often_it_was_taken_up(tokenizer, monkeypatch):
    monkeypatch.setattr(language, "READ_AGAIN", 0)
    model, texts = scripted(tokenizer)
    for limit in (1, 7, 50):
        assert generate(model, tokenizer, list(texts), 4, max_new_tokens=limit) == [
            t[:limit] for t in texts.values()
        ]
    assert generate(model, tokenizer, [], 4, max_new_tokens=3) == []


def test_a_text_ends_where_the_next_question_begins(tokenizer):
    model, texts = scripted(tokenizer, "\n\n### Instruction:\nAnd how many hens?<eos>")
    stops = ("### Instruction:", "### Response:")
    assert generate(model, tokenizer, list(texts), 8, stops=stops, max_new_tokens=300) == [
        t.strip() for t in texts.values()
    ]
    steps = model.steps
    generate(model, tokenizer, list(texts), 8, max_new_tokens=300)
    assert steps < model.steps - steps


def test_the_tokens_that_end_a_text_are_the_tokenizers_and_the_models(tokenizer):
    from transformers import GenerationConfig

    model, texts = scripted(tokenizer, "!nothing more<eos>")
    end = tokenizer("!")["input_ids"][0]
    assert generate(model, tokenizer, list(texts), 8, max_new_tokens=99)[0].endswith("nothing more")
    for own in (end, [end, 7]):
        model.generation_config = GenerationConfig(eos_token_id=own)
        assert generate(model, tokenizer, list(texts), 8, max_new_tokens=99)[0] == texts["00="] + "!"
    assert model.seen[-1]["use_cache"] is True


@pytest.fixture
def llama(byte_tokenizer_folder):
    """A model that writes one thing after one prompt and another after another."""
    task, model = get_task("reasoning"), spec(from_config=LLAMA, tokenizer=byte_tokenizer_folder)
    torch.manual_seed(0)
    network = task.load_model(model, task.load_processor(model))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(6 if parameter.dim() > 1 else 1)
    return network


def test_rows_that_go_on_in_another_batch_write_what_they_write_alone(llama, tokenizer, monkeypatch):
    monkeypatch.setattr(language, "READ_AGAIN", 0)
    monkeypatch.setattr(
        language, "end_tokens", lambda *given: [1, *range(40, 60)]
    )  # so that rows end early and late
    prompts = [f"{'x' * (n % 5)}{n}" for n in range(24)]
    alone = [generate(llama, tokenizer, [one], 1, max_new_tokens=24)[0] for one in prompts]
    passes = []
    monkeypatch.setattr(llama, "generate", lambda *a, f=llama.generate, **k: passes.append(1) or f(*a, **k))
    assert generate(llama, tokenizer, prompts, 6, max_new_tokens=24) == alone
    assert len(passes) > 4 and len({len(text) for text in alone}) > 3


def test_what_was_read_is_not_read_at_every_step(llama, tokenizer):
    """A checkpoint that was saved without its cache switched on is none the slower."""
    llama.config.use_cache = llama.generation_config.use_cache = False
    read = []
    llama.register_forward_pre_hook(lambda m, a, k: read.append(k["input_ids"].shape[1]), with_kwargs=True)
    generate(llama, tokenizer, ["How many hens?"], 1, max_new_tokens=8)
    assert read == [14, *[1] * (len(read) - 1)] and len(read) > 1


def test_a_model_built_from_a_configuration_ends_with_the_tokenizers_token(llama, byte_tokenizer_folder):
    assert llama.config.eos_token_id == llama.generation_config.eos_token_id == 1  # Llama's own is 2
    task = get_task("reasoning")
    own = spec(from_config={**LLAMA, "eos_token_id": 5}, tokenizer=byte_tokenizer_folder)
    assert task.load_model(own, task.load_processor(own)).config.eos_token_id == 5
