"""The ControlNet on a diffusion transformer: against its equations by hand, and what may change of the model and what not."""

from __future__ import annotations

import copy

import diffusers
import pytest
import torch

import adaptome as ad
from adaptome.core.errors import ModelError, TornFileError
from adaptome.models.control import Control
from adaptome.models.text_to_image import TextToImage
from adaptome.recipe import load_recipe
from tests.diffusion import model_of_pixels

TRANSFORMER = {
    "_class_name": "PixArtTransformer2DModel", "sample_size": 8, "in_channels": 12, "out_channels": 12, "patch_size": 1, "num_layers": 3,
    "num_attention_heads": 2, "attention_head_dim": 8, "cross_attention_dim": 16, "caption_channels": 16, "use_additional_conditions": False,
}  # fmt: skip
METHOD = {
    "targets": ["control.attention", "control.mlp"],
    "train": ["control.out"],
    "tailors": 2,
    "active": 1,
    "text": 16,
    "hidden": 8,
}


@pytest.fixture
def model(tmp_path):
    settings = {k: v for k, v in model_of_pixels(tmp_path).items() if k not in ("composite", "unet")}
    torch.manual_seed(0)
    made = TextToImage.from_settings(**settings, transformer={"from_config": TRANSFORMER})
    torch.nn.init.normal_(made.denoiser.proj_out.weight)
    return made.requires_grad_(False).eval()


def batch(seed=0):
    drawn = torch.Generator().manual_seed(seed)
    pixels, conditions = (torch.rand(2, 3, 16, 16, generator=drawn) * 2 - 1 for _ in range(2))
    sizes = torch.tensor([[16, 16, 0, 0, 16, 16]] * 2)
    return {
        "pixel_values": pixels,
        "texts": ["a cat", "bee"],
        "draws": torch.tensor([3, 4]),
        "sizes": sizes,
        "conditions": conditions,
    }


def stir(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))


def test_it_begins_as_the_model_whatever_the_gate_gives(model):
    wanted = model(**{**batch(), "conditions": None})["prediction"]
    model.add_control(2)
    torch.testing.assert_close(model(**batch())["prediction"], wanted)
    ad.attach(model, "divcontrol", **METHOD)
    stir(next(iter(ad.adapters(model).values())).shared)
    for seed in (0, 1):
        with ad.steer(instruction=torch.randn(16, generator=torch.Generator().manual_seed(seed))):
            assert torch.equal(model(**batch())["prediction"], wanted)


def test_it_is_its_equations(model):
    """Block by block, by hand, from what diffusers' own forward gives the blocks."""
    control = model.add_control(2)
    stir(control)
    seen = {}
    for i, block in enumerate(model.denoiser.transformer_blocks):
        block.register_forward_pre_hook(
            lambda m, args, kwargs, i=i: seen.update({i: (args, kwargs)}), with_kwargs=True
        )
    model.denoiser.proj_out.register_forward_pre_hook(lambda m, args: seen.update(last=args[0]))
    model(**batch())
    plain = copy.deepcopy(model.denoiser.transformer_blocks)
    for block in plain:
        block._forward_pre_hooks.clear()
    (h, *args), kwargs = seen[0]
    condition = torch.nn.functional.pixel_unshuffle(batch()["conditions"], 2)
    c = h + model.denoiser.pos_embed.proj(condition).flatten(2).mT
    for i, block in enumerate(plain):
        h = block(h, *args, **kwargs)
        if i < 2:
            c = control.blocks[i](c, *args, **kwargs)
            h = h + c @ control.out[i].weight.T + control.out[i].bias
        if i < 2:
            torch.testing.assert_close(seen[i + 1][0][0], h)
    assert not any(block._forward_hooks for block in model.denoiser.transformer_blocks)  # they are gone


def test_other_conditions_give_other_pictures_and_several_their_mean(model):
    from PIL import Image

    from adaptome.tasks.image_generation import Making, controls, made

    stir(model.add_control(2))
    ad.attach(model, "divcontrol", **METHOD)
    rng = torch.Generator().manual_seed(0)
    pictures = [
        Image.fromarray((torch.rand(16, 16, 3, generator=rng) * 255).byte().numpy()) for _ in range(2)
    ]
    one, two = (pictures[0], "edges to image"), (pictures[1], "blurred photo to image")
    how = [Making("a cat", 3, steps=2, guidance=2.0, width=16, height=16)]
    found = [made(model, how, by=[by])[0].tobytes() for by in ([one], [two], [one, two])]
    assert len(set(found)) == 3
    latents, facts = controls(model, [[one, two]], (16, 16))
    single = [controls(model, [[by]], (16, 16)) for by in (one, two)]
    torch.testing.assert_close(latents, (single[0][0] + single[1][0]) / 2)
    torch.testing.assert_close(
        facts["instruction"], (single[0][1]["instruction"] + single[1][1]["instruction"]) / 2
    )
    adapter = next(iter(ad.adapters(model)["default"].adapters.values()))
    with ad.steer(**facts), torch.no_grad():
        share, _ = adapter.gate()
    assert torch.isfinite(share).all() and float(share.sum()) == pytest.approx(1)
    with_each = made(model, how * 2, by=[[one], [two]])  # an instruction for each, in one batch
    differ = [
        abs(a - b)
        for p, q in zip(found[:2], with_each, strict=True)
        for a, b in zip(p, q.tobytes(), strict=True)
    ]
    assert max(differ) <= 1


