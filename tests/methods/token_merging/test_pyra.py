"""PYRA and the merging it trains (arXiv:2403.09192), against a reference that goes token by token, and on every model it knows."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import adaptome as ad
from adaptome.core.errors import HostError, MethodError, StateError
from adaptome.core.steer import steered
from adaptome.forms.token_merging import KEYS, Pairs, State, match, moved
from adaptome.methods.token_merging.pyra import SCHEDULES
from adaptome.optim import parameter_groups
from tests.methods.helpers import checkpointing, shake

SMALL = dict(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24)
PICTURES = dict(image_size=20, patch_size=4, **SMALL)  # 25 patches


def build(name: str) -> nn.Module:
    import transformers as T

    dino = dict(image_size=20, patch_size=4, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, layerscale_value=0.7)  # fmt: skip
    torch.manual_seed(0)
    return {
        "ViT": lambda: T.ViTModel(T.ViTConfig(**PICTURES)),
        "ViT classifier": lambda: T.ViTForImageClassification(T.ViTConfig(num_labels=3, **PICTURES)),
        "DeiT": lambda: T.DeiTForImageClassificationWithTeacher(T.DeiTConfig(num_labels=3, **PICTURES)),
        "CLIP vision": lambda: T.CLIPVisionModel(T.CLIPVisionConfig(**PICTURES)),
        "CLIP classifier": lambda: T.CLIPForImageClassification(T.CLIPConfig(vision_config=PICTURES, num_labels=3)),
        "SigLIP": lambda: T.SiglipVisionModel(T.SiglipVisionConfig(**PICTURES)),
        "DINOv2": lambda: T.Dinov2ForImageClassification(T.Dinov2Config(num_labels=3, **dino)),
        "DINOv2 registers": lambda: T.Dinov2WithRegistersModel(T.Dinov2WithRegistersConfig(num_register_tokens=3, **dino)),
        "AST": lambda: T.ASTForAudioClassification(T.ASTConfig(max_length=56, num_mel_bins=56, num_labels=3, **SMALL)),
    }[name]().double().eval()  # fmt: skip


#: special tokens of each
MODELS = {"ViT": 1, "ViT classifier": 1, "DeiT": 2, "CLIP vision": 1, "CLIP classifier": 1, "SigLIP": 0, "DINOv2": 1, "DINOv2 registers": 4, "AST": 2}  # fmt: skip
EXCLUDED = {"SigLIP": "head.attention"}  # its pooling head attends too


def examples(batch: int = 2, name: str = "ViT") -> torch.Tensor:
    shape = (batch, 56, 56) if name == "AST" else (batch, 3, 20, 20)
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def merged(name: str = "ViT", **settings) -> nn.Module:
    model = build(name)
    ad.attach(model, "pyra", exclude=EXCLUDED.get(name), seed=0, **settings)
    return model


def run(model: nn.Module, x: torch.Tensor):
    """Every tensor of the output, and the tokens after each block."""
    with torch.no_grad():
        output = model(x, output_hidden_states=True)
    return [v for v in output.values() if isinstance(v, torch.Tensor)], output.hidden_states


def same(a, b) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_it_starts_as_tome_and_with_nothing_merged_as_the_base(name):
    x = examples(name=name)
    base, tokens = run(
        build(name).requires_grad_(False), x
    )  # frozen: nn.MultiheadAttention has another kernel then
    assert same(base, run(merged(name, r=0), x)[0])
    start, left = run(merged(name, r=4), x)
    assert same(start, run(merged(name, r=4, modulate=False), x)[0]) and not torch.equal(start[0], base[0])
    assert [h.shape[1] for h in left] == [tokens[0].shape[1] - 4 * i for i in range(4)]
    model = merged(name, r=4)
    shake(model)
    assert not same(start, run(model, x)[0])


@pytest.mark.parametrize(("name", "special"), MODELS.items())
def test_special_tokens_are_found(name, special):
    adapters = ad.adapters(merged(name))["default"].adapters.values()
    assert [a.protected for a in adapters if hasattr(a, "protected")] == [special]


# -- against the equation


def reference(model: nn.Module, x: torch.Tensor, schedule, protected: int = 1) -> torch.Tensor:
    """The last tokens of a ViT for one picture, pair by pair."""
    tokens = list(model.embeddings(x)[0])
    sizes = [1.0] * len(tokens)
    for block, r in zip(model.layers, schedule, strict=True):
        X, heads = torch.stack(tokens), block.attention.num_attention_heads
        n = block.layernorm_before(X)
        q, k, v = (F.linear(n, m.weight, m.bias).view(len(X), heads, -1) for m in (block.attention.q_proj, block.attention.k_proj, block.attention.v_proj))  # fmt: skip
        out = torch.empty_like(q)
        for h in range(heads):
            logits = q[:, h] @ k[:, h].T / math.sqrt(q.shape[-1]) + X.new_tensor([math.log(m) for m in sizes])
            out[:, h] = logits.softmax(-1) @ v[:, h]
        X = X + F.linear(out.flatten(1), block.attention.o_proj.weight, block.attention.o_proj.bias)
        key = k.mean(1)
        found = []
        for i in range(0, len(X), 2):
            if i >= protected:
                likeness = {j: float(F.cosine_similarity(key[i], key[j], 0)) for j in range(1, len(X), 2) if j >= protected}  # fmt: skip
                j = max(likeness, key=likeness.get)
                found.append((likeness[j], i, j))
        pairs = sorted(found, reverse=True)[: min(r, (len(X) - protected) // 2)]
        adapter = block.adaptome["default"]
        S = [X[i] * sizes[i] for _, i, _ in pairs]
        T = [X[j] * sizes[j] for _, _, j in pairs]
        M = [F.layer_norm(s + t, (len(s),), adapter.LN.weight, adapter.LN.bias) for s, t in zip(S, T, strict=True)]  # fmt: skip
        d_D = 2 * torch.sigmoid(sum(w * m for w, m in zip(adapter.W_r[:, 0], M)))  # noqa: B905
        total, weight = [x * m for x, m in zip(X, sizes, strict=True)], list(sizes)
        for (_, i, j), s, m in zip(pairs, S, M, strict=True):
            d_r = 2 * torch.sigmoid(m @ adapter.W_D[0]) - 1
            total[j] = total[j] + s + s * d_D * d_r
            weight[j] += sizes[i]
        gone = {i for _, i, _ in pairs}
        order = [i for i in range(0, len(X), 2) if i not in gone] + list(range(1, len(X), 2))
        order = list(range(protected)) + [i for i in order if i >= protected]
        X = torch.stack([total[i] / weight[i] for i in order])
        sizes = [weight[i] for i in order]
        tokens = list(X + block.mlp(block.layernorm_after(X)))
    return model.layernorm(torch.stack(tokens))


@pytest.mark.parametrize(("schedule", "protected"), [((4, 3, 5), 1), ((12, 6, 9), 1), ((5, 5, 5), 4), ((9, 4, 1), 0)])  # fmt: skip
def test_the_model_is_the_reference(schedule, protected):
    model = merged(r=schedule, protected=protected)
    shake(model)
    x = examples(3)
    together = model(x).last_hidden_state
    for i in range(3):
        with torch.no_grad():
            expected = reference(model, x[i : i + 1], schedule, protected)
        torch.testing.assert_close(together[i], expected, rtol=1e-9, atol=1e-9)


def test_too_few_tokens_cut_r_and_take_the_first_rows():
    model = merged(r=(12, 6, 9))  # 26 -> 14 -> 8 -> 5: the third merges 3 of its 9
    shake(model)
    assert [h.shape[1] for h in run(model, examples())[1]] == [26, 14, 8, 5]
    last = model.layers[2].adaptome["default"]
    before = run(model, examples())[0][0]
    with torch.no_grad():
        last.W_r[3:] = 7
    assert torch.equal(run(model, examples())[0][0], before)
    with torch.no_grad():
        last.W_r[2] += 1
    assert not torch.equal(run(model, examples())[0][0], before)


# -- matching and merging


@pytest.mark.parametrize("protected", range(6))
@pytest.mark.parametrize("tokens", [9, 12])
def test_protected_tokens_are_in_no_pair_and_stay_in_front(tokens, protected):
    keys = torch.randn(4, tokens, 3, generator=torch.Generator().manual_seed(protected))
    r = (tokens - protected) // 2
    pairs = match(keys, r, protected)
    assert (pairs.source >= protected).all() and (pairs.target >= protected).all()
    assert (pairs.source % 2 == 0).all() and (pairs.target % 2 == 1).all()
    assert torch.equal(pairs.kept[:, :protected], torch.arange(protected).expand(4, -1))
    for gone, left in zip(pairs.source, pairs.kept, strict=True):
        assert sorted([*gone.tolist(), *left.tolist()]) == list(range(tokens))
    likeness = F.cosine_similarity(keys.gather(1, pairs.source[..., None].expand(-1, -1, 3)), keys.gather(1, pairs.target[..., None].expand(-1, -1, 3)), dim=-1)  # fmt: skip
    assert (likeness.diff(dim=1) <= 1e-6).all()


def test_sizes_sum_to_the_tokens_and_places_follow():
    model, seen = merged(r=(7, 5, 2), unmerge=True), []
    for block in model.layers:
        adapter = block.adaptome["default"]
        original = adapter._merge
        adapter._merge = lambda *a, original=original: seen.append(original(*a)) or seen[-1]
    output = model(examples(), output_hidden_states=True)
    assert [h.shape[1] for h in output.hidden_states] == [26, 19, 14, 26]
    for (_, state), left in zip(seen, (19, 14, 12), strict=True):
        assert state.sizes.shape == (2, left, 1) and (state.sizes.sum(1) == 26).all()
        for row in range(2):
            counted = state.place[row].bincount(minlength=left)
            assert torch.equal(counted.double(), state.sizes[row, :, 0])


def test_equal_tokens_merge_to_themselves_and_sizes_are_the_weights():
    model = merged(r=2, modulate=False)
    adapter = model.layers[0].adaptome["default"]
    x = torch.randn(1, 6, 16, dtype=torch.float64)
    x[0, 2] = x[0, 3]
    pairs = Pairs(*(torch.tensor([v]) for v in ([2, 4], [3, 5], [0, 1, 3, 5])))
    m = torch.tensor([1.0, 1, 3, 2, 4, 2], dtype=torch.float64)[None, :, None]
    y, state = adapter._merge(x, State(m), pairs)
    torch.testing.assert_close(y[0, 2], x[0, 3])
    torch.testing.assert_close(y[0, 3], (4 * x[0, 4] + 2 * x[0, 5]) / 6)
    assert state.sizes.flatten().tolist() == [1, 1, 5, 6]
    assert torch.equal(moved(pairs, None), torch.tensor([[0, 1, 2, 2, 3, 3]]))
    assert torch.equal(moved(pairs, torch.tensor([[5, 2, 0]])), torch.tensor([[3, 2, 0]]))


def test_proportional_attention_is_that_of_the_copies():
    model = merged(r=1)
    block, x = model.layers[0], torch.randn(1, 5, 16, dtype=torch.float64)
    copies = x[:, [0, 1, 2, 2, 2, 3, 4, 4]]
    sizes = torch.tensor([1.0, 1, 3, 1, 2], dtype=torch.float64)[None, :, None]
    mask = block.adaptome["default"]._mask(State(sizes), x)
    got = block.attention(x, mask)[0]
    torch.testing.assert_close(got, block.attention(copies)[0][:, [0, 1, 2, 5, 6]], rtol=1e-9, atol=1e-9)
    assert not torch.allclose(got, block.attention(x)[0])
    assert merged(r=1, proportional=False).layers[0].adaptome["default"]._mask(State(sizes), x) is None


# -- gradients


def tensors(model: nn.Module, name: str) -> list[torch.Tensor]:
    return [p for k, p in ad.parameters_of(model).items() if name in k]


def test_in_the_first_step_only_W_D_has_a_gradient_and_then_everything():
    model, x = merged(r=4), examples()
    optimizer = torch.optim.SGD(ad.parameters_of(model).values(), lr=0.1)
    model(x).last_hidden_state[:, :, 0].square().sum().backward()
    ad.check_gradients(model)
    assert all(p.grad.any() for p in tensors(model, "W_D"))
    assert not any(p.grad.any() for name in ("W_r", "LN") for p in tensors(model, name))
    assert len(ad.parameters_of(model)) == 12
    optimizer.step()
    optimizer.zero_grad()
    model(x).last_hidden_state[:, :, 0].square().sum().backward()
    assert all(p.grad.any() for p in ad.parameters_of(model).values())


def test_the_last_block_cannot_reach_a_head_that_reads_the_class_token():
    model = merged("ViT classifier", r=4)
    shake(model)
    model(examples()).logits.square().sum().backward()
    reached = {k.split(".layers.")[1][0] for k, p in ad.parameters_of(model).items() if p.grad.any()}
    assert reached == {"0", "1"}


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_blocks_have_the_record_of_their_own_forward(reentrant):
    grads = []
    for checkpoint in (False, True):
        model = merged(r=(7, 5, 2)).train()
        shake(model)
        if checkpoint:
            checkpointing(model)({"use_reentrant": reentrant})
            model.embeddings.register_forward_hook(lambda m, a, y: y.requires_grad_(True))
        # two forwards of other batches before the backward
        outputs = [model(x).last_hidden_state for x in (examples(3), examples(1)[:, :, :, :].flip(-1))]
        (outputs[0].square().sum() + outputs[1].sum()).backward()
        grads.append([p.grad for p in ad.parameters_of(model).values()])
    assert all(g.any() for g in grads[0])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_nothing_is_left_after_an_exception_or_inside_another_forward():
    model, x = merged(r=(7, 5, 2)), examples()
    before = run(model, x)[0]
    state = [set(vars(m)) for m in model.modules()]

    def fails(module, args):
        raise KeyError("in the middle")

    hook = model.layers[1].mlp.register_forward_pre_hook(fails)
    with pytest.raises(KeyError):
        model(x)
    hook.remove()
    assert steered(KEYS) is None and [set(vars(m)) for m in model.modules()] == state
    assert same(run(model, x)[0], before)
    other = []
    hook = model.layers[1].register_forward_pre_hook(
        lambda m, a: hook.remove() or other.append(run(model, x.flip(0))[0])
    )
    assert same(run(model, x)[0], before)  # a whole forward ran inside it
    torch.testing.assert_close(other[0][0], before[0].flip(0))


# -- in company


@pytest.mark.parametrize("name", ["ViT classifier", "CLIP classifier"])
def test_lora_before_or_after_is_the_same_and_both_train(name):
    x, outputs = examples(name=name), []
    for order in (("lora", "pyra"), ("pyra", "lora")):
        model = build(name)
        for method in order:
            targets = ["*vision_model*.q_proj", "*vision_model*.v_proj"] if "CLIP" in name else "qkv"
            ad.attach(model, method, method, seed=0, **({"r": 4} if method == "pyra" else {"r": 2, "targets": targets}))  # fmt: skip
        for i, method in enumerate(("lora", "pyra")):
            generator = torch.Generator().manual_seed(i)
            with torch.no_grad():
                for p in ad.parameters_of(model, method).values():
                    p.add_(0.2 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
        outputs.append(run(model, x)[0][0])
        model(x).logits.sum().backward()
        assert all(any(p.grad.any() for p in ad.parameters_of(model, m).values()) for m in order)
        ad.merge(model, "lora")
        torch.testing.assert_close(run(model, x)[0][0], outputs[-1])
    assert torch.equal(*outputs)


def test_an_adapter_of_its_own_learning_rate():
    model = build("ViT")
    ad.attach(model, "lora", targets="qkv")
    ad.attach(model, "pyra", "pyra")
    groups = parameter_groups(model, lr=1e-3, weight_decay=1e-4, rates={"pyra": 1e-4})
    rates = {name: group["lr"] for group in groups for name in group["param_names"]}
    assert {rate for name, rate in rates.items() if ".pyra." in name} == {1e-4}
    assert {rate for name, rate in rates.items() if ".default." in name} == {1e-3}
    assert len(rates) == len(ad.trainable(model).names)


def test_dense_tasks_get_every_token_back():
    x = examples()
    base = run(merged(r=0), x)[0][0]
    got = run(merged(r=(7, 5, 2), unmerge=True), x)[0][0]
    short = run(merged(r=(7, 5, 2)), x)[0][0]
    assert got.shape == base.shape and short.shape[1] == 12
    for row in range(2):
        assert len(got[row].unique(dim=0)) == 12
        assert torch.equal(got[row].unique(dim=0), short[row].unique(dim=0))
        assert torch.equal(got[row, 0], short[row, 0])


def test_strength_is_the_share_of_the_pairs():
    model = merged(r=(7, 5, 2), modulate=False)
    ad.activate(model, "default", weights={"default": 0.5})
    assert same(run(model, examples())[0], run(merged(r=(3, 2, 1), modulate=False), examples())[0])


# -- at full size


def full(large: bool = False) -> nn.Module:
    from transformers import ViTConfig, ViTModel

    wide = dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
    with torch.device("meta"):
        return ViTModel(ViTConfig(**(wide if large else {})), add_pooling_layer=False).eval()


@pytest.mark.parametrize(
    ("schedule", "vectors", "with_norms", "left"),
    [("vit-b-high", 9_408, 27_840, 5), ("vit-b-low", 9_402, 27_834, 11), ("vit-l-high", 24_768, 73_920, 5), ("vit-l-low", 24_766, 73_918, 7)],
)  # fmt: skip
def test_counts_are_the_papers_and_tokens_those_of_the_schedule(schedule, vectors, with_norms, left):
    model = full("-l-" in schedule)
    assert ad.plan(model, "pyra", r=schedule, affine=False).trainable == vectors
    assert ad.attach(model, "pyra", r=schedule).trainable == with_norms
    tokens = model(torch.zeros(1, 3, 224, 224, device="meta"), output_hidden_states=True).hidden_states
    expected = [197]
    for r in SCHEDULES[schedule]:
        expected.append(expected[-1] - r)
    assert [h.shape[1] for h in tokens] == expected and expected[-1] == left


def test_lora_beside_it_has_the_papers_count_where_qkv_is_one_map():
    """The paper adapts a fused qkv: r (D + 3 D). On three separate maps each has its own A: r (6 D), half as many again."""
    for large, r, D, L, count in ((False, 8, 768, 12, 294_912), (True, 12, 1024, 24, 1_179_648)):
        fused = nn.ModuleList(nn.Linear(D, 3 * D, device="meta") for _ in range(L))
        assert ad.plan(fused, "lora", r=r, targets="*").trainable == count == L * r * 4 * D
        assert ad.plan(full(large), "lora", r=r, targets="qkv").trainable == count * 3 // 2 == L * r * 6 * D


@pytest.mark.parametrize(
    ("schedule", "gain", "macs"),
    [("vit-b-low", 1.9, 8.77), ("vit-b-high", 3.3, 5.07), ("vit-l-low", 1.9, 30.96), ("vit-l-high", 3.3, 17.91)],
)  # fmt: skip
def test_operations_fall_as_the_paper_says(schedule, gain, macs):
    model, x = full("-l-" in schedule), torch.zeros(1, 3, 224, 224, device="meta")

    def giga() -> float:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(x)
        return counter.get_total_flops() / 2e9

    base = giga()
    ad.attach(model, "pyra", r=schedule)
    left = giga()
    assert base / left >= gain
    assert abs(left - macs) < 0.02 * macs


def test_a_ratio_makes_the_schedule():
    method = ad.get_method("pyra", ratio=0.2, tokens=197)
    assert [method.pairs_in(i) for i in range(4)] == [39, 31, 25, 20]  # of 197, 158, 127, 102
    assert [h.shape[1] for h in run(merged(ratio=0.2, tokens=26), examples())[1]] == [26, 21, 17, 14]


# -- what it refuses


def test_what_does_not_fit_is_refused():
    for r, words in (((3, 4), "lists 2 blocks, and the model has more"), ((3, 4, 5, 6), "lists 4 blocks; the model has 3")):  # fmt: skip
        with pytest.raises(MethodError, match=words):
            merged(r=r)
    with pytest.raises(MethodError, match="Did you mean 'vit-b-high'"):
        ad.get_method("pyra", r="vit-b-hihg")
    with pytest.raises(MethodError, match="negative"):
        ad.get_method("pyra", r=(4, -1))
    for targets, words in (
        (["blocks", "k"], "without its backbone"),
        (["backbones", "blocks"], "without its one key map"),
        (["backbones", "layers.0", "layers.1", "k"], "2 of the 3 blocks"),
        (["backbones", "blocks", "qkv"], "cannot be put on layers.0.attention.q_proj.*key maps alone"),
    ):
        with pytest.raises(HostError, match=words):
            ad.attach(build("ViT"), "pyra", targets=targets)


def test_blocks_of_another_form_are_refused():
    from transformers import BeitConfig, BeitModel, SwinConfig, SwinModel

    for model in (BeitModel(BeitConfig(**PICTURES)), SwinModel(SwinConfig(image_size=32, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4))):  # fmt: skip
        with pytest.raises(HostError, match="pyra cannot be put on"):
            ad.attach(model, "pyra")


def test_masks_and_kernels_without_masks_are_refused():
    model, x = merged(r=3), examples()
    with pytest.raises(StateError, match="under an attention mask"):
        model(x, attention_mask=torch.cat([torch.ones(2, 20), torch.zeros(2, 6)], 1).long())
    with pytest.raises(StateError, match="without the record"):
        model.layers[1](torch.randn(2, 26, 16, dtype=torch.float64))
    sdpa = run(model, x)[0][0]
    model.set_attn_implementation("eager")
    torch.testing.assert_close(run(model, x)[0][0], sdpa)
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(StateError, match="(?s)'flash_attention_2' does not take.*set_attn_implementation"):
        model.layers[0].adaptome["default"]._mask(State(torch.ones(2, 26, 1)), x)
    before = build("ViT")
    ad.attach(before, "series", "series", targets="blocks")
    ad.attach(before, "pyra")
    with pytest.raises(StateError, match="another adapter below"):
        before(x)


def test_a_text_tower_is_left_out():
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=SMALL, vision_config=PICTURES)).double().eval()
    x, ids = examples(), torch.randint(1, 30, (2, 5))
    base = model(pixel_values=x, input_ids=ids)
    ad.attach(model, "pyra")
    with pytest.raises(StateError, match="(?s)text_model.*left out by exclude='text_model'"):
        model(pixel_values=x, input_ids=ids)
    ad.detach(model)
    ad.attach(model, "pyra", r=4, exclude="text_model")
    got = model(pixel_values=x, input_ids=ids)
    assert torch.equal(got.text_embeds, base.text_embeds) and not torch.equal(
        got.image_embeds, base.image_embeds
    )
    assert got.vision_model_output.last_hidden_state.shape[1] == 26 - 12


# -- what a task reads ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ViT", "DINOv2 registers", "CLIP vision"])
def test_a_task_reads_what_was_merged(name):
    x = examples(name=name)
    model, whole = merged(name, r=(7, 5, 2)), merged(name, r=(7, 5, 2), unmerge=True)
    before = run(model, x)[0]
    with ad.merged_tokens() as read:
        after = run(model, x)[0]
    assert same(before, after)  # reading changes nothing
    [(path, tokens)] = read.items()
    first = 25 + MODELS[name]
    assert isinstance(model.get_submodule(path), nn.Module)
    assert tokens.sizes.shape == (2, first - 14) and tokens.place.shape == (2, first)
    for sizes, place in zip(tokens.sizes, tokens.place, strict=True):
        assert torch.equal(torch.bincount(place, minlength=first - 14).to(sizes), sizes)
    assert torch.equal(tokens.place[:, : MODELS[name]], torch.arange(MODELS[name]).expand(2, -1))
    states = run(model, x)[1][-1]
    assert torch.equal(tokens.spread(states), run(whole, x)[1][-1])


def test_a_task_reads_single_tokens_where_nothing_is_merged():
    model, x = merged(r=0), examples()
    with ad.merged_tokens() as read, torch.no_grad():
        model(x)
    [tokens] = read.values()
    assert torch.equal(tokens.sizes, torch.ones(2, 26)) and torch.equal(tokens.place[0], torch.arange(26))
    with torch.no_grad():
        model(x[:1])  # outside, nothing is told
    assert len(tokens.sizes) == 2
