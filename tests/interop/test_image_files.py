"""Files of diffusers and kohya, both ways, against diffusers itself."""

import json

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, inject_adapter_in_model
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import adaptome as ad
from adaptome.core.errors import FormatError, KeyMismatchError, MergeError, TornFileError

from .image_models import flux, layers, output, pipeline, pixart, sd3, shaken, text, text_2, unet, xl

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "v_proj")


def same(a, b):
    torch.testing.assert_close(output(a), output(b), rtol=1e-5, atol=1e-5)


def changed(make, model):
    assert not torch.allclose(output(make()), output(model), atol=1e-3)


# -- written here, read by diffusers -------------------------------------------------------------------------------


# DoRA in kohya's keys is held to LyCORIS: diffusers drops its magnitudes
@pytest.mark.parametrize(
    ("format", "method"), [("diffusers", "lora"), ("kohya", "lora"), ("diffusers", "dora")]
)
@pytest.mark.parametrize("make", [unet, xl])
def test_a_unet_and_text_encoders_load_in_a_pipeline(make, format, method, tmp_path):
    parts = {"unet": make, "text_encoder": text} | ({"text_encoder_2": text_2} if make is xl else {})
    if method == "dora":  # of a text encoder diffusers loses the magnitudes of its own files
        parts = {"unet": make}
    model = nn.ModuleDict({name: part() for name, part in parts.items()})
    # diffusers reads DoRA on linear layers; a 1x1 convolution of its attention is a convolution
    targets = layers(model, *(ATTENTION if method == "dora" else ()))
    if method == "lora" and format == "kohya":  # and of kohya's file not the embeddings of time and size
        targets = [t for t in targets if "emb" not in t]
    shaken(model, method, targets, r=2, alpha=3.0, **({"per_layer": {"to_k": {"r": 3}}} if method == "lora" else {}))  # fmt: skip
    file = tmp_path / "a.safetensors"
    report = ad.export(model, file, format=format)
    assert report.worst == 0 and report.folder == str(file)
    pipe = pipeline(**{name: part() for name, part in parts.items()})
    pipe.load_lora_weights(tmp_path, weight_name=file.name)
    for name, part in parts.items():
        changed(part, model[name])
        same(getattr(pipe, name), model[name])


@pytest.mark.parametrize("make", [unet, sd3, flux])
def test_every_layer_of_a_model_loads_by_its_own_loader(make, tmp_path):
    model = shaken(make(), "lora", layers(make()), r=2)
    ad.export(model, tmp_path / "folder", format="diffusers")
    theirs = make()
    prefix = "unet" if make is unet else "transformer"
    theirs.load_lora_adapter(tmp_path / "folder", prefix=prefix, weight_name="pytorch_lora_weights.safetensors")  # fmt: skip
    changed(make, model)
    same(theirs, model)


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("make", [pixart, text])
def test_a_model_without_a_loader_takes_the_file_by_peft(make, method, tmp_path):
    model = shaken(make(), method, layers(make()), r=2)
    ad.export(model, tmp_path / "a.safetensors", format="diffusers")
    prefix = "transformer." if make is pixart else "text_encoder.text_model."
    state = {key.removeprefix(prefix): value for key, value in load_file(tmp_path / "a.safetensors").items()}
    theirs, targets = make(), [target[1:] for target in layers(make())]
    inject_adapter_in_model(LoraConfig(r=2, lora_alpha=2, target_modules=targets, use_dora=method == "dora"), theirs)  # fmt: skip
    set_peft_model_state_dict(theirs, state)
    same(theirs.eval(), model)


def test_flux_in_kohyas_keys_loads_in_a_pipeline(tmp_path):
    # diffusers takes the widths of the released model for granted where queries, keys, values and MLP are one
    model = flux()
    targets = [t for t in layers(model) if "single" not in t or "norm" in t or "proj_out" in t]
    # and reads the layers around the blocks under names without the part's
    targets = [t for t in targets if "blocks" in t]
    shaken(model, "lora", targets, r=2, alpha=3.0)
    ad.export(model, tmp_path / "flux.safetensors", format="kohya")
    pipe = pipeline(transformer=flux())
    pipe.load_lora_weights(tmp_path, weight_name="flux.safetensors")
    changed(flux, model)
    same(pipe.transformer, model)


