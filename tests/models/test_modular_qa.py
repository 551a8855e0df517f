"""modular-qa: streams around one Q-Former, their fusion, what each adapter reaches, and a modality that is added to a saved model."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import adaptome as ad
from adaptome.core.errors import ModelError, StateError
from adaptome.core.rows import running_only
from adaptome.models.answering import answer_logits, answer_loss, answer_scores, greedy_hits, left_padded
from adaptome.models.modular_qa import ModularQA
from adaptome.models.streams import Fusion, place_code
from adaptome.recipe import load_recipe

TEXT = {
    "t5": {"model_type": "t5", "vocab_size": 30, "d_model": 20, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0, "pad_token_id": 0, "eos_token_id": 1},
    "opt": {"model_type": "opt", "vocab_size": 30, "hidden_size": 20, "word_embed_proj_dim": 20, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 24, "dropout": 0.0, "max_position_embeddings": 80, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1},
}  # fmt: skip
VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}  # fmt: skip
QFORMER = {"vocab_size": 4, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "encoder_hidden_size": 16, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # fmt: skip
MODALITIES = {"rgb": {}, "audio": {"kind": "segments", "width": 12}, "depth": {}, "points": {"kind": "whole"}}
TARGETS = r"re:base\.qformer\.encoder\.layer\.\d+\.attention\.attention\.(query|value)"


def blip2(text: str = "t5", **changes) -> dict:
    return {"model_type": "blip-2", "num_query_tokens": 4, "vision_config": VISION, "qformer_config": QFORMER, "text_config": TEXT[text], **changes}  # fmt: skip


def built(names=("rgb", "audio", "depth"), text: str = "t5", seed: int = 0, **settings) -> ModularQA:
    torch.manual_seed(seed)
    own = {name: MODALITIES[name] for name in names}
    return ModularQA.from_settings(base={"from_config": blip2(text)}, modalities=own, **settings).eval()


def adapted(model: ModularQA, method: str = "lora", **settings) -> ModularQA:
    """An adapter for each modality, away from its start."""
    for number, name in enumerate(model.names):
        own = [f"streams.{name}"]
        if number and model.fusion is not None:
            own += [f"fusion.maps.{name}", *(["fusion.bias"] if number == 1 else [])]
        ad.attach(model, method, name, targets=TARGETS, train=own, seed=number, **{"r": 2, **settings})
    return model


def moved(model: nn.Module, name: str) -> None:
    with torch.no_grad():
        for parameter in (p for one in ad.adapters(model)[name].modules() for p in one.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.3)


def features(batch: int = 2, frames: int = 3, seed: int = 1) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shapes = {"rgb": (frames, 5, 16), "audio": (2, 6, 12), "depth": (frames, 5, 16), "points": (7, 16)}
    return {name: torch.randn(batch, *shape, generator=draw) for name, shape in shapes.items()}


def batch(names=("rgb", "audio", "depth"), **more) -> dict:
    draw = torch.Generator().manual_seed(2)
    own = {name: value for name, value in features().items() if name in names}
    ids = {"frame_ids": (2, 3, 2), "input_ids": (2, 6), "labels": (2, 2), "options": (2, 3, 2)}
    made = {key: torch.randint(2, 30, shape, generator=draw) for key, shape in ids.items()}
    return {"features": own, "attention_mask": torch.ones(2, 6, dtype=torch.long), **made, **more}


# -- counts of the paper -------------------------------------------------------------------------------------------------

#: BLIP-2 FlanT5-XL; of its vision encoder and language model, which are frozen, one layer each
FULL = blip2(
    num_query_tokens=32,
    vision_config={"hidden_size": 1408, "num_hidden_layers": 1, "num_attention_heads": 16, "intermediate_size": 6144, "image_size": 224, "patch_size": 14},
    qformer_config={"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "encoder_hidden_size": 1408},
    text_config={"model_type": "t5", "vocab_size": 32128, "d_model": 2048, "d_kv": 64, "d_ff": 5120, "num_layers": 1, "num_heads": 32, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
)  # fmt: skip


def counted(names: tuple[str, ...], fusion: str, recipe) -> int:
    own = {
        name: {"rgb": {}, "audio": {"kind": "segments", "width": 768}, "points": {"kind": "whole"}}.get(
            name, {}
        )
        for name in names
    }
    with torch.device("meta"):
        model = ModularQA.from_settings(base={"from_config": FULL}, modalities=own, fusion=fusion)
    like = recipe.methods[0]
    for number, name in enumerate(names):
        train = [f"streams.{name}"]
        if number and fusion != "none":
            train += [f"fusion.maps.{name}", *(["fusion.bias"] if number == 1 else [])]
        ad.attach(model, like.name, name, targets=like.targets, train=train, **like.settings)
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.fixture(scope="module")
def paper():
    return load_recipe("crema-music-avqa")


@pytest.mark.parametrize(
    ("names", "fusion", "expected"),
    [
        (("rgb",), "none", 3_961_600),
        (("rgb", "points", "depth"), "none", 11_884_800),
        (("rgb", "points", "depth"), "concat", 20_275_456),
        (("rgb", "audio", "flow"), "none", 12_967_552),
        (("rgb", "audio", "flow"), "concat", 21_358_208),
        (("rgb", "flow", "depth", "normal"), "none", 15_846_400),
        (("rgb", "flow", "depth", "normal"), "concat", 28_431_360),
        (("rgb", "audio", "flow", "depth", "normal"), "concat", 37_670_016),
    ],
)
def test_counts_are_the_papers(names, fusion, expected, paper):
    assert counted(names, fusion, paper) == expected


@pytest.mark.parametrize("name", ["crema-music-avqa", "crema-sqa3d", "crema-nextqa"])
def test_recipes_train_what_the_paper_trains_and_no_unused_parameter(name):
    """The authors' code registers a parameter of zeros, as large as a modality's LoRA, for each, and trains none of them."""
    recipe = load_recipe(name)
    own = recipe.model.settings["modalities"]
    with torch.device("meta"):
        model = ModularQA.from_settings(
            base={"from_config": FULL}, modalities=own, fusion=recipe.model.settings["fusion"]
        )
    for section in recipe.methods:
        ad.attach(
            model,
            section.name,
            section.adapter,
            targets=section.targets,
            train=section.train,
            **section.settings,
        )
    expected = {"crema-music-avqa": 21_358_208, "crema-sqa3d": 20_275_456, "crema-nextqa": 28_431_360}
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected[name]
    assert list(ad.adapters(model)) == list(own)
    assert recipe.training.turns.always == ["fusion"]


# -- the start, and which adapter reaches what ---------------------------------------------------------------------------


def test_a_stream_starts_as_blip2s_own_qformer_bit_for_bit():
    model, x = built(("rgb", "depth")), features()["rgb"]
    with torch.no_grad():
        model.base.vision_model.post_layernorm.weight.uniform_(0.5, 1.5)
        model.build()  # its streams start from the base as it is now
        adapted(model.eval())
        inner = model.base.vision_model.post_layernorm(x.flatten(0, 1))
        queries = model.base.query_tokens.expand(len(inner), -1, -1)
        out = model.base.qformer(query_embeds=queries, encoder_hidden_states=inner).last_hidden_state
        expected = model.base.language_projection(out)
    for name in ("rgb", "depth"):
        assert torch.equal(model.tokens(name, x).flatten(0, 1), expected)


def test_skipping_is_the_plain_qformer_at_any_time():
    model, x = adapted(built()), features()
    before = {name: model.tokens(name, x[name]) for name in model.names}
    for name in model.names:
        for adapter in ad.adapters(model)[name].adapters.values():
            with torch.no_grad():
                adapter.B.normal_()
        assert not torch.equal(model.tokens(name, x[name]), before[name])
        assert torch.equal(model.tokens(name, x[name], adapted=False), before[name])


@pytest.mark.parametrize(
    ("method", "settings"), [("lora", {}), ("dora", {}), ("series", {"r": None}), ("ssf", {"r": None})]
)
def test_changing_one_modality_leaves_the_tokens_of_the_others_bit_equal(method, settings):
    model = built()
    own = {k: v for k, v in {"r": 2, **settings}.items() if v is not None}
    for number, name in enumerate(model.names):
        ad.attach(model, method, name, targets=TARGETS, train=[f"streams.{name}"], seed=number, **own)
    x = features()
    before = {name: model.tokens(name, x[name]) for name in model.names}
    moved(model, "audio")
    for name in ("rgb", "depth"):
        assert torch.equal(model.tokens(name, x[name]), before[name])
    assert not torch.equal(model.tokens("audio", x["audio"]), before["audio"])


def test_one_adapter_with_branches_is_steered_by_the_modality_that_runs():
    """A method by task in place of an adapter for each modality; one that knows no modality is on in all."""
    model, x = built(), features()
    ad.attach(model, "omni-lora", layout="T", tasks=("rgb", "audio", "depth"), r=2, targets=TARGETS)
    before = {name: model.tokens(name, x[name]) for name in model.names}
    for adapter in ad.adapters(model)["default"].adapters.values():
        with torch.no_grad():
            adapter.A["audio"].normal_()
    after = {name: model.tokens(name, x[name]) for name in model.names}
    assert [torch.equal(after[name], before[name]) for name in model.names] == [True, False, True]
    shared = built()
    ad.attach(shared, "lora", targets=TARGETS, r=2)
    before = shared.tokens("depth", x["depth"])
    moved(shared, "default")
    assert not torch.equal(shared.tokens("depth", x["depth"]), before)


def test_what_is_inactive_does_not_run_and_a_wrapper_is_refused():
    model, x = adapted(built()), features()["audio"]
    moved(model, "audio")
    model_base = model.tokens("audio", x, adapted=False)
    with ad.disabled(model):
        plain = model.tokens("audio", x)
    ad.activate(model, ["rgb"])
    streams_back = model.tokens("audio", x)
    assert torch.equal(plain, streams_back) and not torch.equal(plain, model_base)
    held = nn.ModuleDict({"inner": built()})
    ad.attach(held, "lora", targets="query", r=2)
    with pytest.raises(StateError, match="attached to another module"):
        held["inner"].tokens("rgb", features()["rgb"])
    with running_only(nn.Linear(2, 2), nn.Linear(2, 2), bool):
        pass


def test_a_merged_modality_is_the_same_within_rounding():
    model, x = adapted(built(), dropout=0.1), features()["audio"]
    moved(model, "audio")
    before = model.tokens("audio", x)
    ad.merge(model, "audio")
    assert_close(model.tokens("audio", x), before, atol=1e-6, rtol=1e-6)


# -- fusion --------------------------------------------------------------------------------------------------------------


def test_the_gate_is_silu_of_one_linear_over_the_concatenation():
    fusion = Fusion(["audio", "depth"], 20, "linear")
    draw = torch.randn(2, 2, 3, 4, 20)
    tokens, here = dict(zip(("audio", "depth"), draw, strict=True)), torch.ones(2, dtype=torch.bool)
    linear = nn.Linear(40, 20)
    with torch.no_grad():
        linear.weight.copy_(torch.cat([fusion.maps[n].weight for n in ("audio", "depth")], 1))
        linear.bias.copy_(fusion.bias)
    u = linear(torch.cat([tokens["audio"], tokens["depth"]], -1))
    made = fusion(tokens, {"audio": here, "depth": here})
    assert made.shape == (2, 3, 4, 20)
    assert_close(made, u.sigmoid() * u)
    assert float(linear.weight.detach().abs().max()) <= 40**-0.5
    none = Fusion(["audio"], 20, "zero")
    assert torch.equal(none({"audio": tokens["audio"]}, {"audio": here}), torch.zeros(2, 3, 4, 20))


def read_lengths(fusion: str, names: tuple[str, ...]) -> int:
    model, given = built(names, fusion=fusion), batch(names)
    tokens = model.all_tokens(given["features"], None, None)
    here = {name: torch.ones(2, dtype=torch.bool) for name in tokens}
    return model.read(tokens, here, given["frame_ids"], given["input_ids"], given["attention_mask"])[0].shape[
        1
    ]


def test_what_is_read_grows_with_the_modalities_only_where_nothing_is_fused():
    three, four = ("rgb", "audio", "depth"), ("rgb", "audio", "depth", "points")
    block, prefix, question = 3 * 4, 3 * 2, 6
    assert read_lengths("concat", three) == read_lengths("concat", four) == 2 * (block + prefix) + question
    assert read_lengths("add", three) == read_lengths("add", four) == block + prefix + question
    assert read_lengths("none", ("rgb", "audio")) == 2 * block + prefix + question
    assert read_lengths("none", four) == 4 * block + prefix + question


def test_all_prefixes_stand_before_the_side_tokens_and_the_videos_are_not_changed_in_place():
    """As the authors' code orders them; there `rgb += side` also writes into a tensor that the backward needs."""
    model, given = built(), batch()
    tokens = model.all_tokens(given["features"], None, None)
    here = {name: torch.ones(2, dtype=torch.bool) for name in tokens}
    words = model.base.language_model.get_input_embeddings()
    embeddings, mask = model.read(tokens, here, given["frame_ids"], given["input_ids"], given["attention_mask"])  # fmt: skip
    prefix = words(given["frame_ids"])
    expected = [part for t in range(3) for part in (prefix[:, t], tokens["rgb"][:, t])]
    side = model.fusion({n: tokens[n] for n in ("audio", "depth")}, here)
    expected += [*prefix.unbind(1), *side.unbind(1), words(given["input_ids"])]
    assert_close(embeddings, torch.cat(expected, 1))
    assert mask.all()
    added = built(fusion="add")
    tokens = added.all_tokens(given["features"], None, None)
    kept = tokens["rgb"].clone()
    added.read(tokens, here, given["frame_ids"], given["input_ids"], given["attention_mask"])[0].sum().backward()  # fmt: skip
    assert torch.equal(tokens["rgb"], kept)


