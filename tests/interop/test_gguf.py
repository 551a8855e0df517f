"""GGUF: adapters both ways and merged models, read by the gguf package and by transformers."""

import gguf
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import adaptome as ad
from adaptome.core.errors import FormatError, KeyMismatchError, MergeError, TornFileError
from adaptome.interop.llama_cpp.models import llama3_factors
from adaptome.interop.llama_cpp.names import interleave

SMALL = dict(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=300,
    max_position_embeddings=64, initializer_range=0.2, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
IDS = torch.randint(0, 300, (2, 7), generator=torch.Generator().manual_seed(1))


def llama(**more):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**SMALL, **more})).eval()


def qwen(**more):
    torch.manual_seed(0)
    return Qwen2ForCausalLM(Qwen2Config(**{**SMALL, **more})).eval()


@torch.no_grad()
def logits(model):
    return model(IDS).logits


def shaken(model, method="lora", targets="all-linear", **settings):
    ad.attach(model, method, targets=targets, **settings)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for value in ad.parameters_of(model).values():
            value.add_(torch.randn(value.shape, generator=generator) * 0.1)
    return model


def field(reader, key):
    return reader.get_field(key).contents()


@pytest.mark.parametrize("make", [llama, qwen])
def test_an_adapter_is_as_llama_cpp_reads_it(make, tmp_path):
    model = shaken(
        make(), r=3, alpha=5.0, targets=["all-linear", "embed_tokens"], per_layer={"o_proj": {"r": 2}}
    )
    report = ad.export(model, tmp_path / "a.gguf", format="gguf")
    assert report.worst == 0 and report.rank == 3
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    assert field(reader, "general.type") == "adapter" and field(reader, "adapter.type") == "lora"
    assert field(reader, "general.architecture") == model.config.model_type
    assert field(reader, "adapter.lora.alpha") == 3.0
    tensors = {t.name: torch.tensor(t.data) for t in reader.tensors}
    assert len(tensors) == 2 * (2 * 7 + 1)
    layer = model.model.layers[1]
    for name, adapted, heads in (
        ("attn_q", layer.self_attn.q_proj, 4), ("attn_k", layer.self_attn.k_proj, 2), ("attn_v", layer.self_attn.v_proj, None),
        ("attn_output", layer.self_attn.o_proj, None), ("ffn_gate", layer.mlp.gate_proj, None), ("ffn_down", layer.mlp.down_proj, None),
    ):  # fmt: skip
        A, B = (tensors[f"blk.1.{name}.weight.lora_{side}"] for side in "ab")
        assert A.shape[0] == B.shape[1] == 3  # alpha / rank is one scale for all
        delta = adapted.adaptome["default"].delta().detach()
        if heads and make is llama:  # row i of a head's first half, then row i of its second
            d = delta.shape[0] // heads
            order = [
                h * d + half * (d // 2) + i for h in range(heads) for i in range(d // 2) for half in (0, 1)
            ]
            delta = delta[order]
        torch.testing.assert_close(B @ A, delta)
    A, B = (tensors[f"token_embd.weight.lora_{side}"] for side in "ab")
    assert A.shape == (300, 3) and B.shape == (32, 3)
    torch.testing.assert_close(B @ A.T, model.model.embed_tokens.adaptome["default"].delta().detach())
    other = make()
    ad.load(other, tmp_path / "a.gguf")
    torch.testing.assert_close(logits(other), logits(model), rtol=1e-5, atol=1e-5)


def test_the_order_of_rows_is_that_of_rotated_pairs():
    """Attention scores with halves rotated, as transformers has them, and with neighbouring pairs, as llama.cpp."""
    d, generator = 8, torch.Generator().manual_seed(0)
    q, k = (
        torch.randn(2 * d, 5, generator=generator).double(),
        torch.randn(2 * d, 5, generator=generator).double(),
    )
    angles = 3 * 100.0 ** (-torch.arange(0, d, 2).double() / d)

    def by_halves(x):
        a, b = x.view(2, 2, d // 2, 5).unbind(1)
        c, s = angles.cos()[:, None], angles.sin()[:, None]
        return torch.cat([a * c - b * s, b * c + a * s], 1)

    def by_pairs(x):
        a, b = x.view(2, d // 2, 2, 5).unbind(2)
        c, s = angles.cos()[:, None], angles.sin()[:, None]
        return torch.stack([a * c - b * s, b * c + a * s], 2).flatten(1, 2)

    ours = torch.einsum("hdi,hdj->hij", by_halves(q), k.view(2, d, 5))
    theirs = torch.einsum("hdi,hdj->hij", by_pairs(interleave(q, 2)), interleave(k, 2).view(2, d, 5))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "q8_0"])
@pytest.mark.parametrize("make", [llama, qwen])
def test_a_merged_model_is_read_back_by_transformers(make, dtype, tmp_path):
    model = shaken(make(tie_word_embeddings=make is qwen), "dora", targets="attention", r=2)
    report = ad.save_gguf(model, tmp_path / "m.gguf", dtype=dtype)
    assert report.worst < 1e-5 and "token ids only" in report.notes[0]
    other = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32).eval()
    bound = {"f32": 1e-5, "f16": 2e-3, "bf16": 2e-2, "q8_0": 8e-2}[dtype]
    changed = (logits(make(tie_word_embeddings=make is qwen)) - logits(model)).abs().max()
    error = (logits(other) - logits(model)).abs().max() / logits(model).abs().max()
    assert error < bound and changed > 0.1
    assert type(model.model.layers[0].self_attn.q_proj).__name__ != "Linear"  # still adapted
    kinds = {t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert kinds == {"F32"} | {dtype.upper()}
    (up,) = [t for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors if t.name == "blk.1.ffn_up.weight"]
    gap = (
        torch.tensor(gguf.quants.dequantize(up.data, up.tensor_type))
        - model.model.layers[1].mlp.up_proj.weight
    )
    step = {"f32": 0.0, "f16": 2**-11, "bf16": 2**-8, "q8_0": 1 / 254 + 2**-11}[
        dtype
    ]  # of the largest of a block, here of a row
    assert (gap.abs() <= 1.01 * step * model.model.layers[1].mlp.up_proj.weight.abs().amax(1, True)).all()


def test_positions_of_llama_3_go_along(tmp_path):
    rope = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}  # fmt: skip
    model = llama(rope_parameters=rope)
    ad.save_gguf(model, tmp_path / "m.gguf", dtype="f32")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    (factors,) = [torch.tensor(t.data) for t in reader.tensors if t.name == "rope_freqs.weight"]
    plain = 10000.0 ** (-torch.arange(0, 8, 2).float() / 8)
    torch.testing.assert_close(plain / factors, model.model.rotary_emb.inv_freq, rtol=1e-5, atol=1e-8)
    assert torch.equal(factors, llama3_factors(rope, 10000.0, 8))
    with pytest.raises(MergeError, match="convert_hf_to_gguf"):
        ad.save_gguf(llama(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}), tmp_path / "b.gguf")  # fmt: skip
    assert not (tmp_path / "b.gguf").exists()


