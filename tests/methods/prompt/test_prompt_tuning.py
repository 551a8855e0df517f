"""Prompt tuning and p-tuning: vectors among the embedded tokens (arXiv:2104.08691, 2103.10385, 2304.01933)."""

import pytest
import torch
from torch import nn
from transformers import DynamicCache, ProphetNetConfig, ProphetNetForCausalLM, T5EncoderModel

import adaptome as ad
from adaptome.core.errors import HostError, MethodError, StateError
from tests.methods.helpers import llama2_7b, shake
from tests.methods.prompt.models import DECODERS, IDS, TWO_SIDED, tiny

P = 3
CLOSE = {"rtol": 1e-6, "atol": 1e-6}  # rotations and some softmaxes are in float32


def prompted(name, method="prompt-tuning", *, dtype=torch.float64, **settings):
    model = tiny(name, dtype)
    ad.attach(model, method, p=P, seed=0, **settings)
    shake(model, 0.5)
    return model


def the(model, name="default"):
    return next(iter(ad.adapters(model)[name].adapters.values()))


def logits(model, ids=IDS, **more):
    with torch.no_grad():
        return model(input_ids=ids, **more).logits


# -- the equation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_equals_its_base_on_the_joined_embeddings(name):
    model, base, mask = prompted(name), tiny(name), torch.ones_like(IDS)
    mask[0, 5:] = 0
    embedded = base.get_input_embeddings()(IDS)
    joined = torch.cat([the(model).P.detach().expand(2, -1, -1), embedded], 1)
    with torch.no_grad():
        want = base(inputs_embeds=joined, attention_mask=torch.cat([torch.ones(2, P), mask], 1).long())
    seen = model(input_ids=IDS, attention_mask=mask, labels=IDS, output_hidden_states=True)
    torch.testing.assert_close(seen.logits, want.logits[:, P:], **CLOSE)
    assert not torch.allclose(seen.logits, logits(base, attention_mask=mask))
    assert [h.shape[1] for h in seen.hidden_states] == [7] * len(seen.hidden_states)
    loss = nn.functional.cross_entropy(want.logits[:, P:-1].flatten(0, 1), IDS[:, 1:].flatten())
    torch.testing.assert_close(seen.loss.double(), loss, **CLOSE)
    torch.testing.assert_close(
        logits(model, None, inputs_embeds=embedded, attention_mask=mask), seen.logits, **CLOSE
    )


def test_prophetnet_predicts_the_tokens_after_the_next_too():
    torch.manual_seed(0)
    config = ProphetNetConfig(
        vocab_size=40, hidden_size=16, num_decoder_layers=2, num_decoder_attention_heads=2, decoder_ffn_dim=24, is_decoder=True,
        max_position_embeddings=32, add_cross_attention=False, is_encoder_decoder=False, ngram=2,
    )  # fmt: skip
    model, words = ProphetNetForCausalLM(config).double().eval(), torch.tensor([5, 7, 9])
    with torch.no_grad():
        want = model(input_ids=torch.cat([words.expand(2, -1), IDS], 1))
        ad.attach(model, "prompt-tuning", p=P, dtype=torch.float64)
        ad.prompt_from(model, words)
        seen = model(input_ids=IDS)
    torch.testing.assert_close(seen.logits, want.logits[:, P:], **CLOSE)
    torch.testing.assert_close(seen.logits_ngram, want.logits_ngram[:, :, P:], **CLOSE)