@pytest.mark.parametrize("fusion", ["concat", "add", "none"])
def test_a_row_without_a_modality_is_as_if_the_batch_had_none_of_it(fusion):
    model, given = built(fusion=fusion), batch()
    here = {"depth": torch.tensor([True, False]), "audio": torch.tensor([True, False])}
    garbled = {**given["features"], "depth": given["features"]["depth"].clone()}
    garbled["depth"][1] = 100.0
    got = model(**{**given, "features": garbled}, available=here)["logits"]
    alone = model(**batch(("rgb",)))["logits"]
    assert_close(got[1], alone[1], atol=1e-5, rtol=1e-5)
    assert_close(got[0], model(**given)["logits"][0], atol=1e-5, rtol=1e-5)


def test_padding_of_features_and_of_segments_changes_nothing():
    model, x = built(("rgb", "audio")), features()["audio"]
    longer = torch.cat([x, torch.full((2, 1, 6, 12), 9.0)], 1)
    wider = torch.cat([longer, torch.full((2, 3, 2, 12), 9.0)], 2)
    mask = torch.zeros(2, 3, 8, dtype=torch.bool)
    mask[:, :2, :6] = True
    assert_close(model.tokens("audio", wider, mask), model.tokens("audio", x), atol=1e-5, rtol=1e-5)


