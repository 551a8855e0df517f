"""Other lengths than the checkpoint's, and masks on spectrograms."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

import adaptome as ad
from adaptome.core.errors import RecipeError
from adaptome.tasks import get_task
from adaptome.tasks.spectrograms import SpecAugment, set_frames
from tests.sounds import AST, WAV2VEC2
from tests.tasks.tiny import spec

TASK = "audio-classification"


@pytest.fixture
def checkpoint(tmp_path):
    """A saved AST of 1024 frames whose positions are all different, and the table [special], [bands, times, hidden]."""
    from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

    torch.manual_seed(0)
    settings = {k: v for k, v in AST.items() if k != "model_type"} | {"max_length": 1024}
    model = ASTForAudioClassification(ASTConfig(**settings, num_labels=5))
    with torch.no_grad():
        model.audio_spectrogram_transformer.embeddings.position_embeddings.normal_()
    model.save_pretrained(tmp_path / "ast")
    ASTFeatureExtractor(num_mel_bins=32, max_length=1024).save_pretrained(tmp_path / "ast")
    table = model.audio_spectrogram_transformer.embeddings.position_embeddings.detach()[0]
    return str(tmp_path / "ast"), table[:2], table[2:].reshape(2, 101, 16)


def loaded(name, **options):
    task = get_task(TASK, **options)
    task.labels = ["a", "b"]
    processor = task.load_processor(spec(name=name))
    return task.load_model(spec(name=name), processor), processor


@pytest.mark.parametrize("pooling", ["auto", "mean"])
def test_a_checkpoint_of_1024_frames_serves_400(checkpoint, pooling):
    name, special, grid = checkpoint
    model, processor = loaded(name, max_length=400, pooling=pooling)
    times = (400 - 16) // 10 + 1
    base = model.audio_spectrogram_transformer if pooling == "auto" else model.encoder
    table = base.embeddings.position_embeddings[0]
    first = (101 - times) // 2
    assert processor.max_length == model.config.max_length == 400
    assert torch.equal(table[:2], special)
    assert torch.equal(table[2:].reshape(2, times, 16), grid[:, first : first + times])
    assert model(input_values=torch.randn(1, 400, 32)).logits.shape == (1, 2)


def test_the_table_is_stretched_along_time_when_asked_or_too_short(checkpoint):
    name, special, grid = checkpoint
    for options, times in (
        ({"max_length": 400, "positions": "interpolate"}, 39),
        ({"max_length": 1500}, 149),
    ):
        model, _ = loaded(name, pooling="mean", **options)
        table = model.encoder.embeddings.position_embeddings[0]
        # every band and channel is one signal over time
        expected = F.interpolate(grid.permute(0, 2, 1), size=times, mode="linear").permute(0, 2, 1)
        torch.testing.assert_close(table[2:].reshape(2, times, 16), expected)
        assert torch.equal(table[:2], special)


def test_the_same_length_changes_no_bit_and_none_is_the_checkpoints(checkpoint):
    name, special, grid = checkpoint
    for options in ({}, {"max_length": 1024}, {"max_length": 1024, "positions": "interpolate"}):
        model, processor = loaded(name, pooling="mean", **options)
        table = model.encoder.embeddings.position_embeddings[0]
        assert processor.max_length == 1024
        assert torch.equal(table, torch.cat([special, grid.flatten(0, 1)]))


def test_lengths_that_cannot_be_are_told(checkpoint):
    with pytest.raises(RecipeError, match="patches are 16 frames wide"):
        loaded(checkpoint[0], max_length=12)
    task = get_task(TASK)
    task.labels = ["a", "b"]
    with pytest.raises(RecipeError, match="has no table of positions over frames"):
        set_frames(task.load_model(spec(from_config=WAV2VEC2)), 40, "cut")


def widths(hidden):
    """Of a boolean [batch, size], the number of hidden places a row, which must be in one stretch."""
    edges = F.pad(hidden.int(), (1, 1)).diff(dim=1).abs().sum(1)
    assert (edges <= 2).all()
    return hidden.sum(1)


def test_one_stretch_of_each_kind_is_hidden_a_clip():
    torch.manual_seed(0)
    x = torch.ones(4000, 30, 20)
    masked = SpecAugment(6, 12).masked(x)
    assert set(masked.unique().tolist()) == {0.0, 1.0} and x.min() == 1
    times, bands = widths((masked == 0).all(2)), widths((masked == 0).all(1))
    for width, most in ((times, 12), (bands, 6)):
        counts = torch.bincount(width, minlength=most + 1) / len(x)
        assert len(counts) == most + 1 and (counts - 1 / (most + 1)).abs().max() < 0.02  # uniform, 0 included
    # hidden is exactly the cross of both
    inside = (masked == 0).all(2)[:, :, None] | (masked == 0).all(1)[:, None, :]
    assert torch.equal(masked == 0, inside)
    assert not torch.equal(masked[0] == 0, masked[1] == 0)


def test_masks_are_drawn_in_training_alone_and_from_torchs_generator():
    torch.manual_seed(0)
    task = get_task(TASK, frequency_mask=16, time_mask=40, pooling="mean")
    task.labels = ["a", "b"]
    model = task.load_model(spec(from_config=AST))
    plain = copy.deepcopy(model)
    plain._forward_pre_hooks.clear()
    x = torch.randn(4, 64, 32)
    assert torch.equal(model.eval()(input_values=x).logits, plain.eval()(input_values=x).logits)
    model.train()
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(model(input_values=x).logits)
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], plain.train()(input_values=x).logits)


def test_masks_longer_than_the_clip_hide_at_most_all_of_it():
    masked = SpecAugment(0, 100).masked(torch.ones(50, 10, 4))
    assert masked.shape == (50, 10, 4) and (masked == 0).any()


@pytest.mark.parametrize("how", ["new", "fresh"])
@pytest.mark.parametrize("frames", [400, None])
def test_the_table_is_drawn_anew_when_asked(checkpoint, how, frames):
    name, _, grid = checkpoint
    times = 101 if frames is None else 39
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        model, _ = loaded(name, pooling="mean", positions=how, max_length=frames)
        drawn.append(model.encoder.embeddings.position_embeddings[0])
        assert model(input_values=torch.randn(1, frames or 1024, 32)).logits.shape == (1, 2)
    assert drawn[0].shape == (2 + 2 * times, 16)
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert float(drawn[0].detach().std()) == pytest.approx(
        model.config.initializer_range, rel=0.1
    )  # the checkpoint's is 1
    task = get_task(TASK, pooling="mean", positions=how)
    table = ["encoder.embeddings.position_embeddings"] if how == "new" else []
    assert task.head_patterns(model) == ["classifier", *table]


def test_new_positions_train_alone_of_their_module_and_are_kept_and_merged(checkpoint, tmp_path):
    def fresh():
        torch.manual_seed(3)
        return loaded(checkpoint[0], positions="new", max_length=64)[0]

    model, task = fresh(), get_task(TASK, positions="new")
    plan = ad.attach(model, "linear-probe", train=task.head_patterns(model))
    embeddings = "audio_spectrogram_transformer.embeddings"
    table = model.get_submodule(embeddings).position_embeddings
    head = sum(p.numel() for n, p in fresh().named_parameters() if n.startswith("classifier."))
    assert plan.heads[embeddings] == table.numel() == 16 * (2 + 2 * 5)
    assert plan.trainable == table.numel() + head
    x, optimizer = torch.randn(2, 64, 32), torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1.0)  # fmt: skip
    model(input_values=x, labels=torch.tensor([0, 1])).loss.backward()
    optimizer.step()
    trained = {k for k, p in model.named_parameters() if p.requires_grad}
    assert {k for k in trained if not k.startswith("classifier.")} == {
        f"{embeddings}.adaptome.default.position_embeddings"
    }
    y = model.eval()(input_values=x).logits
    assert not torch.equal(y, fresh().eval()(input_values=x).logits)
    ad.save(model, tmp_path / "adapter")
    again = fresh()
    ad.load(again, tmp_path / "adapter")
    assert torch.equal(again.eval()(input_values=x).logits, y)
    ad.merge(model, keep=False)
    model.save_pretrained(tmp_path / "merged")
    plain = type(fresh()).from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(plain(input_values=x).logits, y)


def test_positions_mean_nothing_to_a_model_of_waveforms():
    with pytest.raises(RecipeError, match=r"task\.positions has no meaning"):
        get_task(TASK, positions="new").load_processor(spec(from_config=WAV2VEC2))
