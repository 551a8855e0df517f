"""Losses without logits: the numbers of the plain path, for any head, in less memory."""

import copy

import pytest
import torch
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    Cohere2Config,
    Cohere2ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

import adaptome as ad
from adaptome.objectives import chunked
from adaptome.objectives.chunked import chunked_loss, fold
from adaptome.objectives.deferred import DeferredLogits, deferred_logits

SMALL = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
    "vocab_size": 50, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


@pytest.fixture(autouse=True)
def few_rows(monkeypatch):
    """Several parts of a small batch, the last one smaller."""
    monkeypatch.setattr(chunked, "AT_HAND", 150)
    monkeypatch.setattr(chunked, "LEAST_ROWS", 3)


def llama(kind=LlamaForCausalLM, config=LlamaConfig, **settings):
    torch.manual_seed(0)
    return kind(config(**SMALL | settings))


def batch():
    torch.manual_seed(1)
    ids = torch.randint(3, 50, (3, 7))
    labels = ids.clone()
    labels[0, :4] = labels[1, 2] = -100
    return {"input_ids": ids, "labels": labels}


def gradients(model, block, **inputs):
    """The loss, and the gradient of all that trains."""
    model.zero_grad()
    with block:
        loss = model(**inputs).loss
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def same(model, close=None, **inputs):
    """Both ways give one loss and one set of gradients; returns what the deferred one counted."""
    from contextlib import nullcontext

    expected, plain = gradients(model, nullcontext(), **inputs)
    with deferred_logits(model) as seen:
        found, ours = gradients(model, nullcontext(), **inputs)
    torch.testing.assert_close(found, expected, **close or {})
    assert ours.keys() == plain.keys() and ours
    for name in plain:
        torch.testing.assert_close(ours[name], plain[name], **close or {})
    return seen


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_and_gradients_are_those_of_the_whole_logits_in_float64(smoothing):
    torch.manual_seed(0)
    head = nn.Linear(8, 50).double()
    rows, targets = torch.randn(11, 8, dtype=torch.float64, requires_grad=True), torch.randint(50, (11,))
    head.weight.data *= 4
    total, correct, entropy = chunked_loss(rows, targets, head.forward, head, smoothing)
    (total * 0.3).backward()
    found = [rows.grad, head.weight.grad, head.bias.grad]
    rows.grad = head.weight.grad = head.bias.grad = None
    logits = head(rows)
    expected = nn.functional.cross_entropy(logits, targets, label_smoothing=smoothing, reduction="sum")
    (expected * 0.3).backward()
    torch.testing.assert_close(total, expected, rtol=1e-13, atol=0)
    for ours, plain in zip(found, [rows.grad, head.weight.grad, head.bias.grad], strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-11, atol=1e-13)
    p = logits.softmax(-1)
    torch.testing.assert_close(entropy, -(p * p.log()).sum(), rtol=1e-11, atol=0)
    assert correct == (logits.argmax(-1) == targets).sum()


def test_of_equal_logits_the_first_is_the_likeliest():
    z = torch.zeros(2, 5)
    measured, _ = fold(z, torch.tensor([0, 3]), 0.0, False)
    assert measured[1] == 1


@pytest.mark.parametrize("base", ["frozen", "trained", "tied"])
def test_a_models_loss_and_gradients_are_as_before(base):
    model = llama(tie_word_embeddings=base == "tied").requires_grad_(base != "frozen")
    if base == "frozen":
        ad.attach(model, "lora", targets="all-linear", seed=0)
        nn.init.normal_(model.model.layers[0].self_attn.q_proj.adaptome["default"].B)
    seen = same(model, **batch())
    counted = batch()["labels"][:, 1:] != -100
    assert seen.unread and seen.tokens == counted.sum()
    logits = model(batch()["input_ids"]).logits[:, :-1]
    assert seen.correct == ((logits.argmax(-1) == batch()["labels"][:, 1:]) & counted).sum()


def test_the_accumulated_batchs_items_and_shifted_labels_are_heeded():
    model, inputs = llama(), batch()
    same(model, **inputs, num_items_in_batch=torch.tensor(40))
    same(model, **inputs, num_items_in_batch=17)
    shifted = nn.functional.pad(inputs["labels"], (0, 1), value=-100)[:, 1:].contiguous()
    same(model, **inputs, shift_labels=shifted)


def test_packed_rows_are_as_before():
    model, inputs = llama(attn_implementation="sdpa"), batch()
    flat = {name: value.reshape(1, -1) for name, value in inputs.items()}
    same(model, **flat, position_ids=torch.arange(7).repeat(3)[None])


