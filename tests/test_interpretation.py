"""Heads, directions and texts of what an adapter changed, against dense computations and planted changes."""

import json

import pytest
import torch
from torch import nn

import adaptome as ad
from adaptome.core.errors import DataError, MergeError, ModelError, StateError, TargetError
from adaptome.interpretation import (
    blocks_told,
    describe,
    direction_changes,
    head_changes,
    interpret,
    read_labels,
    text_space,
)
from adaptome.interpretation.heads import attentions
from tests.methods.helpers import linear, shake

CLIP = ["*layers.*_proj", "*layers.*fc1", "*layers.*fc2"]
BLOCK = "vision_model.encoder.layers.1.self_attn"


def clip():
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    sizes = {"intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = CLIPConfig(
        vision_config={"hidden_size": 32, "image_size": 16, "patch_size": 8, **sizes},
        text_config={"hidden_size": 24, "vocab_size": 50, "max_position_embeddings": 12, "eos_token_id": 49, "bos_token_id": 48, **sizes},
        projection_dim=16,
    )  # fmt: skip
    model = CLIPModel(config).eval()
    shake_norms(model)
    return model


def shake_norms(model):
    """Norms' weights away from one, so that a reader that forgot them would be seen."""
    for module in model.modules():
        if "Norm" in type(module).__name__:
            nn.init.uniform_(module.weight, 0.5, 1.5)


def causal(kind, **settings):
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=40, bos_token_id=1, eos_token_id=2, **settings)
    model = AutoModelForCausalLM.from_config(config).eval()
    shake_norms(model)
    return model


def llama(**settings):
    return causal(
        "llama", hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, **settings
    )  # fmt: skip


class Words:
    """A tokenizer: a text's tokens are its words' numbers."""

    def __len__(self):
        return 38  # fewer than rows: vocabularies are padded

    def decode(self, ids):
        return f"w{ids[0]}"

    def __call__(self, text, **how):
        if isinstance(text, str):
            return {"input_ids": [int(word[1:]) for word in text.split()]}
        return {"input_ids": torch.tensor([[48, int(t[1:]), 49] for t in text]), "token_type_ids": None}


def update(model, path):
    adapter = ad.adapters(model)["default"].adapters[path]
    W = adapter.host.weight().float()
    return (adapter.changed(adapter.host.parameter, W) - W).detach(), W


# -- heads ---------------------------------------------------------------------------------------------------------


def test_only_the_trained_blocks_heads_are_ranked_first_and_the_rank_is_one():
    model = clip()
    ad.attach(model, "clip-svd", targets=CLIP)
    generator = torch.Generator().manual_seed(3)
    for path, value in ad.parameters_of(model).items():
        if path.startswith(BLOCK):
            value.data.normal_(generator=generator)
    for score in ("norm", "slices"):
        found = head_changes(model, score=score)
        assert len(found) == 16 and found == head_changes(model, score=score)
        assert {h.attention for h in found[:4]} == {BLOCK} and {h.head for h in found[:4]} == {0, 1, 2, 3}
        assert found[3].score > 0.1 and found[4].score == pytest.approx(0, abs=1e-5)
        assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)


def test_the_papers_slice_score_is_the_one_computed_by_hand():
    model = clip()
    ad.attach(model, "clip-svd", targets=CLIP)
    shake(model)
    for h in head_changes(model, score="slices"):
        own, total = ad.parameters_of(model), 0.0
        for part in ("v_proj", "out_proj"):
            after, size = (
                own[f"{h.attention}.{part}.dS"].tolist(),
                own[f"{h.attention}.{part}.dS"].numel() // 4,
            )
            total += sum(x**2 for x in after[h.head * size : (h.head + 1) * size]) ** 0.5
        assert h.score == pytest.approx(total, rel=1e-5)


def test_a_part_of_the_spectrum_has_slices_too():
    model = clip()
    ad.attach(model, "clip-svd", ratio=0.5, targets=f"{BLOCK}.v_proj")
    shake(model)
    assert [h.score > 0 for h in sorted(head_changes(model, score="slices"), key=lambda h: h.head)] == [
        True, True, False, False,
    ]  # fmt: skip