def test_a_sets_scores_are_those_of_the_batch_without_the_others():
    model, given = built(), batch()
    model.sets = [["rgb"], ["rgb", "audio"]]
    got = model(**given)["logits"]
    assert got.shape == (2, 3, 3)
    model.sets = ()
    assert_close(got[:, 1], model(**batch(("rgb",)))["logits"][:, 0])
    assert_close(got[:, 2], model(**batch(("rgb", "audio")))["logits"][:, 0])


# -- answers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["t5", "opt"])
def test_loss_scores_and_greedy_answers_agree_with_the_language_models_own(text):
    model = built(text=text).base.language_model
    draw = torch.Generator().manual_seed(3)
    embeddings, mask = torch.randn(2, 7, 20, generator=draw), torch.ones(2, 7, dtype=torch.long)
    mask[1, 5:] = 0
    labels = torch.tensor([[4, 1, -100], [7, 5, 1]])
    logits = answer_logits(model, embeddings, mask, labels)
    if text == "t5":
        own = model(inputs_embeds=embeddings, attention_mask=mask, labels=labels)
        assert_close(answer_loss(model, embeddings, mask, labels), own.loss)
    # the second row alone, without its padding
    alone = answer_logits(model, embeddings[1:, :5], mask[1:, :5], labels[1:])
    assert_close(logits[1], alone[0], atol=1e-4, rtol=1e-4)
    options = torch.stack([labels, torch.tensor([[9, 1, -100]] * 2), torch.full((2, 3), -100)], 1)
    scores = answer_scores(model, embeddings, mask, options)
    likely = logits[0].log_softmax(-1)
    assert_close(scores[0, 0], likely[0, 4] + likely[1, 1])
    assert torch.isinf(scores[:, 2]).all()
    step = {"max_new_tokens": 3, "do_sample": False, "num_beams": 1, "eos_token_id": 1, "pad_token_id": 0}
    given = left_padded(embeddings, mask) if text == "opt" else (embeddings, mask)
    said = model.generate(inputs_embeds=given[0], attention_mask=given[1], **step)[:, -3:]
    assert greedy_hits(model, embeddings, mask, said).all()
    assert not greedy_hits(model, embeddings, mask, (said + 1) % 30).any()