@pytest.mark.parametrize(("name", "first"), [("bert", 1), ("roberta", 0), ("distilbert", 0)])
def test_an_encoder_equals_its_base_on_the_joined_embeddings_and_its_pooler_reads_the_first_token(
    name, first
):
    model, base = prompted(name), tiny(name)
    assert the(model).first == first
    inner = base.base_model
    embedded = inner.get_input_embeddings()(IDS)
    joined = torch.cat([embedded[:, :first], the(model).P.detach().expand(2, -1, -1), embedded[:, first:]], 1)
    with torch.no_grad():
        states = inner(inputs_embeds=joined).last_hidden_state
        cls = states[:, 0 if first else P]
        if name == "bert":
            want = base.classifier(inner.pooler(cls[:, None]))
        elif name == "roberta":
            want = base.classifier(cls[:, None])
        else:
            want = base.classifier(torch.relu(base.pre_classifier(cls)))
    torch.testing.assert_close(logits(model), want, **CLOSE)


def test_t5_reads_a_prompt_in_its_encoder_alone_when_told():
    model, base = tiny("t5"), tiny("t5")
    ad.attach(model, "prompt-tuning", p=P, targets="encoder")
    joined = torch.cat([the(model).P.detach().expand(2, -1, -1), base.shared(IDS)], 1)
    with torch.no_grad():
        states = base.encoder(inputs_embeds=joined).last_hidden_state[:, P:]
        want = base(encoder_outputs=(states,), decoder_input_ids=IDS).logits
    torch.testing.assert_close(logits(model, decoder_input_ids=IDS), want, **CLOSE)
    assert isinstance(model.encoder, type(T5EncoderModel(model.config).encoder))


@pytest.mark.parametrize("place", ["front", "after-first"])
def test_left_padding_gives_what_no_padding_gives(place):
    for name in ("llama", "gpt2", "roberta"):
        model = prompted(name, place=place if name == "roberta" else "front")
        padded = torch.cat([torch.zeros(2, 2, dtype=torch.long), IDS], 1)
        mask = (torch.arange(9) > 1).long().expand(2, -1)
        if name == "roberta":
            if place == "after-first":
                continue  # the first place is a pad then
            states = model.roberta(input_ids=padded, attention_mask=mask).last_hidden_state[:, 2:]
            torch.testing.assert_close(states, model.roberta(input_ids=IDS).last_hidden_state, **CLOSE)
        else:
            places = (mask.cumsum(1) - 1).clamp(min=0)
            seen = logits(model, padded, attention_mask=mask, position_ids=places)[:, 2:]
            torch.testing.assert_close(seen, logits(model), **CLOSE)


def test_token_types_of_prompts_are_the_first_tokens():
    model, base = prompted("bert"), tiny("bert")
    types = torch.tensor([[0, 0, 0, 1, 1, 1, 1]] * 2)
    embedded = base.bert.get_input_embeddings()(IDS)
    joined = torch.cat([embedded[:, :1], the(model).P.detach().expand(2, -1, -1), embedded[:, 1:]], 1)
    with torch.no_grad():
        want = base(
            inputs_embeds=joined, token_type_ids=torch.cat([torch.zeros(2, P).long(), types], 1)
        ).logits
    torch.testing.assert_close(logits(model, token_type_ids=types), want, **CLOSE)