MODELS = {
    "separate": (clip, CLIP, BLOCK, "v_proj", "out_proj", 0, 8, 1),
    "grouped": (llama, "attention", "model.layers.1.self_attn", "v_proj", "o_proj", 0, 8, 2),
    "fused": (
        lambda: causal("gpt2", n_embd=32, n_layer=2, n_head=4), "attention", "transformer.h.1.attn", "c_attn", "c_proj", 64, 8, 1,
    ),
    "torch": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 48, batch_first=True), 2), ["attention"],
        "layers.1.self_attn", "in_proj_weight", "out_proj.weight", 64, 8, 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("relative", [False, True])
def test_a_head_counts_what_it_owns_of_the_change(kind, relative):
    make, targets, attention, v, o, first, width, shared = MODELS[kind]
    model = make()
    ad.attach(model, "lora", targets=targets, r=3)
    shake(model)
    (dV, V), (dO, O) = (update(model, f"{attention}.{part}") for part in (v, o))
    found = {h.head: h for h in head_changes(model, relative=relative) if h.attention == attention}
    assert sorted(found) == [0, 1, 2, 3]
    for head, h in found.items():
        rows = slice(first + head // shared * width, first + (head // shared + 1) * width)
        columns = slice(head * width, (head + 1) * width)
        value, out = float(dV[rows].norm()), float(dO[:, columns].norm())
        if relative:
            value, out = value / float(V[rows].norm()), out / float(O[:, columns].norm())
        assert h.parts == pytest.approx({"v": value, "o": out}, rel=1e-4)
        assert h.score == pytest.approx(value + out, rel=1e-4)


def test_other_maps_count_when_asked_for():
    model = llama()
    ad.attach(model, "lora", targets=["q", "k"], r=2)
    with pytest.raises(StateError, match=r"'default' is on k, q: on none of the maps v, o"):
        head_changes(model)
    shake(model)
    found = head_changes(model, parts=("q", "k"))
    dQ = update(model, "model.layers.0.self_attn.q_proj")[0]
    dK = update(model, "model.layers.0.self_attn.k_proj")[0]
    h = next(h for h in found if h.attention == "model.layers.0.self_attn" and h.head == 3)
    assert h.parts == pytest.approx({"q": float(dQ[24:32].norm()), "k": float(dK[8:16].norm())}, rel=1e-4)
    assert h.layer == 0
    with pytest.raises(StateError, match="name some of q, k, v and o"):
        head_changes(model, parts=("x",))


def test_heads_that_cannot_be_told_are_said_to_be_so():
    model = causal(
        "gpt_neox", hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48
    )
    ad.attach(model, "lora", targets="attention")
    shake(model)
    assert attentions(model) == {}  # query_key_value mixes q, k and v head by head
    with pytest.raises(StateError, match="fused in another order"):
        head_changes(model)
    found = interpret(model)
    assert found.heads == () and found.note.startswith("No heads") and found.directions


def test_slices_are_clip_svds_alone():
    model = llama()
    ad.attach(model, "lora", targets="attention")
    with pytest.raises(StateError, match="trains; this is lora"):
        head_changes(model, score="slices")
    other = clip()
    ad.attach(other, "clip-svd", targets=CLIP)
    with pytest.raises(StateError, match="raw singular values"):
        head_changes(other, score="slices", relative=True)


def test_labels_are_read_and_must_fit(tmp_path):
    model = clip()
    ad.attach(model, "clip-svd", targets=CLIP)
    shake(model)
    (tmp_path / "labels.json").write_text(
        json.dumps({"vision*layers.1.self_attn": ["colour", None, "shape", "count"]})
    )
    labels = read_labels(tmp_path / "labels.json")
    told = {h.head: h.label for h in head_changes(model, labels=labels) if h.attention == BLOCK}
    assert told == {0: "colour", 1: None, 2: "shape", 3: "count"}
    assert "shape" in str(interpret(model, labels=labels, top=16))
    with pytest.raises(TargetError, match="2 labels for .* which has 4 heads"):
        head_changes(model, labels={BLOCK: ["a", "b"]})
    with pytest.raises(
        TargetError, match=r"no attention with known heads. Did you mean 'vision_model.encoder.layers"
    ):
        head_changes(model, labels={"vision_model.encoder.layers.9.self_attn": []})
    for wrong in ("[]", "{", '{"a": [1]}'):
        (tmp_path / "labels.json").write_text(wrong)
        with pytest.raises(DataError, match=r"labels.json"):
            read_labels(tmp_path / "labels.json")


# -- directions ----------------------------------------------------------------------------------------------------


def rebuilt(found, path, shape):
    total = torch.zeros(shape)
    for d in found:
        if d.layer == path:
            total += d.change * d.u[:, None] * d.v
    return total


def test_clip_svds_directions_are_the_bases_singular_vectors():
    model = nn.Sequential(linear(12, 20), linear(20, 9))
    ad.attach(model, "clip-svd", targets=["0", "1"])
    own = ad.parameters_of(model)
    own["0.dS"].data[3], own["1.dS"].data[7], own["1.dS"].data[0] = -0.5, 0.25, 0.1
    found = direction_changes(model)
    assert [(d.layer, d.index) for d in found] == [("0", 3), ("1", 7), ("1", 0)]  # the others did not change
    assert [d.change for d in found] == pytest.approx([-0.5, 0.25, 0.1])
    W = model[0].weight.detach()
    U, S, Vt = torch.linalg.svd(W, full_matrices=False)
    assert found[0].before == pytest.approx(float(S[3]), rel=1e-5)
    assert abs(float(found[0].u @ U[:, 3])) == pytest.approx(1, abs=1e-5)
    assert float(found[0].u @ W @ found[0].v) == pytest.approx(
        float(S[3]), rel=1e-4
    )  # the pair's sign is common
    assert found[0].u.abs().argmax() == found[0].u.argmax()
    assert direction_changes(model, top=1) == found[:1]
    shares = direction_changes(model, relative=True)
    assert shares[0].score == pytest.approx(0.5 / float(W.norm()), rel=1e-5)


@pytest.mark.parametrize(
    "method", [ad.ClipSVD(), ad.LoLDU(r=5), ad.LoRA(r=3), ad.LoHa(r=2), ad.OFT(size=4), ad.DoRA(r=2)]
)
def test_all_directions_add_up_to_the_change(method):
    model = nn.Sequential(linear(12, 20))
    ad.attach(model, method, targets="0")
    shake(model)
    found = direction_changes(model, top=100)
    change, W = update(model, "0")
    torch.testing.assert_close(rebuilt(found, "0", (20, 12)), change, rtol=1e-3, atol=1e-4)
    assert all(
        float(d.u.norm()) == pytest.approx(1, abs=1e-4) and float(d.v.norm()) == pytest.approx(1, abs=1e-4)
        for d in found
    )
    if method.name != "loldu":  # pivots are not orthogonal
        assert all(float(d.u @ W @ d.v) == pytest.approx(d.before, abs=1e-4) for d in found)
    if method.name == "lora":
        assert len(found) == 3


def test_experts_have_directions_of_their_own():
    model = causal(
        "mixtral", hidden_size=16, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        num_local_experts=3,
    )  # fmt: skip
    ad.attach(model, "clip-svd", targets="down")
    shake(model)
    path = next(iter(ad.adapters(model)["default"].adapters))
    change = update(model, path)[0]
    found = direction_changes(model, top=1000)
    for expert in range(3):
        torch.testing.assert_close(
            rebuilt(found, f"{path}[{expert}]", change[expert].shape), change[expert], rtol=1e-3, atol=1e-4
        )


def test_a_share_of_an_adapter_counts_by_its_share():
    model = nn.Sequential(linear())
    ad.attach(model, "lora", targets="0", r=2)
    shake(model)
    whole = direction_changes(model)
    ad.activate(model, "default", {"default": 0.5})
    assert [d.change for d in direction_changes(model)] == pytest.approx(
        [0.5 * d.change for d in whole], rel=1e-4
    )


def test_what_changes_no_matrix_is_refused():
    model = llama()
    ad.attach(model, "series", targets="mlp-blocks")
    with pytest.raises(MergeError, match="changes no weight"):
        direction_changes(model)
    ad.detach(model)
    ad.attach(model, "norm-tuning")
    with pytest.raises(StateError, match=r"on no matrix.* norm \(norm\)"):
        direction_changes(model)


# -- texts ---------------------------------------------------------------------------------------------------------


def plant(model, path, u):
    """A rank-1 LoRA that writes u."""
    own = ad.parameters_of(model)
    own[f"{path}.B"].data.copy_(u[:, None] / u.norm())
    own[f"{path}.A"].data.normal_()


@pytest.mark.parametrize("kind", ["llama", "gemma", "gpt2"])
def test_a_language_models_directions_are_told_by_their_tokens(kind):
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4} if kind == "gpt2" else {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    }  # fmt: skip
    model = causal(kind, **sizes)
    head, last = (
        model.get_output_embeddings().weight.detach(),
        "transformer.h.1.mlp.c_proj" if kind == "gpt2" else "model.layers.1.mlp.down_proj",
    )
    norm = model.transformer.ln_f if kind == "gpt2" else model.model.norm
    gamma = norm.weight.detach() + (1 if kind == "gemma" else 0)
    rows = head[:38] - head[:38].mean(0)
    wanted = nn.functional.normalize(rows[17], dim=0)
    u = wanted / gamma
    ad.attach(model, "lora", targets="down", r=1)
    plant(model, last, u)
    space = text_space(model, Words())
    (d,) = describe(direction_changes(model, top=1), space)
    end = d.towards if float(d.u @ u) > 0 else d.against
    image = gamma * ((u - u.mean()) if kind == "gpt2" else u)
    cosine = torch.cosine_similarity(image, rows)
    assert end[0][0] == "w17" == f"w{int(cosine.argmax())}"
    assert end[0][1] == pytest.approx(float(cosine[17]), abs=1e-4)
    assert [score for _, score in end] == pytest.approx(cosine.topk(3).values.tolist(), abs=1e-4)
    assert 0 < space.chance(next(iter(space.readers.values()))) < end[0][1]