# -- written by diffusers, read here -------------------------------------------------------------------------------


def theirs_of(model, config):
    model.add_adapter(LoraConfig(init_lora_weights="gaussian", **config))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora" in name:
                value.add_(torch.randn(value.shape, generator=generator) * 0.1)
    return model.eval()


@pytest.mark.parametrize("dora", [False, True])
def test_a_pipelines_file_loads_here(dora, tmp_path):
    config = {"r": 3, "lora_alpha": 5, "use_dora": dora}
    net = theirs_of(unet(), config | {"target_modules": ["to_q", "to_k", "conv1", "ff.net.2"], "alpha_pattern": {"to_k": 2}})  # fmt: skip
    encoder = theirs_of(text(), config | {"target_modules": ["q_proj", "fc1"]})
    StableDiffusionPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=get_peft_model_state_dict(net),
        text_encoder_lora_layers=get_peft_model_state_dict(encoder),
        unet_lora_adapter_metadata=net.peft_config["default"].to_dict(),
        text_encoder_lora_adapter_metadata=encoder.peft_config["default"].to_dict(),
    )
    parts = nn.ModuleDict({"unet": unet(), "text_encoder": text()})
    report = ad.load(parts, tmp_path)
    assert report.method == ("dora" if dora else "lora")
    same(parts["unet"], net)
    same(parts["text_encoder"], encoder)


@pytest.mark.parametrize("make", [sd3, flux])
def test_a_models_own_file_loads_here(make, tmp_path):
    theirs = theirs_of(make(), {"r": 2, "lora_alpha": 6, "use_rslora": True, "target_modules": ["to_q", "to_out.0"]})  # fmt: skip
    theirs.save_lora_adapter(tmp_path)
    model = make()
    ad.load(model, tmp_path, format="diffusers")
    same(model, theirs)


def test_older_keys_of_diffusers_are_read(tmp_path):
    config = {"r": 2, "lora_alpha": 2, "target_modules": ["to_q", "to_out.0"]}
    net = theirs_of(unet(), config)
    state = convert_state_dict_to_diffusers(get_peft_model_state_dict(net))
    plain = {f"unet.{k}": v for k, v in state.items()}
    assert any(".lora.down.weight" in key for key in plain)
    # and those of before: LoRA in the processors of the attentions
    old = {
        k.replace(".to_q.lora.", ".processor.to_q_lora.").replace(".to_out.0.lora.", ".processor.to_out_lora."): v
        for k, v in plain.items()
    }  # fmt: skip
    for name, tensors in {"plain": plain, "old": old}.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
        model = unet()
        ad.load(model, tmp_path / f"{name}.safetensors")
        same(model, net)


# -- both ways here ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "method"),
    [*((make, "lora") for make in (xl, text, text_2, pixart, sd3, flux)), (unet, "dora"), (sd3, "dora"), (flux, "dora")],
)  # fmt: skip
def test_kohyas_file_comes_back(make, method, tmp_path):
    # of the fused layers some parts only, so that the others are zeros in the file
    targets = [t for t in layers(make()) if not t.endswith(("to_k", "add_v_proj"))]
    model = shaken(make(), method, targets, r=2)
    ad.export(model, tmp_path / "a.safetensors", format="kohya")
    other = make()
    report = ad.load(other, tmp_path / "a.safetensors", format="kohya")
    assert report.method == method
    changed(make, model)
    same(other, model)


