"""The speech recogniser: start, routing, rates, masks, writing, folders, and the paper's counts from its recipe."""

import pytest
import torch

import adaptome as ad
from adaptome.core.errors import ModelError, TornFileError
from adaptome.models import composite_models
from adaptome.models.compression import Projectors, compressed
from adaptome.models.speech_recogniser import TASKS, Asked, SpeechRecogniser, places
from adaptome.recipe import load_recipe

TINY = {
    "audio": {"from_config": dict(model_type="whisper", d_model=8, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=8, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=8, vocab_size=8, num_mel_bins=8, max_source_positions=50, pad_token_id=0, bos_token_id=0, eos_token_id=0, decoder_start_token_id=0)},
    "video": {"from_config": dict(model_type="hubert", hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, channels=[2, 4], blocks=1, layerdrop=0.0, hidden_dropout=0.0, attention_dropout=0.0, activation_dropout=0.0)},
    "llm": {"from_config": dict(model_type="llama", hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=16, vocab_size=258, max_position_embeddings=128, tie_word_embeddings=True, pad_token_id=0, bos_token_id=None, eos_token_id=1, initializer_range=0.2)},
    "projector_width": 8,
}  # fmt: skip


def built(**changes) -> SpeechRecogniser:
    torch.manual_seed(0)
    return composite_models()["speech-recogniser"].from_settings(**{**TINY, **changes}).eval()


def batch(rows: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(2, 200, (rows, 5), generator=generator)
    labels[0, 3:] = -100
    prompts = torch.randint(2, 200, (rows, 3, 2), generator=generator)
    prompts[:, 1, 0] = -1  # the second task's is shorter
    return {
        "begin": torch.full((rows, 1), 3), "prompts": prompts, "labels": labels,
        "audio": torch.randn(rows, 8, 100, generator=generator), "audio_lengths": torch.tensor([20, 33, 50][:rows]),
        "video": torch.randn(rows, 25, 16, 16, generator=generator), "video_lengths": torch.tensor([10, 16, 25][:rows]),
    }  # fmt: skip


@pytest.fixture(scope="module")
def model() -> SpeechRecogniser:
    return built()


# -- adapters --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["S", "T", "ST"])
def test_every_layout_starts_as_the_frozen_model(layout):
    model = built()
    before = model(**batch())["logits"]
    ad.attach(model, "omni-lora", targets=["llm.q", "llm.v"], layout=layout, r=2)
    assert torch.allclose(model(**batch())["logits"], before, atol=1e-5)


@pytest.mark.parametrize(("layout", "tasks", "expected"), [
    ("T", ["audio"], {"audio"}), ("ST", ["audio"], {"audio", "shared"}), ("ST", list(TASKS), {*TASKS, "shared"}),
])  # fmt: skip
def test_a_task_trains_its_own_branch_and_the_shared_one(layout, tasks, expected):
    model = built(tasks=tasks).train()
    ad.attach(model, "omni-lora", targets=["llm.q", "llm.v"], layout=layout, r=2)
    model(**batch())["loss"].backward()
    names = {
        n.rpartition(".")[2] for n, p in model.named_parameters() if p.requires_grad and p.grad is not None
    }
    assert names == expected


def test_another_method_needs_no_task():
    model = built().train()
    ad.attach(
        model, "lora", targets=["llm.q", "llm.v", "video.q", "video.v"], r=2, train=["projectors", "marks"]
    )
    for _ in range(8):
        model(**batch())["loss"].backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_gradients_are_those_of_the_same_tasks_when_blocks_run_again():
    found = []
    for again in (False, True):
        model = built(audio_rates=[4], video_rates=[2])
        ad.attach(model, "omni-lora", targets=["llm.q", "llm.v"], r=2, init="gaussian")
        model.train()
        if again:
            model.gradient_checkpointing_enable()
        model(**batch())["loss"].backward()
        found.append([p.grad for p in model.parameters() if p.requires_grad])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*found, strict=True))