def byte_level(split=None):
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *letters, "he", "ll", "hell"])}
    made = Tokenizer(models.BPE(vocab=vocab, merges=[("h", "e"), ("l", "l"), ("he", "ll")]))
    steps = [pre_tokenizers.Split(split, "isolated")] if split else []
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not split)
    made.pre_tokenizer = pre_tokenizers.Sequence([*steps, level]) if steps else level
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def test_the_vocabulary_goes_along_where_llama_cpp_has_its_kind(tmp_path):
    tokenizer, model = byte_level(), llama()
    assert ad.save_gguf(model, tmp_path / "m.gguf", tokenizer=tokenizer).notes == ()
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    tokens = field(reader, "tokenizer.ggml.tokens")
    assert len(tokens) == 300 and tokens[: len(tokenizer)] == tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))  # fmt: skip
    assert (
        field(reader, "tokenizer.ggml.pre") == "gpt-2" and field(reader, "tokenizer.ggml.merges")[0] == "h e"
    )
    assert field(reader, "tokenizer.ggml.bos_token_id") == 1
    read = AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    assert read("hello there").input_ids[-11:] == tokenizer("hello there").input_ids[-11:]
    with pytest.raises(MergeError, match="cuts text"):
        ad.save_gguf(model, tmp_path / "b.gguf", tokenizer=byte_level(split=" "))
    assert not (tmp_path / "b.gguf").exists()


def test_a_sentencepiece_model_goes_along(tmp_path):
    import sentencepiece

    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat and the dog ran after the cat\n" * 30)
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(tmp_path / "tokenizer"), vocab_size=60, model_type="bpe", byte_fallback=False, minloglevel=2
    )  # fmt: skip
    made = Tokenizer(models.Unigram([("<unk>", 0.0)]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", name_or_path=str(tmp_path))
    ad.save_gguf(llama(), tmp_path / "m.gguf", tokenizer=tokenizer)
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    pieces = sentencepiece.SentencePieceProcessor(str(tmp_path / "tokenizer.model"))
    tokens, scores = field(reader, "tokenizer.ggml.tokens"), field(reader, "tokenizer.ggml.scores")
    assert field(reader, "tokenizer.ggml.model") == "llama"
    for i in range(len(pieces)):
        assert tokens[i] == pieces.id_to_piece(i) and scores[i] == pytest.approx(pieces.get_score(i))


def test_what_cannot_be_written_or_read_is_refused(tmp_path):
    gpt = shaken(GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=30)))
    with pytest.raises(MergeError, match="convert_lora_to_gguf"):
        ad.export(gpt, tmp_path / "a.gguf", format="gguf")
    with pytest.raises(MergeError, match="convert_hf_to_gguf"):
        ad.save_gguf(gpt, tmp_path / "a.gguf")
    with pytest.raises(MergeError, match="ends in .gguf"):
        ad.export(shaken(llama()), tmp_path / "a", format="gguf")
    with pytest.raises(MergeError, match="is tied"):
        ad.export(
            shaken(llama(tie_word_embeddings=True), targets=["lm_head"]), tmp_path / "a.gguf", format="gguf"
        )
    with pytest.raises(MergeError, match="give the rank"):
        ad.export(shaken(llama(), "dora", targets="q"), tmp_path / "a.gguf", format="gguf")
    ad.export(shaken(llama(), targets="q"), tmp_path / "a.gguf", format="gguf")
    data = (tmp_path / "a.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(data[:-100])
    (tmp_path / "other.gguf").write_bytes(b"GGML" + data[4:])
    (tmp_path / "many.gguf").write_bytes(data[:8] + (2**60).to_bytes(8, "little") + data[16:])
    for name, error in (("cut", TornFileError), ("other", FormatError), ("many", FormatError)):
        model = llama()
        with pytest.raises(error):
            ad.load(model, tmp_path / f"{name}.gguf")
        assert ad.adapters(model) == {}
    with pytest.raises(FormatError, match="the model is 'qwen2'"):
        ad.load(qwen(), tmp_path / "a.gguf")
    with pytest.raises(KeyMismatchError, match="no layer for"):
        ad.load(llama(num_hidden_layers=1), tmp_path / "a.gguf")
    with pytest.raises(FormatError, match="not written as GGUF|of type"):
        ad.load(nn.Linear(3, 3), tmp_path / "a.gguf")