def test_gradients_reach_the_control_alone_also_recomputed(model):
    control = model.add_control(2)
    stir(control.out)
    ad.attach(model, "lora", targets="control.attention", r=2, train=["control.out"])
    grads = []
    for recompute in (False, True):
        (model.gradient_checkpointing_enable if recompute else model.gradient_checkpointing_disable)()
        model.zero_grad(set_to_none=True)
        model(**batch())["loss"].backward()
        grads.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert grads[0] and all(name.startswith("control.") for name in grads[0])
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad)


def test_alignment_reaches_the_first_blocks_and_the_head_alone(model):
    """The loss is -1 where features point as the encoder's do; no gradient beyond the block whose output is aligned."""
    from adaptome.objectives import Term, Terms, get_objective

    control = model.add_control(3)
    stir(control.out)
    control.requires_grad_(True)
    term = get_objective(
        "representation-alignment", module="control.blocks.1", width=16, target_width=5, hidden=8
    )
    terms = [Term(term)]
    Terms.install(model, terms)
    terms = Terms(model, terms)
    features = torch.randn(2, 64, 5, requires_grad=True)
    with terms.watching():
        given = batch()
        loss, values = terms.loss(model(**given), {**given, "features": features})
    assert -1 <= loss.item() <= 1
    loss.backward()
    reached = {
        n.split(".")[1]
        for n, p in control.blocks.named_parameters(prefix="x")
        if p.grad is not None and p.grad.any()
    }
    assert reached == {"0", "1"} and features.grad is None
    assert all(p.grad is None for p in control.out.parameters())


def test_it_is_written_with_the_pipeline_and_read_again(model, tmp_path):
    stir(model.add_control(2))
    model.save_pretrained(tmp_path / "m")
    again = TextToImage.from_pretrained(tmp_path / "m").eval()
    assert torch.equal(again(**batch())["prediction"], model(**batch())["prediction"])
    assert again.add_control(2) is again.control
    with pytest.raises(ModelError, match="comes with one of 2"):
        again.add_control(3)
    (tmp_path / "m" / "control" / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(TornFileError, match="control"):
        TextToImage.from_pretrained(tmp_path / "m")


def test_what_cannot_have_one_is_told(model):
    with pytest.raises(ModelError, match="give 1 to 3"):
        Control.on(model.denoiser, 4)
    with pytest.raises(ModelError, match="PixArtTransformer2DModel"):
        Control.on(diffusers.UNet2DConditionModel(sample_size=8, block_out_channels=(8, 8), norm_num_groups=4, cross_attention_dim=8, layers_per_block=1, down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2), 1)  # fmt: skip


def test_counts_of_the_paper_from_its_recipe():
    """13 blocks of PixArt: 448,561,152 values in the factors, in both attentions and the MLP; a tailor of 36 components on the same layers is 14,017,536."""
    recipe = load_recipe("divcontrol-pixart")
    section = recipe.methods[0]
    with torch.device("meta"):
        denoiser = diffusers.PixArtTransformer2DModel(
            sample_size=64, num_layers=28, caption_channels=4096, use_additional_conditions=False
        )
        whole = torch.nn.Module()
        whole.transformer, whole.control = denoiser, Control.on(denoiser, recipe.task.settings["control"])
        plan = ad.plan(whole, section.name, targets=section.targets, **section.settings)
        tailor = ad.plan(whole, "lora", targets=section.targets, r=36)
        zero = sum(p.numel() for p in whole.control.out.parameters() if p.dim() > 1)
    shared = 256 * (4096 + 1) + 16 * (256 + 1)
    linears = [m for m in whole.control.blocks.modules() if isinstance(m, torch.nn.Linear)]
    rows = sum(min(m.in_features, m.out_features) for m in linears)  # singular values
    assert plan.trainable - shared - rows == 448_561_152 and zero == 13 * 1152**2
    assert tailor.trainable == 14_017_536