LLAMA = dict(model_type="llama", hidden_size=2048, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8, head_dim=64, intermediate_size=8192, vocab_size=128256, tie_word_embeddings=True)  # fmt: skip
WHISPER = dict(model_type="whisper", d_model=1024, encoder_layers=24, encoder_attention_heads=16, encoder_ffn_dim=4096, decoder_layers=1, decoder_attention_heads=16, decoder_ffn_dim=64, num_mel_bins=80)  # fmt: skip
AVHUBERT = dict(model_type="hubert", hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096, do_stable_layer_norm=True, fused=True, layerdrop=0.0)  # fmt: skip


@pytest.fixture(scope="module")
def paper():
    """The recipe's model at full size, without weights; hub ids stand for these configurations."""
    settings = load_recipe("omni-avsr-lrs3").model.settings
    parts = {"audio": WHISPER, "video": AVHUBERT, "llm": LLAMA}
    settings = {**settings, **{name: {"from_config": config} for name, config in parts.items()}}
    with torch.device("meta"):
        return composite_models()["speech-recogniser"].from_settings(weights=False, **settings)


def test_the_papers_counts_from_its_recipe(paper):
    omni, lips = load_recipe("omni-avsr-lrs3").methods
    counts = {
        layout: ad.plan(paper, "omni-lora", targets=omni.targets, **{**omni.settings, "layout": layout}).trainable
        for layout in ("S", "T", "ST")
    }  # fmt: skip
    assert counts == {"S": 6_815_744, "T": 20_447_232, "ST": 27_262_976}
    video = ad.plan(paper, "lora", targets=lips.targets, **lips.settings).trainable
    assert video == 6_291_456
    projectors = sum(p.numel() for p in paper.projectors.parameters())
    assert projectors == 4 * (6_295_552 + 4_096)  # with the norms that the authors' code leaves out
    assert counts["ST"] + video + projectors - 4 * 4_096 == 58_736_640
    assert counts["S"] + video + projectors - 4 * 4_096 == 38_289_408


# -- rates -----------------------------------------------------------------------------------------------------------


def test_compression_shortens_by_the_rate_and_drops_the_rest():
    x, lengths = torch.randn(2, 35, 6), torch.tensor([35, 17])
    for how, width in (("average", 6), ("stack", 24)):
        y, after = compressed(x, lengths, 4, how)
        assert y.shape == (2, 8, width) and after.tolist() == [8, 4]
    assert torch.equal(compressed(x, lengths, 1)[0], x)
    whole = x[:, :32]
    twice = compressed(compressed(whole, lengths, 4)[0], lengths, 4)[0]
    assert torch.allclose(compressed(whole, lengths, 16)[0], twice, atol=1e-6)
    assert torch.equal(compressed(x, lengths, 2, "stack")[0][0, 1], x[0, 2:4].flatten())


def test_projectors_end_in_a_norm_unless_told_not_to():
    for norm in (True, False):
        made = Projectors(6, 4, 8, [2, 4], "stack", norm, shared=False)
        y = made.at(4)(torch.randn(3, 24))
        spread = y.std(-1, unbiased=False)
        assert torch.allclose(spread, torch.ones(3), atol=1e-2) is norm
    assert Projectors(6, 4, 8, [2, 4], "average", True, shared=True).at(2) is not None


def test_every_pair_of_rates_is_drawn_alike_often_and_one_a_step():
    model = built()
    torch.manual_seed(0)
    pairs = [model.draw() for _ in range(800)]
    counts = [pairs.count((a, v)) for a in (4, 16) for v in (2, 5)]
    assert sum(counts) == 800 and min(counts) > 150
    model.train()(**batch())["loss"].backward()
    reached = {n.split(".")[1:3][0] + n.split(".")[2] for n, p in model.projectors.named_parameters(prefix="p") if p.grad is not None}  # fmt: skip
    assert len(reached) == 2  # one of each stream


@pytest.mark.parametrize("rates", [[4], [2, 4], [2, 4, 8, 16]])
def test_a_step_runs_the_language_model_three_times_at_any_number_of_rates(rates):
    model, ran = built(audio_rates=rates, video_rates=[2, 5]).train(), []
    model.llm.register_forward_hook(lambda *_: ran.append(1))
    model(**batch())
    assert len(ran) == 3