def test_texts_of_several_tokens_are_their_mean():
    model = llama()
    head = model.get_output_embeddings().weight.detach()
    space = text_space(model, Words(), ["w1 w2 w3", "w4", "w5 w6", "w4"])
    rows = torch.stack([head[[1, 2, 3]].mean(0), head[4], head[[5, 6]].mean(0)])
    assert space.texts == ("w1 w2 w3", "w4", "w5 w6")
    torch.testing.assert_close(space.embeddings, nn.functional.normalize(rows - rows.mean(0), dim=-1))
    with pytest.raises(DataError, match="1 texts have no tokens, first ''"):
        text_space(model, Words(), ["w1", "w2", ""])
    with pytest.raises(DataError, match="at least two different"):
        text_space(model, Words(), ["w1", "w1"])


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_a_clips_directions_are_told_by_the_texts_their_projection_points_at(tower):
    model, texts = clip(), [f"t{i}" for i in range(12)]
    with torch.no_grad():
        features = model.get_text_features(torch.tensor([[48, i, 49] for i in range(12)])).pooler_output
        rows = nn.functional.normalize(features, dim=-1)
        rows = rows - rows.mean(0)
        projection = model.visual_projection.weight if tower == "vision" else model.text_projection.weight
        norm = model.vision_model.post_layernorm if tower == "vision" else model.text_model.final_layer_norm
        # u with P (gamma * (u - mean(u))) along the fifth text: least squares
        width = projection.shape[1]
        centre = torch.eye(width) - 1 / width
        u = torch.linalg.pinv(projection @ torch.diag(norm.weight) @ centre) @ rows[5]
    path = f"{tower}_model.encoder.layers.1.mlp.fc2"
    ad.attach(model, "lora", targets=[f"{tower}_model*fc2", f"{tower}_model*v_proj"], r=1)
    plant(model, path, u)
    space = text_space(model, Words(), texts)
    torch.testing.assert_close(space.embeddings, nn.functional.normalize(rows, dim=-1), rtol=1e-4, atol=1e-5)
    (d,) = describe(direction_changes(model, top=1), space)
    end, other = (d.towards, d.against) if float(d.u @ u) > 0 else (d.against, d.towards)
    assert end[0] == ("t5", pytest.approx(1, abs=1e-4)) and other[0][0] != "t5"
    ad.parameters_of(model)[f"{path.replace('mlp.fc2', 'self_attn.v_proj')}.B"].data.fill_(100)
    assert direction_changes(model, top=1)[0].role == "v"
    assert describe(direction_changes(model, top=1), space)[0].towards == ()  # it writes into its head
    told = interpret(model, space=space, top=3)
    assert {d.role for d in told.directions} == {"down"} and set(told.chance) == {f"{tower}_model"}