def test_sdxl_has_the_authors_names(tmp_path):
    model = shaken(xl(), "lora", layers(xl()), r=2)
    ad.export(model, tmp_path / "a.safetensors", format="kohya")
    names = {key.partition(".")[0] for key in load_file(tmp_path / "a.safetensors")}
    # read off the released network's layout for one layer a block and two blocks
    for name in (
        "input_blocks_0_0", "input_blocks_1_0_in_layers_2", "input_blocks_2_0_op", "input_blocks_3_1_transformer_blocks_0_attn1_to_q",
        "input_blocks_3_0_skip_connection", "middle_block_0_out_layers_3", "middle_block_1_proj_in", "output_blocks_0_1_proj_out",
        "output_blocks_1_2_conv", "output_blocks_3_0_emb_layers_1", "time_embed_0", "label_emb_0_2", "out_2",
    ):  # fmt: skip
        assert f"lora_unet_{name}" in names, name


def test_metadata_tells_the_network_and_the_base(tmp_path):
    model = shaken(unet(cross_attention_dim=768), "lora", "=mid_block.attentions.0.transformer_blocks.0.attn2.to_k", r=3, alpha=5.0)  # fmt: skip
    ad.export(model, tmp_path / "a.safetensors", format="kohya")
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        metadata = file.metadata()
        (alpha,) = [file.get_tensor(key) for key in file.keys() if key.endswith(".alpha")]  # noqa: SIM118
    assert metadata["ss_network_module"] == "networks.lora" and metadata["ss_network_dim"] == "3"
    assert float(alpha) == 3.0 and json.loads(metadata["ss_network_args"]) == {}
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert metadata["method"] == "lora" and len(metadata["sha256"]) == 64


# -- Flux's fused layers -------------------------------------------------------------------------------------------


def test_a_fused_layer_is_split_by_rows_and_put_together_in_blocks(tmp_path):
    generator = torch.Generator().manual_seed(3)
    down, up = torch.randn(4, 16, generator=generator), torch.randn(16 * 3 + 64, 4, generator=generator)
    name = "lora_unet_single_blocks_0_linear1"
    save_file({f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(2.0)}, tmp_path / "in.safetensors")  # fmt: skip
    model = flux()
    ad.load(model, tmp_path / "in.safetensors")
    delta = 0.5 * (up @ down)
    at = 0
    for layer in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"):
        adapter = model.get_submodule(f"single_transformer_blocks.0.{layer}").adaptome["default"]
        rows = adapter.host.fan_out
        torch.testing.assert_close(adapter.delta(), delta[at : at + rows])
        at += rows
    assert at == len(delta)
    # the shared factor goes back as it came; of layers with factors of their own each has its ranks
    ad.export(model, tmp_path / "out.safetensors", format="kohya")
    back = load_file(tmp_path / "out.safetensors")
    assert back[f"{name}.lora_down.weight"].shape == (4, 16)
    torch.testing.assert_close(back[f"{name}.lora_up.weight"] @ back[f"{name}.lora_down.weight"], delta)
    ad.detach(model)
    shaken(model, "lora", ["=single_transformer_blocks.0.attn.to_q", "=single_transformer_blocks.0.proj_mlp"], r=2)  # fmt: skip
    ad.export(model, tmp_path / "own.safetensors", format="kohya")
    own = load_file(tmp_path / "own.safetensors")
    whole = own[f"{name}.lora_up.weight"] @ own[f"{name}.lora_down.weight"]
    assert own[f"{name}.lora_down.weight"].shape == (4, 16) and not whole[16:48].any()
    block = model.single_transformer_blocks[0]
    torch.testing.assert_close(whole[:16], block.attn.to_q.adaptome["default"].delta())
    torch.testing.assert_close(whole[48:], block.proj_mlp.adaptome["default"].delta())


def test_the_last_modulation_has_its_halves_the_other_way_round(tmp_path):
    model = shaken(flux(), "lora", "=norm_out.linear", r=2)
    ad.export(model, tmp_path / "a.safetensors", format="kohya")
    file = load_file(tmp_path / "a.safetensors")
    name = "lora_unet_final_layer_adaLN_modulation_1"
    shift, scale = (file[f"{name}.lora_up.weight"] @ file[f"{name}.lora_down.weight"]).chunk(2)
    torch.testing.assert_close(torch.cat([scale, shift]), model.norm_out.linear.adaptome["default"].delta())


