"""LST: a ladder side network (arXiv:2206.06522)."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import adaptome as ad
from adaptome.core.errors import GradientError, HostError, StateError
from tests.methods.helpers import roberta, shake

SMALL = dict(reduction=2, heads=2)
IDS = torch.tensor([[5, 7, 9, 11, 3, 2], [4, 6, 8, 1, 0, 0]])
PADDED = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])


def bert(**how):
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig(vocab_size=32, hidden_size=16, num_hidden_layers=3, num_attention_heads=4, intermediate_size=40, **how))  # fmt: skip


def llama(heads=4, implementation="sdpa"):
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=heads,
        max_position_embeddings=32, attn_implementation=implementation,
    )  # fmt: skip
    return LlamaModel(config)


def t5():
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(T5Config(vocab_size=32, d_model=16, d_ff=40, num_layers=3, num_heads=4, d_kv=4))


def vit():
    from transformers import ViTConfig, ViTModel

    return ViTModel(ViTConfig(image_size=16, patch_size=8, hidden_size=16, num_hidden_layers=3, num_attention_heads=4, intermediate_size=40))  # fmt: skip


def image():
    return {"pixel_values": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3)).double()}


def text():
    return {"input_ids": IDS, "attention_mask": PADDED}


MODELS = {"bert": (bert, text), "llama": (llama, text), "t5": (t5, text), "vit": (vit, image)}
on_every_backbone = pytest.mark.parametrize("kind", MODELS)


def adapted(kind, moved=True, **settings):
    torch.manual_seed(0)
    build, inputs = MODELS[kind]
    model = build().double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))  # T5's own start is large or zero
    ad.attach(model, "lst", **{**SMALL, **settings}, seed=0)
    if moved:
        shake(model)
    return model, inputs()


def adapter_of(model):
    return next(iter(ad.adapters(model)["default"].adapters.values()))


def last(model, inputs):
    return model(**inputs).last_hidden_state


def ladder(a, states, last_state, bias=None, heads=2):
    """The method's equations, written out for one head after the other; `bias` is added to the scores."""
    width = a.U.shape[1]

    def norm(x, layer):
        x = x - x.mean(-1, keepdim=True)
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * layer.weight + layer.bias

    s = states[0] @ a.D[0].T
    for i, block in enumerate(a.blocks):
        mu = 1 / (1 + torch.exp(-a.a[i] / 0.1))
        s = mu * s + (1 - mu) * (states[i + 1] @ a.D[i + 1].T)
        if heads:
            x, made = norm(s, block.norm1), []
            q, k, v = (x @ W.T for W in block.qkv.chunk(3))
            for c in range(0, width, width // heads):
                part = slice(c, c + width // heads)
                scores = q[..., part] @ k[..., part].mT / math.sqrt(width // heads)
                made.append((scores if bias is None else scores + bias).softmax(-1) @ v[..., part])
            s = s + torch.cat(made, -1) @ block.o.T
        s = s + F.gelu(norm(s, block.norm2) @ block.up.T + block.b) @ block.down.T + block.c
    return last_state + norm(s, a.norm) @ a.U.T


def seen_by(model, inputs):
    """Embedded input, block outputs and last hidden state of the base, by hooks of our own."""
    from adaptome.core.targets import resolve

    states, hooks = [], []
    blocks = [m.module for m in resolve(model, "blocks")]
    hooks.append(blocks[0].register_forward_pre_hook(lambda m, args: states.append(args[0])))
    for block in blocks:
        hooks.append(
            block.register_forward_hook(
                lambda m, args, out: states.append(out[0] if isinstance(out, tuple) else out)
            )
        )
    with ad.disabled(model):
        final = last(model, inputs)
    for hook in hooks:
        hook.remove()
    return states, final


def visible(kind):
    """The additive mask of the base's attention, written from what the model is."""
    if kind == "vit":
        return None
    allowed = PADDED[:, None, :].bool().expand(-1, 6, -1)
    if kind == "llama":
        allowed = allowed & torch.ones(6, 6).tril().bool()
    return torch.zeros(allowed.shape, dtype=torch.float64).masked_fill(~allowed, -torch.inf)


@on_every_backbone
@pytest.mark.parametrize("attention", [True, False])
def test_the_output_is_the_equation(kind, attention):
    model, inputs = adapted(kind, attention=attention)
    states, final = seen_by(model, inputs)
    expected = ladder(adapter_of(model), states, final, visible(kind), heads=2 if attention else 0)
    torch.testing.assert_close(last(model, inputs), expected)


def test_a_pooler_sees_the_changed_state():
    model, inputs = adapted("bert")
    output = model(**inputs)
    torch.testing.assert_close(output.pooler_output, model.pooler(output.last_hidden_state))
    with ad.disabled(model):
        assert not torch.allclose(model(**inputs).pooler_output, output.pooler_output)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_masks_of_the_eager_attention_and_none_at_all_are_the_same(implementation):
    torch.manual_seed(0)
    model = llama(implementation=implementation).double().eval()
    ad.attach(model, "lst", **SMALL, seed=0)
    shake(model)
    whole = model(input_ids=IDS).last_hidden_state
    torch.testing.assert_close(whole[:, :4], model(input_ids=IDS[:, :4]).last_hidden_state)  # causal
    torch.testing.assert_close(
        whole, model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).last_hidden_state
    )


def test_padding_on_the_left_changes_nothing():
    model, _ = adapted("llama")
    ids, mask = torch.tensor([[0, 0, 5, 7, 9]]), torch.tensor([[0, 0, 1, 1, 1]])
    padded = model(
        input_ids=ids, attention_mask=mask, position_ids=torch.tensor([[0, 0, 0, 1, 2]])
    ).last_hidden_state
    torch.testing.assert_close(padded[:, 2:], model(input_ids=ids[:, 2:]).last_hidden_state)
    assert padded.isfinite().all()


def test_the_last_of_the_hidden_states_stays_the_last_hidden_state():
    model, inputs = adapted("llama")
    output = model(**inputs, output_hidden_states=True)
    assert output.hidden_states[-1] is output.last_hidden_state
    torch.testing.assert_close(output.last_hidden_state, last(model, inputs))


# -- the base keeps nothing ----------------------------------------------------------------------------------------


def saved(model, inputs):
    """The tensors that one forward keeps for its backward, by storage."""
    kept = {}

    def note(t):
        kept[t.untyped_storage().data_ptr()] = t
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        last(model.train(), inputs).sum()
    return kept


@on_every_backbone
def test_no_gradient_enters_the_base(kind):
    model, inputs = adapted(kind, moved=False)
    model.pooler = None  # it comes after the base, and its weight takes part
    base = {p.untyped_storage().data_ptr() for n, p in model.named_parameters() if "adaptome" not in n}
    kept = saved(model, inputs)
    assert kept and not kept.keys() & base
    ad.detach(model)
    ad.attach(model, "lora", r=1, seed=0)
    assert saved(model, inputs).keys() & base  # what this test would see otherwise


def test_what_is_kept_shrinks_with_the_side_network_and_lora_keeps_more():
    """Activations alone, at a length where they weigh more than the weights."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=32, hidden_size=64, num_hidden_layers=4, num_attention_heads=4, intermediate_size=256
    )
    inputs, kept = {"input_ids": torch.randint(32, (4, 48))}, {}
    for name, method in {
        "lora": ad.LoRA(r=2),
        "wide": ad.LST(reduction=4),
        "lst": ad.LST(reduction=8),
    }.items():
        model = BertModel(config)
        ad.attach(model, method, seed=0)
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        seen = saved(model, inputs)
        kept[name] = sum(t.untyped_storage().nbytes() for k, t in seen.items() if k not in weights)
    assert kept["lst"] < kept["wide"] < kept["lora"] / 3


def test_an_adapter_inside_the_base_is_told_that_it_cannot_train():
    model, inputs = adapted("bert", moved=False)
    ad.attach(model, "lora", "inside", targets="q", seed=0)
    last(model, inputs).sum().backward()
    with pytest.raises(GradientError, match=r"3 of 4 adapters: inside: .*query"):
        ad.check_gradients(model)


# -- generation ----------------------------------------------------------------------------------------------------


def language_model(**settings):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=32, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    ad.attach(model, "lst", **{**SMALL, **settings}, seed=0)
    shake(model)
    return model


def generate(model, **how):
    return model.generate(
        IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=6, min_new_tokens=6, do_sample=False, **how
    )


def test_generation_with_attention_refuses_a_cache_and_is_right_without():
    model = language_model()
    with pytest.raises(StateError, match=r"use_cache=False.*attention=False"):
        generate(model)
    ids = IDS
    with torch.no_grad():
        for _ in range(6):
            logits = model(ids, use_cache=False).logits[:, -1]
            logits[:, 2] = -torch.inf  # the end, which min_new_tokens keeps off
            ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)
    assert torch.equal(generate(model, use_cache=False), ids)


def test_cached_generation_is_exact_without_attention():
    model = language_model(attention=False)
    with torch.no_grad():
        whole = model(IDS, use_cache=False).logits
        first = model(IDS[:, :4], use_cache=True)
        rest = model(IDS[:, 4:], past_key_values=first.past_key_values).logits
    torch.testing.assert_close(torch.cat([first.logits, rest], 1), whole)
    assert torch.equal(generate(model), generate(model, use_cache=False))


# -- where it starts, and its size ---------------------------------------------------------------------------------


@on_every_backbone
@pytest.mark.parametrize("init", ["random", "pruned"])
def test_it_starts_as_the_base_and_every_tensor_moves(kind, init):
    model, inputs = adapted(kind, moved=False, init=init)
    with ad.disabled(model):
        before = last(model, inputs)
    assert torch.equal(last(model, inputs), before)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        last(model, inputs).square().sum().backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.any() for p in ad.parameters_of(model).values())
    assert not torch.allclose(last(model, inputs), before)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_pruned_side_network_is_rows_and_columns_of_the_base(kind):
    model, _ = adapted(kind, moved=False, init="pruned", every=2)
    a = adapter_of(model)
    kept = a.D[0].argmax(1)
    assert all(torch.equal(D, F.one_hot(kept, 16).to(D)) for D in a.D) and len(kept.unique()) == 8
    layers = model.encoder.layer if kind == "bert" else model.layers
    chosen = [layers[0], layers[2]]  # every second block, the last among them
    for block, layer in zip(a.blocks, chosen, strict=True):
        names = {
            n.rpartition(".")[2] if kind == "llama" else n: m.weight
            for n, m in layer.named_modules()
            if isinstance(m, nn.Linear)
        }
        q, k = ("attention.self.query", "attention.self.key") if kind == "bert" else ("q_proj", "k_proj")
        rows = (names[q].abs().sum(1) + names[k].abs().sum(1)).topk(8).indices.sort().values
        torch.testing.assert_close(
            block.qkv[:16], torch.cat([names[q][rows][:, kept], names[k][rows][:, kept]])
        )
        down = names["output.dense" if kind == "bert" else "down_proj"]
        assert all((down[kept].float() == column.float()[:, None]).all(0).any() for column in block.down.T)


def test_pruning_says_why_it_cannot():
    from transformers import GPT2Config, GPT2Model

    for model, why in (
        (llama(heads=2), r"q, k and v of the sizes \[8, 16\]"),
        (
            GPT2Model(
                GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=32, bos_token_id=0, eos_token_id=0)
            ),
            "no map 'q'",
        ),
        (bert(), "needs 64 hidden units, and there are 40"),
    ):
        with pytest.raises(HostError, match=f"{why}(.|\n)*init='random'"):
            ad.attach(model, "lst", reduction=1, init="pruned")


def test_what_has_no_side_network_is_refused():
    from transformers import CLIPVisionConfig, CLIPVisionModel, SwinConfig, SwinModel, T5Config, T5Model

    swin = SwinModel(
        SwinConfig(image_size=16, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4)
    )
    with pytest.raises(HostError, match=r"widths \[8, 16\]"):
        ad.attach(swin, "lst")
    both = T5Model(T5Config(vocab_size=32, d_model=16, d_ff=24, num_layers=1, num_heads=4, d_kv=4))
    with pytest.raises(HostError, match="put it on the encoder alone"):
        ad.attach(both, "lst")
    with pytest.raises(HostError, match="no whole transformer"):
        ad.attach(bert(), "lst", targets="blocks")
    clip = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=4,
            intermediate_size=24,
            image_size=16,
            patch_size=8,
        )
    )
    ad.attach(clip, "lst", **SMALL)
    with pytest.raises(HostError, match="makes its pooled output itself"):
        clip(**{k: v.float() for k, v in image().items()})


class Torchs(nn.Module):
    """A stack of torch's own layers, whose masks have names of their own."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(32, 16)
        self.layers = nn.ModuleList(
            [nn.TransformerEncoderLayer(16, 2, 24, batch_first=True) for _ in range(2)]
        )

    def forward(self, ids, src_mask=None):
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x, src_mask)
        return x


def test_masks_that_cannot_be_read_are_refused_unless_there_is_no_attention():
    with pytest.raises(HostError, match="no attention_mask"):
        ad.attach(Torchs(), "lst", **SMALL)
    model = Torchs().eval()
    before = model(IDS)
    ad.attach(model, "lst", **SMALL, attention=False)
    torch.testing.assert_close(model(IDS), before)


def test_counts():
    """BERT-base: 14 maps of 96 x 768, 12 blocks of 12 w^2 + 9 w + 1 numbers, a norm; with every third block 4 of them."""
    from transformers import BertConfig, BertModel

    with torch.device("meta"):
        base = BertModel(BertConfig())
    block = 12 * 96**2 + 9 * 96 + 1
    assert ad.plan(base, "lst").trainable == 14 * 96 * 768 + 12 * block + 2 * 96 == 2_369_868
    assert ad.plan(base, "lst", every=3).trainable == 6 * 96 * 768 + 4 * block + 2 * 96
    local = 8 * 96**2 + 7 * 96 + 1
    assert ad.plan(base, "lst", attention=False).trainable == 14 * 96 * 768 + 12 * local + 2 * 96
    wide = roberta("large")
    assert (
        ad.attach(wide, "lst", init="pruned").trainable
        == 26 * 128 * 1024 + 24 * (12 * 128**2 + 9 * 128 + 1) + 256
    )


def test_strength_scales_the_effect_on_a_models_output():
    model, inputs = adapted("bert")
    with ad.disabled(model):
        base = last(model, inputs)
    full = last(model, inputs)
    ad.activate(model, "default", weights={"default": 0.5})
    torch.testing.assert_close(last(model, inputs), (base + full) / 2)


def test_forwards_are_left_as_they_were():
    model, inputs = adapted("bert")
    blocks = list(model.encoder.layer)
    blocks[1].forward = blocks[1].forward  # as accelerate leaves one on the object
    own = blocks[1].__dict__["forward"]
    last(model, inputs)
    assert [b.__dict__.get("forward") for b in blocks] == [None, own, None]
    with pytest.raises(ValueError):
        model()
    assert [b.__dict__.get("forward") for b in blocks] == [None, own, None]