def test_letters_are_chosen_at_the_first_step_of_decoding():
    """The argmax over the letters' numbers, as the authors take it."""
    model, given = built(), batch()
    letters = torch.tensor([5, 6, 7])
    chosen = model(**{**given, "options": letters.view(1, 3, 1).expand(2, 3, 1)})["logits"][:, 0].argmax(-1)
    tokens = model.all_tokens(given["features"], None, None)
    here = {name: torch.ones(2, dtype=torch.bool) for name in tokens}
    read = model.read(tokens, here, given["frame_ids"], given["input_ids"], given["attention_mask"])
    first = answer_logits(model.base.language_model, *read, torch.zeros(2, 1, dtype=torch.long))[:, 0]
    assert torch.equal(chosen, first[:, letters].argmax(-1))


# -- folders, and modalities that are added ------------------------------------------------------------------------------


def test_a_modality_added_to_a_saved_model_changes_nothing_that_was_there(tmp_path):
    old = adapted(built(("rgb", "audio"), fusion="none"))
    for name in old.names:
        moved(old, name)
        ad.save(old, tmp_path / name, name)
    given = batch(("rgb", "audio"))
    before = old(**given)["logits"]
    ad.detach(old)
    old.save_pretrained(tmp_path / "base")
    new = ModularQA.extended(tmp_path / "base", modalities={"depth": MODALITIES["depth"]}).eval()
    assert new.names == ["rgb", "audio", "depth"] and torch.equal(new.streams["depth"].queries, new.streams["rgb"].queries)  # fmt: skip
    for name in ("rgb", "audio"):  # each knows its base, though that has another modality now
        ad.load(new, tmp_path / name, name)
    ad.attach(new, "lora", "depth", targets=TARGETS, r=2, train=["streams.depth"])
    moved(new, "depth")
    assert_close(new(**given)["logits"], before, atol=1e-6, rtol=1e-6)
    assert torch.equal(new.tokens("audio", given["features"]["audio"]), adapted_tokens(tmp_path, "audio", given))  # fmt: skip
    assert not torch.allclose(new(**batch())["logits"], before)
    again = ModularQA.from_pretrained(tmp_path / "base").eval()
    assert again.names == ["rgb", "audio"]


