"""Text-to-image models: diffusers' own pipelines give the same pictures, and training sees what the equations say."""

from __future__ import annotations

import diffusers
import pytest
import torch

import adaptome as ad
from adaptome.core.errors import ModelError
from adaptome.decoding.diffusion import denoised, scheduler_named
from adaptome.models.noising import Times
from adaptome.models.text_to_image import TextToImage
from tests.diffusion import KINDS, model_of_pixels, pipeline_folder

TEXTS, SIZE = ["a red cat", "bee"], (16, 16)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def folder(kind):
        if kind not in made:
            made[kind] = pipeline_folder(kind, tmp_path_factory.mktemp(kind) / "pipeline")
        return made[kind]

    return folder


def theirs(kind, folder, **more):
    extra = {"safety_checker": None} if kind == "StableDiffusionPipeline" else {}
    pipeline = getattr(diffusers, kind).from_pretrained(folder, **extra)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def batch(numbers=(3, 4), side=16):
    pixels = torch.rand(len(numbers), 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return {
        "pixel_values": pixels, "texts": TEXTS[: len(numbers)], "draws": torch.tensor(numbers), "examples": torch.arange(len(numbers)),
        "sizes": torch.tensor([[side, side, 0, 0, side, side]] * len(numbers)),
    }  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_and_losses_are_those_of_diffusers(kind, folders):
    """The sampler against the pipeline; the loss against the scheduler's own noising and a call of the denoiser as the pipeline makes it."""
    model, pipeline = TextToImage.from_settings(pipeline=str(folders(kind))), theirs(kind, folders(kind))
    noise, flux = model.noise([3, 4], SIZE), kind == "FluxPipeline"
    latents = torch.nn.functional.pixel_unshuffle(noise, 2).flatten(2).mT if flux else noise
    extra = {"use_resolution_binning": False, "clean_caption": False} if "PixArt" in kind else {}
    with torch.inference_mode():
        wanted = pipeline(
            TEXTS, num_inference_steps=3, guidance_scale=3.0, height=16, width=16, latents=latents, output_type="pt", **extra
        ).images  # fmt: skip
        found = denoised(
            model.predictor(TEXTS, ["", ""], 3.0, SIZE), scheduler_named(model.scheduler, None), noise, 3, 3.0,
            tokens=model.tokens(SIZE), even=flux,
        )  # fmt: skip
        torch.testing.assert_close((model.pixels(found) / 2 + 0.5).clamp(0, 1), wanted)
    given = batch()
    outputs = model(**given)
    clean = model.latents(given["pixel_values"], given["draws"])
    drawn = model.process.draw(clean, given["draws"])
    scheduler = pipeline.scheduler
    if model.predicts == "flow":
        at = drawn.sigma.view(-1, 1, 1, 1)
        seen, target = at * drawn.noise + (1 - at) * clean, drawn.noise - clean
        torch.testing.assert_close(drawn.times, 1000 * drawn.sigma)
    else:
        seen, target = scheduler.add_noise(clean, drawn.noise, drawn.times), drawn.noise
    said = []
    hook = model.denoiser.register_forward_hook(lambda m, a, k, made: said.append((a, k)), with_kwargs=True)
    assert torch.equal(model(**given)["loss"], outputs["loss"])  # the numbers alone decide
    hook.remove()
    args, kwargs = said[0]
    given_z = args[0] if args else kwargs["hidden_states"]
    packed = torch.nn.functional.pixel_unshuffle(seen, 2).flatten(2).mT if flux else seen
    torch.testing.assert_close(given_z, packed)
    torch.testing.assert_close(outputs["target"], target)
    torch.testing.assert_close(outputs["loss"], (outputs["prediction"] - target).square().mean())
    assert given_z.isfinite().all() and outputs["prediction"].shape == clean.shape


def test_a_picture_to_begin_from_is_as_diffusers_has_it(folders):
    folder = folders("StableDiffusionPipeline")
    model = TextToImage.from_settings(pipeline=str(folder))
    pipeline = diffusers.StableDiffusionImg2ImgPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    start = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    noise = model.noise([3, 4], SIZE)
    with torch.inference_mode():
        found = denoised(
            model.predictor(TEXTS, ["", ""], 3.0, SIZE), scheduler_named(model.scheduler, None), noise, 4, 3.0, start=start, strength=0.5
        )  # fmt: skip
        scheduler = pipeline.scheduler
        scheduler.set_timesteps(4)
        z = scheduler.add_noise(start, noise, scheduler.timesteps[2:3])
        text, empty = (pipeline.encode_prompt(t, "cpu", 1, False)[0] for t in (TEXTS, ["", ""]))
        for time in scheduler.timesteps[2:]:
            with_text, without = (
                pipeline.unet(z, time, encoder_hidden_states=h).sample for h in (text, empty)
            )
            z = scheduler.step(without + 3 * (with_text - without), time, z).prev_sample
    torch.testing.assert_close(found, z)


def test_what_is_frozen_is_encoded_once_and_an_adapter_ends_that(folders):
    model = TextToImage.from_settings(pipeline=str(folders("StableDiffusionPipeline"))).requires_grad_(False)
    calls = []
    hooks = [model.text_encoder.register_forward_hook(lambda *a: calls.append("text"))]
    model.vae.encoder.register_forward_hook(lambda *a: calls.append("picture"))
    first = model(**batch())
    assert torch.equal(model(**batch())["loss"], first["loss"])
    assert calls == ["picture", "picture", "text", "text"]
    ad.attach(model, "lora", targets="text_encoder.attention", r=2)
    loss = model(**batch())["loss"]
    loss.backward()
    assert calls == ["picture", "picture", "text", "text", "text"]
    gradients = [p.grad for p in ad.parameters_of(model).values()]
    assert any(g is not None and g.abs().sum() > 0 for g in gradients)
    hooks[0].remove()


def test_pictures_are_made_one_by_one_or_together(folders):
    model = TextToImage.from_settings(pipeline=str(folders("StableDiffusionXLPipeline")))
    together, alone = model.noise([5, 6], SIZE), model.noise([6], SIZE)
    assert torch.equal(together[1], alone[0])
    empty = model.unconditional(["", "bee"])
    assert not empty["hidden"][0].any() and not empty["pooled"][0].any() and empty["hidden"][1].any()
    with pytest.raises(ModelError, match="multiples of 2, such as 16 x 16"):
        model.noise([0], (16, 17))


def test_a_model_of_pixels_and_of_a_pipeline_come_back_from_their_folders(tmp_path, folders):
    torch.manual_seed(0)
    settings = {k: v for k, v in model_of_pixels(tmp_path / "words").items() if k != "composite"}
    model = TextToImage.from_settings(**settings)
    assert (model.predicts, model.side, model.channels, model.shrinks) == ("v", 16, 12, 2)
    assert torch.equal(model.pixels(model.latents(batch()["pixel_values"], torch.tensor([1, 2]))), batch()["pixel_values"])  # fmt: skip
    model.save_pretrained(tmp_path / "own")
    again = TextToImage.from_pretrained(tmp_path / "own")
    assert (again.text_length, again.patch) == (24, 2)
    assert torch.equal(again(**batch())["loss"], model(**batch())["loss"])
    kind = "StableDiffusionXLPipeline"
    ours = TextToImage.from_settings(pipeline=str(folders(kind)))
    ours.save_pretrained(tmp_path / "xl")
    loaded = theirs(kind, tmp_path / "xl")
    assert loaded.config.force_zeros_for_empty_prompt
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.unet.parameters(), ours.unet.parameters(), strict=True)
    )