@pytest.mark.parametrize("method, unread", [("lora", True), ("vera", False), ("dora", False)])
def test_an_adapter_on_the_head_trains_as_before(method, unread):
    """By rows where all that trains is its own; whole where tensors are shared or the weight itself is made anew."""
    model = llama().requires_grad_(False)
    ad.attach(model, method, targets="=lm_head", seed=0)
    for parameter in ad.parameters_of(model).values():
        nn.init.normal_(parameter, std=0.3)
    seen = same(model, **batch())
    assert (seen is not None and seen.unread) or not unread
    with ad.steer(task="one"):  # an adapter may look up each sample's rows
        seen = same(model, **batch())
    assert seen is None or not seen.unread


def test_scales_and_caps_on_the_logits_stay_deferred():
    for model in (
        llama(Gemma2ForCausalLM, Gemma2Config, head_dim=8, final_logit_softcapping=0.05),
        llama(Cohere2ForCausalLM, Cohere2Config, logit_scale=3.0),
    ):
        assert same(model, **batch()).unread


def test_whoever_reads_the_logits_gets_them():
    model, inputs = llama(), batch()
    expected = model(**inputs)
    with deferred_logits(model) as seen:
        found = model(**inputs)
        assert isinstance(found.logits, DeferredLogits) and found.logits.shape == (3, 7, 50)
        assert seen.unread
        torch.testing.assert_close(found.logits + 0, expected.logits)
        torch.testing.assert_close(torch.cat([found.logits[:, -1], found.logits[:, 0]]), torch.cat([expected.logits[:, -1], expected.logits[:, 0]]))  # fmt: skip
        assert not seen.unread
        wide = model(inputs["input_ids"]).logits.to(torch.float64) / 2
        assert type(wide) is DeferredLogits and wide.dtype == torch.float64
        torch.testing.assert_close(wide[0], expected.logits[0].double() / 2)
        unlabelled = model(inputs["input_ids"]).logits.float().softmax(-1)
    torch.testing.assert_close(unlabelled, expected.logits.softmax(-1))
    grads = torch.autograd.grad(unlabelled[..., 5].sum(), model.lm_head.weight)
    again = torch.autograd.grad(
        model(inputs["input_ids"]).logits.softmax(-1)[..., 5].sum(), model.lm_head.weight
    )
    torch.testing.assert_close(grads, again)


def test_nothing_of_the_model_is_changed_after_the_block():
    model = llama()
    before = dict(model.__dict__), dict(model.lm_head.__dict__)
    with pytest.raises(KeyError), deferred_logits(model):
        raise KeyError
    assert (model.__dict__, model.lm_head.__dict__) == before
    with deferred_logits(model):
        made = model.generate(batch()["input_ids"], max_new_tokens=3, do_sample=False)
    assert torch.equal(made, model.generate(batch()["input_ids"], max_new_tokens=3, do_sample=False))
    copy.deepcopy(model)


def test_losses_and_heads_of_another_kind_are_left_alone():
    bart = BartForConditionalGeneration(BartConfig(d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, vocab_size=50, pad_token_id=0, bos_token_id=1, eos_token_id=2))  # fmt: skip
    same(bart.eval(), **batch())
    hooked = llama()
    shapes = []
    hooked.lm_head.register_forward_hook(lambda module, args, out: shapes.append(type(out)))
    with deferred_logits(hooked) as seen:
        hooked(**batch())
    assert seen is None and shapes == [torch.Tensor]
    with deferred_logits(nn.Linear(3, 3)) as seen:
        assert seen is None


def test_half_precision_rounds_as_the_plain_path_does():
    model = llama().bfloat16()
    same(model, {"rtol": 2e-2, "atol": 2e-3}, **batch())
    with torch.autocast("cpu", torch.bfloat16):
        same(llama(), {"rtol": 2e-2, "atol": 2e-3}, **batch())


def test_gradient_checkpointing_and_compiling_are_as_before():
    model = llama()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    same(model, **batch())
    plain = llama()
    expected, reference = gradients(plain, deferred_logits(nn.Identity()), **batch())
    compiled = torch.compile(plain, backend="aot_eager")
    for _ in range(2):
        plain.zero_grad()
        with deferred_logits(plain) as seen:
            loss = compiled(**batch()).loss
            loss.backward()
        torch.testing.assert_close(loss, expected)
        for name, p in plain.named_parameters():
            torch.testing.assert_close(p.grad, reference[name])
        assert seen.unread


def test_without_a_label_the_loss_is_that_of_the_plain_path():
    model, inputs = llama(), batch()
    inputs["labels"][:] = -100
    with deferred_logits(model):
        assert model(**inputs).loss.isnan() == model(**inputs).loss.isnan()
        loss = model(**inputs, num_items_in_batch=4).loss
    loss.backward()
    assert loss == 0 and all(p.grad is None or (p.grad == 0).all() for p in model.parameters())