def test_the_texts_of_a_clip_are_the_bases_whatever_the_adapter_learned():
    model, texts = clip(), [f"t{i}" for i in range(5)]
    before = text_space(model, Words(), texts).embeddings
    ad.attach(model, "clip-svd", targets=CLIP)
    shake(model)
    model.train()
    assert torch.equal(text_space(model, Words(), texts).embeddings, before) and model.training


def test_a_vision_encoder_alone_is_read_through_the_clip_it_was_taken_from():
    from transformers import CLIPForImageClassification

    whole = clip()
    model = CLIPForImageClassification(whole.config).eval()
    model.vision_model.load_state_dict(whole.vision_model.state_dict())
    ad.attach(model, "clip-svd", targets=CLIP)
    shake(model)
    with pytest.raises(ModelError, match="CLIPForImageClassification has no map"):
        text_space(model, Words(), ["t1", "t2"])
    found = interpret(model, space=text_space(whole, Words(), ["t1", "t2", "t3"]))
    assert all(len(d.towards) == 3 for d in found.directions)


def test_models_without_a_way_to_texts_are_refused():
    from transformers import BertConfig, BertForMaskedLM

    # its head has a layer and a norm of its own before the tokens
    config = BertConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, vocab_size=30
    )
    with pytest.raises(ModelError, match="BertForMaskedLM has no map from its residual stream to texts"):
        text_space(BertForMaskedLM(config), Words())