def test_pickled_weights_are_refused_with_a_word_how_to_convert(tmp_path, folders):
    for name in ("model.ckpt", "model.bin"):
        with pytest.raises(ModelError, match=r"(?s)pickle.*save_pretrained"):
            TextToImage.from_settings(pipeline=str(tmp_path / name))
    with pytest.raises(ModelError, match="from_single_file"):
        TextToImage.from_settings(pipeline=str(tmp_path / "model.safetensors"))
    import shutil

    folder = tmp_path / "pickled"
    shutil.copytree(folders("StableDiffusionPipeline"), folder)
    file = next((folder / "unet").glob("*.safetensors"))
    file.rename(file.with_name("diffusion_pytorch_model.bin"))
    with pytest.raises(ModelError, match=r"(?s)unet/diffusion_pytorch_model.bin: It is a pickle"):
        TextToImage.from_settings(pipeline=str(folder))
    with pytest.raises(ModelError, match=r"no setting 'predicton_type'.*prediction_type"):
        TextToImage.from_settings(pipeline=str(folders("StableDiffusionPipeline")), scheduler={"predicton_type": "sample"})  # fmt: skip


def test_times_and_noise_follow_from_the_numbers_alone():
    from adaptome.models.noising import Process

    for scheduler in (diffusers.DDPMScheduler(prediction_type="v_prediction"), diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)):  # fmt: skip
        process, x = Process(scheduler), torch.randn(3, 2, 4, 4)
        three, one = process.draw(x, torch.tensor([7, 8, 9])), process.draw(x[:1], torch.tensor([9]))
        assert torch.equal(three.noise[2], one.noise[0]) and three.times[2] == one.times[0]
    u = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    times, alpha, sigma = Process(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)).at(u)
    torch.testing.assert_close(sigma, 3 * u / (1 + 2 * u))
    torch.testing.assert_close(alpha + sigma, torch.ones_like(u))
    ddpm = diffusers.DDPMScheduler(prediction_type="v_prediction")
    process, numbers = Process(ddpm), torch.arange(2000)
    x = torch.randn(2000, 1, 1, 1)
    drawn = process.draw(x, numbers, Times("logit-normal", least=0.0, most=1.0), offset=0.5)
    torch.testing.assert_close(process.target(x, drawn), ddpm.get_velocity(x, drawn.noise, drawn.times))
    share = (drawn.times + 0.5) / 1000
    assert abs(share.logit().mean()) < 0.1 and abs(share.logit().std() - 1) < 0.1
    assert abs(drawn.noise.var() - 1.25) < 0.12  # of one pixel, noise and offset add up
    later = process.draw(x, numbers, Times(least=0.6, most=0.8)).times
    assert later.min() >= 600 and later.max() < 801