def test_the_loss_weighs_the_tasks():
    plain, heavy = (built(task_weights=weights) for weights in ({}, {"video": 3.0}))
    alone = {task: built(tasks=[task], task_weights={})(**batch())["loss"] for task in TASKS}
    mean = sum(alone.values()) / 3
    assert torch.allclose(plain(**batch())["loss"], mean, atol=1e-5)
    assert torch.allclose(heavy(**batch())["loss"], mean + 2 * alone["video"] / 3, atol=1e-5)


# -- sequences -------------------------------------------------------------------------------------------------------


def test_the_transcript_and_its_end_alone_are_learned_in_every_task(model):
    counts = model(**batch())["logits"]
    assert counts.shape == (3, 8, 3)  # 2 audio, 2 video, 4 of both
    assert (counts[0, :, 2] == 3).all() and (counts[1:, :, 2] == 5).all()


def test_padding_of_other_clips_changes_nothing(model):
    whole = batch()
    together = model(**whole)["logits"]
    one = {key: value[:1] for key, value in whole.items()} | {"labels": whole["labels"][:1, :3]}
    one["video"] = one["video"][:, :10]
    alone = model(**one)["logits"]
    assert torch.allclose(alone[0], together[0], rtol=1e-3, atol=1e-3)


def test_what_is_written_is_what_the_logits_say():
    # tied embeddings at random repeat their last token
    model = built(
        llm={
            "from_config": {
                **TINY["llm"]["from_config"],
                "tie_word_embeddings": False,
                "initializer_range": 1.0,
            }
        }
    )
    given = batch()
    streams = model.encode(*(given[k] for k in ("audio", "audio_lengths", "video", "video_lengths")))
    asked = Asked("audiovisual", 4, 2)
    with torch.no_grad():
        written = model.write(streams, given["begin"], given["prompts"], asked, max_new_tokens=4, do_sample=False, eos_token_id=1, pad_token_id=0)  # fmt: skip
        x, mask = model.before(streams, given["begin"], given["prompts"], asked)
        x = torch.cat([x, model.llm.get_input_embeddings()(written)], 1)
        mask = torch.cat([mask, torch.ones_like(written, dtype=torch.bool)], 1)
        logits = model.llm(inputs_embeds=x, attention_mask=mask.long(), position_ids=places(mask)).logits
    assert len(written.unique()) > 3
    assert torch.equal(logits[:, -5:-1].argmax(-1), written)


def test_what_the_model_has_not_is_refused():
    with pytest.raises(ModelError, match="neither audio nor video"):
        built(audio=None, video=None)
    with pytest.raises(ModelError, match="'video', and the model has audio alone"):
        built(video=None, tasks=["video"])
    with pytest.raises(ModelError, match="compression=average"):
        built(compression="stack", shared_projector=True)
    with pytest.raises(ModelError, match="features take the encoder's place"):
        built(audio_features=4)
    with pytest.raises(ModelError, match="a Whisper is expected"):
        built(audio=TINY["llm"])
    model, given = built(), batch()
    del given["video"]
    with pytest.raises(ModelError, match="needs video"):
        model(**given)
    with pytest.raises(ModelError, match=r"rate 3 was not learned; there are \[4, 16\]"):
        model.tokens(model.encode(given["audio"], given["audio_lengths"])["audio"], "audio", 3)


def test_features_stand_in_for_an_encoder():
    model = built(video=None, video_features=6)
    given = batch() | {"video": torch.randn(3, 25, 6)}
    assert model(**given)["logits"].shape == (3, 8, 3)


# -- folders ---------------------------------------------------------------------------------------------------------


def test_a_folder_gives_the_model_back_and_takes_other_rates(tmp_path):
    model = built()
    model.save_pretrained(tmp_path)
    before = model(**batch())["logits"]
    again = SpeechRecogniser.from_pretrained(tmp_path).eval()
    assert torch.equal(again(**batch())["logits"], before) and torch.equal(again.marks, model.marks)
    wide = SpeechRecogniser.from_pretrained(tmp_path, audio_rates=[4, 8, 16], tasks=["audio"]).eval()
    assert torch.equal(wide.projectors["audio"]["8"][0].weight, model.projectors["audio"]["4"][0].weight)
    assert torch.allclose(wide(**batch())["logits"][:, 0], before[:, 0], atol=1e-5)
    content = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[:-8])
    with pytest.raises(TornFileError, match="does not hold the weights"):
        SpeechRecogniser.from_pretrained(tmp_path)