# -- generating ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*DECODERS, *TWO_SIDED])
def test_the_cache_makes_no_difference(name):
    model, mask = prompted(name, dtype=torch.float32), torch.ones_like(IDS)
    mask[0, :3] = 0
    how = {"max_new_tokens": 7, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    want = model.generate(IDS, attention_mask=mask, use_cache=False, **how)
    assert torch.equal(model.generate(IDS, attention_mask=mask, **how), want)
    beams = model.generate(IDS, attention_mask=mask, num_beams=3, **how)
    assert torch.equal(beams, model.generate(IDS, attention_mask=mask, num_beams=3, use_cache=False, **how))
    if name in DECODERS:
        if name == "mistral":
            return  # its window counts the padding between prompt and text
        assert torch.equal(model.generate(IDS[:1, 3:], **how), want[:1, 3:])


def test_a_cache_is_read_token_by_token_in_parts_and_under_two_prompts():
    model = prompted("llama")
    ad.attach(model, "p-tuning", "outer", p=2, hidden=4, seed=2)
    want, cache, seen = logits(model, use_cache=False), DynamicCache(), []
    for start, end in ((0, 4), (4, 5), (5, 7)):
        mask = torch.ones(2, end, dtype=torch.long)
        seen.append(logits(model, IDS[:, start:end], past_key_values=cache, attention_mask=mask))
    torch.testing.assert_close(torch.cat(seen, 1), want, **CLOSE)
    assert cache.get_seq_length() == 7 + P + 2


def test_two_prompts_stand_the_later_before_the_earlier():
    model, other = prompted("llama"), tiny("llama")
    ad.attach(model, "prompt-tuning", "outer", p=2, seed=4)
    ad.attach(other, "prompt-tuning", p=P + 2)
    the(other).P.data = torch.cat([the(model).P, the(model, "outer").P])
    # the outer one puts its vectors before the text, then the inner one before all of that
    torch.testing.assert_close(logits(model), logits(other), **CLOSE)
    ad.detach(model, "outer")
    torch.testing.assert_close(logits(model), logits(prompted("llama")), **CLOSE)


# -- what is refused -----------------------------------------------------------------------------------------------


def test_what_cannot_be_extended_is_refused_with_a_reason():
    model = prompted("llama")
    places = torch.tensor([[0, 1, 2, 3, 0, 1, 2]])
    with pytest.raises(HostError, match="packed into one row"):
        logits(model, IDS[:1], position_ids=places)
    with pytest.raises(HostError, match="packed into one row"):
        logits(model, cu_seq_lens_q=torch.tensor([0, 4, 7]))
    with pytest.raises(HostError, match="the mask over tokens"):
        logits(model, attention_mask=torch.ones(2, 1, 7, 7, dtype=torch.bool))
    with pytest.raises(HostError, match="visual_mask .* has an entry for every token"):
        logits(model, visual_mask=torch.ones(2, 7))
    with pytest.raises(HostError, match="not a static one"):
        model.float().generate(IDS, max_new_tokens=2, cache_implementation="static", pad_token_id=0)


def test_a_cache_that_goes_on_with_the_whole_text_is_refused():
    model, cache = prompted("llama", dtype=torch.float32), DynamicCache()
    how = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "past_key_values": cache}
    first = model.generate(IDS, max_new_tokens=3, **how)
    with pytest.raises(StateError, match="goes on with new tokens alone"):
        model.generate(torch.cat([first, IDS], 1), max_new_tokens=2, **how)


def test_a_share_of_the_effect_is_refused_beside_a_cache_and_mixes_without():
    model = prompted("llama")
    base, full = logits(tiny("llama")), logits(model)
    ad.activate(model, "default", weights={"default": 0.25})
    with torch.no_grad():
        states = [
            m.model(input_ids=IDS, use_cache=False).last_hidden_state
            for m in (tiny("llama"), prompted("llama"), model)
        ]
    torch.testing.assert_close(states[2], torch.lerp(states[0], states[1], 0.25), **CLOSE)
    assert not torch.allclose(logits(model, use_cache=False), base) and not torch.allclose(base, full)
    with pytest.raises(StateError, match="use_cache=False"):
        logits(model, past_key_values=DynamicCache())


@pytest.mark.parametrize("name", ["vit", "clip"])
def test_a_backbone_without_embedded_tokens_is_refused(name):
    with pytest.raises(HostError, match="takes no embedded tokens.*vpt"):
        ad.attach(tiny(name), "prompt-tuning")