def adapted_tokens(folder, name, given):
    model = ModularQA.from_pretrained(folder / "base").eval()
    ad.load(model, folder / name, name)
    return model.tokens(name, given["features"][name])


def test_raw_pixels_are_read_by_the_bases_encoder_before_its_last_norm():
    model, pixels = built(("rgb",)), torch.randn(2, 3, 3, 8, 8)
    made = model.encode("rgb", pixels)
    assert made.shape == (2, 3, 5, 16)
    vision = model.base.vision_model
    assert_close(vision.post_layernorm(made[0]), vision(pixel_values=pixels[0]).last_hidden_state)
    given = {**batch(("rgb",)), "features": {}, "raw": {"rgb": pixels}}
    assert_close(model(**given)["logits"], model(**{**given, "raw": None, "features": {"rgb": made}})["logits"])  # fmt: skip
    with pytest.raises(ModelError, match=r"no audio_encoder.\n.*model.audio_encoder="):
        built(("rgb", "audio")).encode("audio", torch.randn(1, 2, 30, 8))


def test_places_of_points_are_coded_by_sines():
    code = place_code(torch.tensor([[0, 3, 7]]), 1408)
    assert code.shape == (1, 1408) and code[0, 1407] == 0  # 3 x 469 of 1408
    assert code[0, 0] == 0 and code[0, 1] == 1
    assert float(code[0, 469]) == pytest.approx(torch.tensor(3.0).sin().item())
    assert float(code[0, 2 * 469 + 3]) == pytest.approx(float(torch.cos(torch.tensor(7 / 10000 ** (2 / 469)))), abs=1e-6)  # fmt: skip


def test_what_does_not_fit_is_refused_by_name():
    with pytest.raises(Exception, match="must be of kind frames"):
        ModularQA.from_settings(base={"from_config": blip2()}, modalities={"audio": {"kind": "segments"}})
    with pytest.raises(Exception, match="cannot name a modality"):
        ModularQA.from_settings(base={"from_config": blip2()}, modalities={"a.b": {}})
    model = built()
    with pytest.raises(ModelError, match="no modality 'dept'. Did you mean 'depth'"):
        model.tokens("dept", features()["depth"])
    with pytest.raises(ModelError, match=r"audio: features .* 12\] are expected, these are \[2, 3, 5, 16\]"):
        model.tokens("audio", features()["rgb"])
    with pytest.raises(ModelError, match="no features of rgb"):
        model(**{**batch(), "features": {"depth": features()["depth"]}})


def test_a_copy_goes_on_alone():
    model = adapted(built())
    twin = copy.deepcopy(model)
    moved(twin, "audio")
    x = features()["audio"]
    assert not torch.equal(model.tokens("audio", x), twin.tokens("audio", x))
