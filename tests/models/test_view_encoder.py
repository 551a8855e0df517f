"""The encoder that learns from views: it begins as its source, what trains is what is named, and it ends as a plain model."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModel, Dinov2Model, ViTMAEConfig, ViTMAEForPreTraining

import adaptome as ad
from adaptome.core.errors import ModelError, RecipeError
from adaptome.models import Part, composite_models
from adaptome.models.encoders import load_encoder
from adaptome.models.pixel_decoder import Decoder, PixelDecoder, patches_of, waves
from adaptome.models.spectral import Bands

SMALL = {
    "image_size": 16,
    "patch_size": 8,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
}
MAE = {"model_type": "vit_mae", "intermediate_size": 32, **SMALL}
MASKS = torch.tensor([[[1, 0, 0, 1]], [[0, 1, 1, 0]]], dtype=torch.bool)
ENCODER = composite_models()["view-encoder"]
SIZES = {"layers": 1, "width": 8, "heads": 2, "mlp": 16}


def made(kind="dinov2", **settings):
    torch.manual_seed(0)
    return ENCODER.from_settings(encoder={"from_config": {"model_type": kind, **SMALL}}, **settings)


@pytest.mark.parametrize("blocks", [(2,), (0, 2)])
def test_extended_training_begins_as_the_source_and_merges_into_a_plain_model(blocks, tmp_path):
    torch.manual_seed(0)
    Dinov2Model(AutoConfig.for_model("dinov2", **SMALL)).save_pretrained(tmp_path / "source")
    source = Dinov2Model.from_pretrained(tmp_path / "source", attn_implementation="eager").eval()
    model = ENCODER.from_settings(encoder={"name": str(tmp_path / "source"), "attention": "eager"}).eval()
    train = [*(f"encoder.encoder.layer.{b}" for b in blocks), "encoder.norms"]
    ad.attach(model, "lora", targets=["encoder.q", "encoder.v"], r=4, train=train, seed=0)
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        own, theirs = (m(pixel_values=pixels, output_attentions=True) for m in (model.encoder, source))
        assert torch.equal(own.last_hidden_state, theirs.last_hidden_state)
        assert all(torch.equal(a, b) for a, b in zip(own.attentions, theirs.attentions, strict=True))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 0.01)
    for _ in range(3):
        optimizer.zero_grad()
        model(pixels[:, None], MASKS)["patches"].square().mean().backward()
        optimizer.step()
    _audit(model, blocks)
    with torch.no_grad():
        adapted = model(pixels[:, None])["patches"]
        assert not torch.allclose(
            adapted, source(pixel_values=pixels).last_hidden_state[:, None, 1:], atol=1e-3
        )
        ad.merge(model, keep=False)
        model.encoder.save_pretrained(tmp_path / "out")
        plain, told = Dinov2Model.from_pretrained(tmp_path / "out", output_loading_info=True)
        assert not told["missing_keys"] and not told["unexpected_keys"]
        merged = plain.eval()(pixel_values=pixels).last_hidden_state
        torch.testing.assert_close(merged[:, 1:], adapted[:, 0], rtol=1e-5, atol=1e-5)
        ad.attach(plain, "lora", targets=["q", "v"], r=8)
        assert torch.equal(plain(pixel_values=pixels).last_hidden_state, merged)


def _audit(model, blocks):
    """Gradients are on the blocks, LoRA, norms, and nowhere else."""
    trains = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trains == {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    for name in trains:
        place = name.split(".adaptome")[0]
        block = int(place.split("layer.")[1].split(".")[0]) if "layer." in place else None
        assert block in blocks or place.endswith(("norm1", "norm2", "layernorm", "q_proj", "v_proj")), name
    for block in range(3):
        inside = [n for n in trains if f"layer.{block}." in n]
        assert any("k_proj" in n or "mlp.fc1" in n for n in inside) == (block in blocks)
        assert any("lambda1" in n for n in inside) == (block in blocks)  # LayerScale
        assert any(n.endswith(".A") for n in inside) == (block not in blocks)


def test_what_is_saved_is_less_than_seven_hundredths_and_comes_back_bit_by_bit(tmp_path):
    with torch.device("meta"):
        whole = AutoModel.from_config(AutoConfig.for_model("dinov2", hidden_size=1024, num_hidden_layers=24, num_attention_heads=16))  # fmt: skip
    plan = ad.attach(whole, "lora", targets=["q", "v"], r=64, train=["encoder.layer.23", "norms"])
    base = sum(p.numel() for n, p in whole.named_parameters() if "adaptome" not in n)
    assert plan.trainable == 18_723_840 and plan.trainable / base < 0.07
    model = made()
    ad.attach(model, "lora", targets=["encoder.q", "encoder.v"], r=2, train=["encoder.encoder.layer.2", "encoder.norms"])  # fmt: skip
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.normal_()
    ad.save(model, tmp_path / "delta")
    again = made()
    ad.load(again, tmp_path / "delta")
    pairs = zip(model.state_dict().items(), again.state_dict().items(), strict=True)
    assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def test_hidden_patches_are_replaced_by_the_encoders_token_or_a_new_one():
    for kind in ("dinov2", "vit"):
        model = made(kind).eval()
        assert (model.mask_token is None) == (kind == "dinov2")
        pixels = torch.randn(2, 1, 3, 16, 16)
        with torch.no_grad():
            a = model(pixels, MASKS)["patches"]
            hidden = MASKS[:, 0].reshape(2, 1, 2, 2).repeat_interleave(8, 2).repeat_interleave(8, 3)
            b = model(torch.where(hidden[:, None], 7.0, pixels), MASKS)["patches"]
            assert torch.equal(a, b) and not torch.allclose(a, model(pixels)["patches"])
        if kind == "dinov2":
            with torch.no_grad():
                theirs = model.encoder(pixel_values=pixels[:, 0], bool_masked_pos=MASKS[:, 0])
            torch.testing.assert_close(a[:, 0], theirs.last_hidden_state[:, 1:])
    with pytest.raises(ModelError, match="masks are"):
        model(pixels, MASKS[..., :3])


def test_a_masked_autoencoder_is_transformers_own(tmp_path):
    torch.manual_seed(0)
    config = ViTMAEConfig(**{k: v for k, v in MAE.items() if k != "model_type"}, decoder_hidden_size=8, decoder_num_hidden_layers=1, decoder_num_attention_heads=2, decoder_intermediate_size=16, mask_ratio=0.5, norm_pix_loss=True)  # fmt: skip
    theirs = ViTMAEForPreTraining(config).eval()
    torch.nn.init.normal_(theirs.decoder.mask_token)
    theirs.decoder.decoder_pos_embed.data.copy_(waves(8, 2))  # as released ones have
    theirs.save_pretrained(tmp_path)
    model = ENCODER.from_settings(encoder=str(tmp_path), decoder={**SIZES, "source": str(tmp_path)}).eval()
    pixels = torch.randn(2, 3, 16, 16)
    noise = MASKS[:, 0].float() + torch.arange(4) / 10
    with torch.no_grad():
        expected = theirs(pixel_values=pixels, noise=noise)
        found = model(pixels[:, None], MASKS)
    assert torch.equal(found["masked"], expected.mask.bool())
    torch.testing.assert_close(found["reconstruction"], expected.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["target"], theirs.patchify(pixels))
    from adaptome.objectives import Seen, get_objective

    loss = get_objective("masked-autoencoding").value(found, {}, Seen(model))
    torch.testing.assert_close(loss, expected.loss, rtol=1e-4, atol=1e-5)
    with pytest.raises(ModelError, match=r"does not fit.*Give decoder the checkpoint's layers"):
        ENCODER.from_settings(encoder=str(tmp_path), decoder={**SIZES, "layers": 2, "source": str(tmp_path)})


def test_pictures_need_as_many_hidden_patches_and_the_decoders_size():
    model = made(decoder=SIZES)
    with pytest.raises(ModelError, match="as many hidden patches"):
        model(torch.randn(2, 1, 3, 16, 16), torch.tensor([[[1, 0, 0, 0]], [[1, 1, 0, 0]]], dtype=torch.bool))
    with pytest.raises(ModelError, match="image_size=16"):
        model(torch.randn(2, 1, 3, 24, 24), torch.zeros(2, 1, 9, dtype=torch.bool))
    with pytest.raises(ModelError, match="multiple of 4"):
        PixelDecoder(Decoder(width=6, heads=2), 16, 2, 8, [3])


def test_groups_of_bands_begin_at_the_colours_and_are_kept(tmp_path):
    torch.manual_seed(0)
    plain = made("vit").eval()
    torch.manual_seed(0)
    bands = {"groups": [[0, 1, 2], [3, 4]], "rgb": [2, 1, 0]}
    model = made("vit", bands=bands).eval()
    pixels = torch.randn(2, 1, 5, 16, 16)
    with torch.no_grad():
        own = model.encoder.embeddings(pixels[:, 0])
        rgb = plain.encoder.embeddings(pixels[:, 0, [2, 1, 0]])
        torch.testing.assert_close(own[:, :5], rgb, rtol=1e-4, atol=1e-5)
        mean = plain.encoder.embeddings.patch_embeddings.projection.weight.mean(1)
        torch.testing.assert_close(
            model.encoder.embeddings.patch_embeddings.projections[1].weight[:, 0], mean * 1.5
        )
        assert model(pixels)["patches"].shape == (2, 1, 8, 16)
        moved = pixels.clone()
        moved[:, :, 4] += 1
        assert torch.equal(model.encoder.embeddings(moved[:, 0])[:, :5], own[:, :5])
    model.encoder.save_pretrained(tmp_path / "encoder")
    again = load_encoder(Part(name=str(tmp_path / "encoder")), True).eval()
    with torch.no_grad():
        assert torch.equal(again(pixel_values=pixels[:, 0]).last_hidden_state, model.tokens(pixels[:, 0]))
    assert again.config.channel_groups == bands["groups"] and again.config.num_channels == 5
    model.save_pretrained(tmp_path / "whole")
    whole = ENCODER.from_pretrained(tmp_path / "whole").eval()
    with torch.no_grad():
        assert torch.equal(whole(pixels)["patches"], model(pixels)["patches"])
    with pytest.raises(ModelError, match=r"4 bands and the model's groups 5"):
        model(pixels[:, :, :4])


def test_bands_may_have_another_size_and_their_decoder_tells_each_group():
    model = made("vit", bands={"groups": [[0, 1], [2]], "image_size": 12, "patch_size": 4}, decoder=SIZES)
    pixels = torch.randn(2, 1, 3, 12, 12)
    masks = torch.zeros(2, 1, 18, dtype=torch.bool)
    masks[:, :, [0, 5, 9, 17]] = True
    found = model(pixels, masks)
    assert [one.shape[-1] for one in found["reconstruction"]] == [32, 16]
    torch.testing.assert_close(found["target"][1], patches_of(pixels[:, 0, 2:], 4))
    assert [one.sum().item() for one in found["masked"]] == [4, 4]
    for wrong, said in (([[0, 1], [1]], "once"), ([[0, 2]], "once")):
        with pytest.raises(RecipeError, match=said):
            made("vit", bands={"groups": wrong})
    with pytest.raises(ModelError, match="do not fill"):
        made("vit", bands={"groups": [[0]], "image_size": 10, "patch_size": 4})
    with pytest.raises(ValueError, match="rgb names three bands"):
        Bands(groups=[[0, 1, 2]], rgb=[0, 1])
