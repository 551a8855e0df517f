"""A prefix behind which the tokens are counted: the model run by transformers itself on a cache that holds the prefix."""

import copy

import peft
import pytest
import torch
from transformers import DynamicCache

import adaptome as ad
from adaptome.core.errors import HostError
from tests.methods.prompt.models import DECODERS, IDS, tiny

P = 3
CLOSE = {"rtol": 1e-9, "atol": 1e-9}
SINGLE = {"rtol": 1e-5, "atol": 1e-5}
#: whose own cache would let the prefix slide out of the window
COUNTED = [name for name in DECODERS if name != "mistral"]


def behind(name, dtype=torch.float64, **settings):
    model = tiny(name, dtype)
    ad.attach(model, "prefix-tuning", p=P, std=0.7, seed=4, positions="after", **settings)
    return model


def pairs(model):
    return [a for a in ad.adapters(model)["default"].adapters.values() if hasattr(a, "values")]


def logits(model, ids=IDS, **more):
    return model(input_ids=ids, **more).logits


def from_its_cache(name, model, ids=IDS, mask=None):
    """The base's logits where its cache begins with the prefix, and its mask with as many ones."""
    base, cache = tiny(name), DynamicCache()
    for layer, pair in enumerate(pairs(model)):
        K, V = (t.detach()[None].expand(len(ids), -1, -1, -1) for t in pair.values())
        cache.update(K, V, layer)
    mask = torch.ones_like(ids) if mask is None else mask
    mask = torch.cat([mask.new_ones(len(ids), P), mask], 1)
    return base(input_ids=ids, past_key_values=cache, attention_mask=mask).logits


@pytest.mark.parametrize("name", COUNTED)
def test_it_is_the_model_with_the_prefix_in_its_cache(name):
    model = behind(name)
    close = SINGLE if name in ("gptj", "bloom") else CLOSE  # these take their softmax in single precision
    torch.testing.assert_close(logits(model), from_its_cache(name, model), **close)
    own = tiny(name)
    ad.attach(own, "prefix-tuning", p=P, std=0.7, seed=4)
    for a, b in zip(pairs(own), pairs(model), strict=True):
        ad.set_state(own, "default", {a.host.name: {"K": b.K, "V": b.V}})
    assert not torch.allclose(logits(own), logits(model), atol=1e-3)


def test_opt_counts_what_its_mask_lets_be_seen():
    model, mask = behind("opt"), torch.ones_like(IDS)
    mask[0, :2] = 0
    seen = mask.bool()
    torch.testing.assert_close(
        logits(model, attention_mask=mask)[seen], from_its_cache("opt", model, mask=mask)[seen], **CLOSE
    )


@pytest.mark.parametrize("name", DECODERS)
def test_it_trains_and_generates_with_and_without_a_cache(name):
    model = behind(name, torch.float32)
    logits(model).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in ad.parameters_of(model).values())
    ad.check_gradients(model)
    mask = torch.ones_like(IDS)
    mask[0, :3] = 0
    how = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    made = model.generate(IDS, attention_mask=mask, **how)
    assert torch.equal(made, model.generate(IDS, attention_mask=mask, use_cache=False, **how))
    assert torch.equal(model.generate(IDS[:1, 3:], **how), made[:1, 3:])


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt"])
def test_started_from_words_it_is_the_model_with_the_words_before_the_text(name):
    model, words = tiny(name), [9, 4, 12]
    base = copy.deepcopy(model)
    ad.attach(model, "prefix-tuning", p=P, positions="after")
    ad.prompt_from(model, words)
    want = logits(base, torch.cat([torch.tensor([words] * 2), IDS], 1))[:, P:]
    torch.testing.assert_close(logits(model), want, **SINGLE)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", COUNTED)
def test_a_folder_of_peft_is_read_and_written_as_it_is(name, tmp_path):
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=P)
    theirs = peft.get_peft_model(tiny(name, torch.float32), config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    model = tiny(name, torch.float32)
    ad.load(model, tmp_path / "theirs")
    method = ad.adapters(model)["default"].method
    assert (method.positions, method.p) == ("after", P)
    want = theirs(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits[:, -IDS.shape[1] :]
    torch.testing.assert_close(logits(model), want, **SINGLE)
    ad.save(model, tmp_path / "ours")
    again = tiny(name, torch.float32)
    ad.load(again, tmp_path / "ours")
    assert torch.equal(logits(again), logits(model))
    ad.export(model, tmp_path / "out", format="peft", task_type="CAUSAL_LM")
    back = peft.PeftModel.from_pretrained(tiny(name, torch.float32), tmp_path / "out").eval()
    assert torch.equal(
        back.get_prompt_embedding_to_save("default"), theirs.get_prompt_embedding_to_save("default")
    )


def test_an_mlps_prefix_is_stored_plain_and_counted_alike():
    model = behind("gpt2", hidden=5)
    before = logits(model)
    ad.plain_prompt(model)
    torch.testing.assert_close(logits(model), before, **CLOSE)
    assert ad.adapters(model)["default"].method.positions == "after"
    ad.detach(model)
    assert torch.equal(logits(model), logits(tiny("gpt2")))


def test_positions_that_no_transformer_takes_are_refused():
    with pytest.raises(HostError, match="no target is one.*\n  Add 'backbones'"):
        ad.attach(tiny("llama"), "prefix-tuning", targets="attention-blocks", positions="after")
    with pytest.raises(HostError, match="takes no position_ids; set positions='own'"):
        ad.attach(tiny("vit"), "prefix-tuning", positions="after")
    with pytest.raises(HostError, match="a target with positions='after' alone"):
        ad.attach(tiny("llama"), "prefix-tuning", targets="backbones")