# -- refusals ------------------------------------------------------------------------------------------------------


def lora_file(path, **names):
    tensors = {}
    for name, (r, width, out) in names.items():
        tensors |= {f"{name}.lora_down.weight": torch.ones(r, width), f"{name}.lora_up.weight": torch.ones(out, r)}  # fmt: skip
    save_file(tensors, path)
    return path


def refused(model, file, error, match):
    with pytest.raises(error, match=match):
        ad.load(model, file)
    assert ad.adapters(model) == {}


def test_an_unknown_layer_is_told_with_the_nearest(tmp_path):
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_"
    file = lora_file(tmp_path / "a.safetensors", **{f"{name}qq": (2, 16, 16)})
    refused(unet(), file, KeyMismatchError, f"Did you mean '{name}[qkv]'")
    file = lora_file(tmp_path / "b.safetensors", **{f"{name}q": (2, 16, 16), "lora_te_text_model_encoder_layers_0_mlp_fc1": (2, 16, 24)})  # fmt: skip
    refused(unet(), file, KeyMismatchError, "nn.ModuleDict")
    refused(nn.ModuleDict({"unet": unet()}), file, KeyMismatchError, "no layer")


def test_what_does_not_fit_is_refused(tmp_path):
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    file = tmp_path / "a.safetensors"
    refused(unet(), lora_file(file, **{name: (2, 15, 16)}), KeyMismatchError, "another shape")
    save_file({f"{name}.lora_down.weight": torch.ones(2, 16)}, file)
    refused(unet(), file, KeyMismatchError, "up missing")
    save_file({f"{name}.oft_blocks": torch.ones(2, 2, 2)}, file)
    refused(unet(), file, KeyMismatchError, "diag-oft")
    save_file({f"{name}.lora_down.weight": torch.ones(2, 16), f"{name}.lora_up.weight": torch.ones(16, 2), f"{name}.dora_scale": torch.ones(1, 16)}, file)  # fmt: skip
    refused(unet(), file, KeyMismatchError, "every input")
    save_file({f"{name}.lora_down.weight": torch.ones(1, 16), f"{name}.lora_up.weight": torch.ones(16, 1), f"{name}.lora_mid.weight": torch.ones(1, 1, 9999, 99)}, file)  # fmt: skip
    refused(unet(), file, KeyMismatchError, "do not make a kernel")
    file.write_bytes(b"not safetensors")
    refused(unet(), file, TornFileError, "not a whole")
    (tmp_path / "old.ckpt").write_bytes(b"\x80\x04.")
    refused(unet(), tmp_path / "old.ckpt", FormatError, "weights_only=True")


def test_the_format_may_be_named(tmp_path):
    model = shaken(unet(), "lora", layers(unet(), "to_q"), r=2)
    ad.export(model, tmp_path / "a.safetensors", format="kohya")
    with pytest.raises(FormatError, match="it is kohya"):
        ad.load(unet(), tmp_path / "a.safetensors", format="diffusers")
    with pytest.raises(FormatError, match="Did you mean 'kohya'"):
        ad.load(unet(), tmp_path / "a.safetensors", format="koyha")
    with pytest.raises(FormatError, match="Did you mean 'diffusers'"):
        ad.export(model, tmp_path / "b", format="diffuser")


def test_what_has_no_place_is_refused(tmp_path):
    model = shaken(unet(), "lora", ["=conv_in"], train=["conv_out"], r=2)
    with pytest.raises(MergeError, match="trained whole"):
        ad.export(model, tmp_path / "a.safetensors", format="kohya")
    model = shaken(text(), "lora", ["token_embedding"], r=2)
    with pytest.raises(MergeError, match="linear layers"):
        ad.export(model, tmp_path / "a.safetensors", format="kohya")
    assert not list(tmp_path.iterdir())