# -- the whole -----------------------------------------------------------------------------------------------------


def test_a_summary_prints_and_goes_into_json_and_a_page(tmp_path):
    model = llama()
    ad.attach(model, "lora", targets=["v", "o", "down"], r=2)
    shake(model)
    ad.parameters_of(model)["model.layers.0.self_attn.o_proj.B"].data.zero_()
    found = interpret(model, space=text_space(model, Words()), top=3, relative=True)
    assert (len(found.heads), found.total, len(found.directions)) == (3, 8, 3)
    told = json.loads(json.dumps(found.to_dict()))
    assert told["directions"][0]["towards"][0].keys() == {"text", "cosine"}
    assert told["heads"][0]["parts"].keys() == {"v", "o"}
    text = str(found)
    assert (
        "The most changed of 8 heads" in text
        and "share" in text
        and "a random direction's nearest text" in text
    )
    page = found.page().write(tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 2 and found.directions[0].layer in page


def test_directions_that_no_text_can_tell_are_said_to_have_none():
    model = llama()
    ad.attach(model, "lora", targets="v", r=2)
    shake(model)
    found = interpret(model, space=text_space(model, Words()))
    assert found.directions and "No texts: none of these directions" in found.note


def test_early_blocks_tell_the_place_of_a_patch_and_the_table_has_a_row_for_each():
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    sizes = {"image_size": 16, "patch_size": 4, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}  # fmt: skip
    encoder = ViTModel(ViTConfig(**sizes, initializer_range=0.1), add_pooling_layer=False)
    labels = [i % 2 for i in range(40)]
    pixels = 0.1 * torch.randn(40, 3, 16, 16) + torch.tensor(labels).view(-1, 1, 1, 1)
    told = blocks_told(encoder, pixels, labels)
    assert [row.block for row in told] == [0, 1, 2] and told[0].place > 0.9 and told[0].kind > 0.9
    with torch.no_grad():
        state = (
            encoder.eval()(pixel_values=pixels, output_hidden_states=True)
            .hidden_states[2][:, 1:]
            .flatten(0, 1)
        )
    values = torch.linalg.eigvalsh(torch.cov(state.T.double()))
    assert told[1].eigenvalue == pytest.approx(float(values.mean())) and told[1].variance == pytest.approx(float(values.var()))  # fmt: skip
    with torch.no_grad():  # without positions nothing tells the place
        encoder.embeddings.position_embeddings.zero_()
    assert blocks_told(encoder, torch.randn(40, 3, 16, 16))[0].place < 0.3
    assert blocks_told(encoder, pixels)[0].kind is None
