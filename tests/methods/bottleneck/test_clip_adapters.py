"""CLIP-Adapter (arXiv:2110.04544) and Tip-Adapter (arXiv:2111.03930)."""

import pytest
import torch
from torch import nn

import adaptome as ad
from adaptome.core.errors import DataError, HostError, TargetError
from adaptome.methods.bottleneck.tip_adapter import tip_adapter, zero_shot_head
from tests.methods.helpers import adapted, batch, linear, shake


def clip(**how):
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    small = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24)
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config=CLIPTextConfig(
            **small, vocab_size=32, eos_token_id=2, bos_token_id=1, pad_token_id=0
        ).to_dict(),
        vision_config=CLIPVisionConfig(**small, image_size=16, patch_size=8).to_dict(),
        projection_dim=12,
    )
    return CLIPModel(config).double().eval()


IMAGES = {"pixel_values": batch(2, 3, 16, 16)}
TEXT = {"input_ids": torch.tensor([[1, 5, 7, 2], [1, 9, 4, 2]])}


def features(output):
    return output if isinstance(output, torch.Tensor) else output.pooler_output


# -- CLIP-Adapter --------------------------------------------------------------------------------------------------


def test_clip_adapter_is_its_equation():
    layer, x = linear(12, 20), batch(3, 5, 12)
    model, a = adapted(layer, ad.CLIPAdapter(ratio=0.3))
    shake(model)
    f = x @ layer.weight.T + layer.bias
    expected = 0.3 * ((f @ a.D.T).clamp(min=0) @ a.U.T).clamp(min=0) + 0.7 * f
    assert a.D.shape == (5, 20)
    torch.testing.assert_close(model(x), expected)


def test_clip_adapter_sits_on_clips_projections():
    base = clip()
    before = {
        "image": features(base.get_image_features(**IMAGES)),
        "text": features(base.get_text_features(**TEXT)),
    }
    for targets, changed in (("visual_projection", {"image"}), ("text_projection", {"text"})):
        model = clip()
        ad.attach(model, "clip-adapter", targets=targets, seed=0)
        after = {
            "image": features(model.get_image_features(**IMAGES)),
            "text": features(model.get_text_features(**TEXT)),
        }
        assert {k for k in before if not torch.equal(before[k], after[k])} == changed
    assert [entry.path for entry in ad.plan(base, "clip-adapter").entries] == ["visual_projection"]


@pytest.mark.parametrize("method", ["clip-adapter", "tip-adapter"])
def test_layers_inside_blocks_are_refused(method):
    with pytest.raises(HostError, match="inside a block"):
        ad.attach(clip(), method, targets="q")


def test_clip_adapter_trains_from_its_start():
    model, a = adapted(linear(), ad.CLIPAdapter())
    model(batch(3, 12)).square().sum().backward()
    assert a.D.grad.any() and a.U.grad.any()


# -- Tip-Adapter ---------------------------------------------------------------------------------------------------

LABELS = torch.tensor([0, 2, 1, 2, 2, 0])


def classifier(classes=4, d=12):
    return nn.ModuleDict({"body": nn.Linear(5, d), "head": linear(d, classes, bias=False)}).double()


@pytest.mark.parametrize("train_keys", [False, True])
def test_tip_adapter_is_its_equation(train_keys):
    model, few, f = classifier(), batch(6, 12), batch(3, 5, 12).add(0.2)
    W = model["head"].weight.clone()
    plan = tip_adapter(model, 7 * few, LABELS, train_keys=train_keys, alpha=0.8, beta=3.0)
    K = few / few.norm(dim=-1, keepdim=True)
    V = nn.functional.one_hot(LABELS, 4).double()
    unit = f / f.norm(dim=-1, keepdim=True)
    expected = f @ W.T + 0.8 * torch.exp(-3.0 * (1 - unit @ K.T)) @ V
    torch.testing.assert_close(model["head"](f), expected, rtol=1e-6, atol=1e-6)  # keys are taken in float32
    assert plan.trainable == ad.trainable(model).count == (72 if train_keys else 0)


def test_training_moves_the_keys_and_never_the_head():
    model, f = classifier(), batch(3, 12)
    tip_adapter(model, batch(6, 12), LABELS, train_keys=True)
    model["head"](f).square().sum().backward()
    (a,) = ad.adapters(model)["default"].adapters.values()
    assert a.K.grad.any() and model["head"].weight.grad is None


@pytest.mark.parametrize("train_keys", [False, True])
def test_the_cache_is_saved_with_its_labels(train_keys, tmp_path):
    model, f = classifier(), batch(3, 12)
    tip_adapter(model, batch(6, 12), LABELS, train_keys=train_keys)
    ad.save(model, tmp_path / "cache")
    other = classifier()
    other.load_state_dict({k: v for k, v in model.state_dict().items() if "adaptome" not in k})
    ad.load(other, tmp_path / "cache")
    assert torch.equal(other["head"](f), model["head"](f))


def test_by_name_the_cache_holds_the_heads_own_rows():
    model = classifier()
    ad.attach(model, "tip-adapter", n=6)
    (a,) = ad.adapters(model)["default"].adapters.values()
    W = model["head"].weight
    torch.testing.assert_close(
        a.K, (W / W.norm(dim=-1, keepdim=True))[[0, 1, 2, 3, 0, 1]], rtol=1e-6, atol=1e-6
    )
    assert a.labels.tolist() == [0, 1, 2, 3, 0, 1]


def test_what_does_not_fit_is_told():
    model, few = classifier(), batch(6, 12)
    for bad, labels, why in (
        (few[:, :5], LABELS, r"must be \[n, 12\]"),
        (few[:0], LABELS[:0], r"must be \[n, 12\]"),
        (few, LABELS[:4], "must be 6 whole numbers"),
        (few, LABELS.double(), "must be 6 whole numbers"),
        (few, LABELS + 2, "from 2 to 4; head has the classes 0 to 3"),
        (few * 0, LABELS, "no direction"),
    ):
        with pytest.raises(DataError, match=why):
            tip_adapter(model, bad, labels)
    with pytest.raises(TargetError, match="2 layers"):
        tip_adapter(model, few, LABELS, targets=["body", "head"])
    assert not ad.adapters(model)


def test_the_zero_shot_head_gives_scaled_cosines():
    texts, f = batch(4, 12), batch(3, 12)
    expected = (
        50 * nn.functional.cosine_similarity(f[:, None], texts[None], dim=-1) * f.norm(dim=-1, keepdim=True)
    )
    torch.testing.assert_close(zero_shot_head(texts, 50.0)(f), expected)


def test_counts_on_clip_vit_b_16():
    from transformers import CLIPConfig, CLIPModel

    with torch.device("meta"):
        model = CLIPModel(CLIPConfig(vision_config={"patch_size": 16}))
        imagenet = nn.ModuleDict({"head": nn.Linear(model.projection_dim, 1000, bias=False)})
    assert ad.plan(model, "clip-adapter").trainable == 2 * 512 * 128 == 131_072
    both = ad.plan(model, "clip-adapter", targets=["visual_projection", "text_projection"])
    assert both.trainable == 262_144
    assert ad.attach(imagenet, "tip-adapter", n=16_000).trainable == 16_000 * 512 == 8_192_000
    ad.detach(imagenet)
    assert ad.attach(imagenet, "tip-adapter", n=16_000, train_keys=False).trainable == 0