def test_a_backbone_that_reads_ids_in_every_layer_is_refused():
    from transformers import Gemma3nForCausalLM, Gemma3nTextConfig

    config = Gemma3nTextConfig(
        vocab_size=32, vocab_size_per_layer_input=32, hidden_size=16, hidden_size_per_layer_input=4, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=4, num_kv_shared_layers=0, laurel_rank=2, activation_sparsity_pattern=[0.0, 0.0],
        layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    with torch.device("meta"):
        model = Gemma3nForCausalLM(config)
    with pytest.raises(HostError, match="in every layer.*use prefix-tuning"):
        ad.attach(model, "prompt-tuning")


# -- starts, p-tuning, counts --------------------------------------------------------------------------------------


def test_started_from_words_it_is_the_model_that_reads_the_words():
    class Tokenizer:
        def __call__(self, text, add_special_tokens):
            assert not add_special_tokens
            return {"input_ids": [ord(c) - 96 for c in text]}

    for name in ("llama", "gpt2"):
        model, base = tiny(name), tiny(name)
        ad.attach(model, "prompt-tuning", p=3)
        assert ad.prompt_from(model, "cab", Tokenizer()).tolist() == [3, 1, 2]
        with torch.no_grad():
            want = base.base_model(torch.cat([torch.tensor([[3, 1, 2]] * 2), IDS], 1)).last_hidden_state[
                :, 3:
            ]
            assert torch.equal(model.base_model(IDS).last_hidden_state, want)
        with pytest.raises(MethodError, match="(?s)has 2 tokens.*p=2"):
            ad.prompt_from(model, [3, 1])


def test_it_starts_from_different_rows_of_the_table():
    model = tiny("llama")
    ad.attach(model, "prompt-tuning", p=5, seed=1)
    rows = model.model.embed_tokens.weight
    found = [int(((rows - vector).abs().sum(1) < 1e-6).nonzero()) for vector in the(model).P]
    assert len(set(found)) == 5


@pytest.mark.parametrize("encoder", ["lstm", "mlp"])
def test_p_tuning_is_the_equation(encoder):
    model = prompted("llama", "p-tuning", encoder=encoder, hidden=6)
    adapter = the(model)
    z = adapter.E
    if encoder == "lstm":
        lstm = nn.LSTM(16, 3, num_layers=2, bidirectional=True, batch_first=True).double()
        with torch.no_grad():
            for own, given in zip(lstm.parameters(), adapter.recurrent, strict=True):
                own.copy_(given)
        z = lstm(z[None])[0][0]
    want = torch.relu(z @ adapter.W1.T + adapter.b1) @ adapter.W2.T + adapter.b2
    torch.testing.assert_close(adapter.prompts(), want)
    model(input_ids=IDS).logits.square().sum().backward()
    assert all(p.grad.any() for p in ad.parameters_of(model).values())
    before = logits(model)
    ad.plain_prompt(model)
    assert ad.adapters(model)["default"].method.name == "prompt-tuning"
    torch.testing.assert_close(logits(model), before, **CLOSE)


def test_plain_keeps_heads_and_shares():
    model = prompted("bert", "p-tuning", encoder="mlp", train="classifier")
    ad.activate(model, "default", weights={"default": 0.5})
    before = logits(model)
    ad.plain_prompt(model)
    torch.testing.assert_close(logits(model), before, **CLOSE)
    assert "classifier" in ad.adapters(model)["default"].heads


def test_counts_are_the_papers():
    assert ad.plan(llama2_7b(), "prompt-tuning", p=20).trainable == 81_920
    d, h, width = 4096, 128, 256
    by_hand = (
        20 * d + 2 * (4 * h * (d + h + 2) + 4 * h * (width + h + 2)) + width * (width + 1) + d * (width + 1)
    )
    assert (
        ad.plan(llama2_7b(), "p-tuning", p=20, hidden=256, encoder="lstm").trainable == by_hand == 5_923_072
    )


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(reentrant):
    grads = []
    for on in (False, True):
        model = prompted("llama").train()
        if on:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        grads.append(the(model).P.grad)
    torch.testing.assert_close(*grads, **CLOSE)


def test_bf16_keeps_its_type():
    model = prompted("llama", dtype=torch.bfloat16)
    assert logits(model).dtype == torch.bfloat16 and the(model).P.dtype == torch.float32
