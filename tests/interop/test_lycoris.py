"""LyCORIS' files, both ways, against its own modules."""

import pytest
import torch
from lycoris.modules.full import FullModule
from lycoris.modules.glora import GLoRAModule
from lycoris.modules.ia3 import IA3Module
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from lycoris.modules.norms import NormModule
from safetensors.torch import load_file, save_file
from torch import nn

import adaptome as ad
from adaptome.core.errors import KeyMismatchError, MergeError

from .image_models import flux, layers, output, shaken, unet

LINEAR = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
KERNEL, PLAIN = "mid_block.resnets.0.conv1", "mid_block.attentions.0.proj_in"
NORM = "mid_block.resnets.0.norm1"


def theirs(make_module, targets, **settings):
    """A UNet with LyCORIS' modules, shaken, and their state by kohya's names."""
    model, modules, state = unet(), [], {}
    generator = torch.Generator().manual_seed(4)
    for path in targets:
        name = f"lora_unet_{path.replace('.', '_')}"
        module = make_module(name, model.get_submodule(path), 1.0, **settings)
        with torch.no_grad():
            for value in module.parameters():
                value.add_(torch.randn(value.shape, generator=generator) * 0.3)
        module.apply_to()  # before it is saved: what is trained whole is stored as a difference
        own = module.custom_state_dict() or module.state_dict()
        state |= {f"{name}.{key}": value.detach().clone() for key, value in own.items()}
        modules.append(module)
    model.modules_of_lycoris = nn.ModuleList(modules)
    return model.eval(), state


CASES = {
    "locon": (LoConModule, [LINEAR, KERNEL, PLAIN], {"lora_dim": 3, "alpha": 2.0}, "lora"),
    "locon, kernel apart": (LoConModule, [LINEAR, KERNEL, PLAIN], {"lora_dim": 3, "alpha": 2.0, "use_tucker": True}, "lora"),
    "dora": (LoConModule, [LINEAR, KERNEL, PLAIN], {"lora_dim": 3, "alpha": 2.0, "weight_decompose": True}, "dora"),
    "loha": (LohaModule, [LINEAR, KERNEL, PLAIN], {"lora_dim": 3, "alpha": 2.0}, "loha"),
    "loha, kernel apart": (LohaModule, [LINEAR, KERNEL, PLAIN], {"lora_dim": 3, "alpha": 2.0, "use_tucker": True}, "loha"),
    "lokr": (LokrModule, [LINEAR, KERNEL, PLAIN], {"lora_dim": 1, "alpha": 0.5}, "lokr"),
    "lokr, kernel apart": (LokrModule, [KERNEL], {"lora_dim": 1, "alpha": 0.5, "use_tucker": True}, "lokr"),
    "lokr, both": (LokrModule, [LINEAR, KERNEL], {"lora_dim": 1, "alpha": 3.0, "decompose_both": True, "factor": 4}, "lokr"),
    "lokr, whole": (LokrModule, [LINEAR, KERNEL], {"lora_dim": 4, "alpha": 3.0, "full_matrix": True, "factor": 2}, "lokr"),
    "ia3": (IA3Module, [LINEAR], {}, "ia3"),
    "ia3, inputs": (IA3Module, [LINEAR, KERNEL], {"train_on_input": True}, "ia3"),
    "glora": (GLoRAModule, [LINEAR], {"lora_dim": 3, "alpha": 2.0}, "glora"),
    "norms": (NormModule, [NORM], {}, "norm-tuning"),
    "full": (FullModule, [LINEAR, KERNEL], {}, "linear-probe"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_file_of_lycoris_loads_with_the_same_outputs(case, tmp_path):
    kind, targets, settings, method = CASES[case]
    model, state = theirs(kind, targets, **settings)
    if "kernel apart" in case:
        assert any(key.endswith(("lora_mid.weight", "hada_t1", "lokr_t2")) for key in state)
    save_file(state, tmp_path / "theirs.safetensors")
    ours = unet()
    assert not torch.allclose(output(ours), output(model), atol=1e-4)
    report = ad.load(ours, tmp_path / "theirs.safetensors")
    assert report.method == method
    torch.testing.assert_close(output(ours), output(model), rtol=1e-5, atol=1e-5)
    # and goes back as it came, or as what is the same
    ad.export(ours, tmp_path / "back.safetensors", format="kohya" if method == "dora" else "lycoris")
    again = unet()
    ad.load(again, tmp_path / "back.safetensors")
    torch.testing.assert_close(output(again), output(model), rtol=1e-5, atol=1e-5)


def lycoris_reads(kind, state, path, model):
    """LyCORIS' own module of a file's layer."""
    name = f"lora_unet_{path.replace('.', '_')}"
    values = kind.extract_state_dict(state, name)
    with torch.no_grad():
        module = kind.make_module_from_state_dict(name, model.get_submodule(path), *values)
    module.apply_to()
    return module


OURS = {
    "lora": (LoConModule, [LINEAR, KERNEL, PLAIN], {"r": 3, "alpha": 2.0}),
    "dora": (LoConModule, [LINEAR, KERNEL, PLAIN], {"r": 3, "alpha": 2.0}),
    "loha": (LohaModule, [LINEAR, KERNEL, PLAIN], {"r": 3, "alpha": 2.0}),
    "lokr": (LokrModule, [LINEAR, KERNEL], {"r": 1, "alpha": 0.5}),
    "norm-tuning": (NormModule, [NORM], {}),
}


@pytest.mark.parametrize("method", OURS)
def test_lycoris_reads_what_is_written_here(method, tmp_path):
    kind, targets, settings = OURS[method]
    model = shaken(unet(), method, [f"={path}" for path in targets], **settings)
    ad.export(model, tmp_path / "ours.safetensors", format="lycoris")
    state, other = load_file(tmp_path / "ours.safetensors"), unet()
    modules = [lycoris_reads(kind, state, path, other) for path in targets]
    assert len(modules) == len(targets)
    torch.testing.assert_close(output(other), output(model), rtol=1e-5, atol=1e-5)


def test_whole_modules_and_norms_go_beside_an_adapter(tmp_path):
    model = shaken(unet(), "loha", [f"={LINEAR}"], r=2, train=[NORM, "conv_out"])
    ad.export(model, tmp_path / "a.safetensors", format="lycoris")
    keys = {key.partition(".")[2] for key in load_file(tmp_path / "a.safetensors")}
    assert {"w_norm", "b_norm", "diff", "diff_b", "hada_w1_a"} <= keys
    other = unet()
    assert ad.load(other, tmp_path / "a.safetensors").method == "loha"
    torch.testing.assert_close(output(other), output(model), rtol=1e-5, atol=1e-5)
    ad.detach(other)
    assert torch.equal(output(other), output(unet()))


@pytest.mark.parametrize("method", ["loha", "dora"])
def test_a_fused_layer_of_flux_is_put_together(method, tmp_path):
    model = shaken(flux(), method, layers(flux(), "to_q", "to_v", "proj_mlp"), r=2, alpha=3.0)
    ad.export(model, tmp_path / "a.safetensors", format="lycoris")
    other = flux()
    ad.load(other, tmp_path / "a.safetensors")
    torch.testing.assert_close(output(other), output(model), rtol=1e-5, atol=1e-5)


def test_what_has_no_form_is_refused(tmp_path):
    model = shaken(flux(), "lokr", layers(flux(), "to_q"), r=2)
    with pytest.raises(MergeError, match="one layer in this format"):
        ad.export(model, tmp_path / "a.safetensors", format="lycoris")
    model = shaken(unet(), "ia3", [f"={KERNEL}"], side="output")
    with pytest.raises(MergeError, match="has a bias"):
        ad.export(model, tmp_path / "a.safetensors", format="lycoris")
    model = shaken(unet(), "oft", [f"={LINEAR}"], size=4)
    with pytest.raises(MergeError, match="give the rank"):
        ad.export(model, tmp_path / "a.safetensors", format="lycoris")
    assert ad.export(model, tmp_path / "a.safetensors", format="lycoris", rank=16).worst < 1e-5


def test_a_file_of_two_algorithms_and_odd_factors_are_refused(tmp_path):
    _, one = theirs(LohaModule, [LINEAR], lora_dim=2, alpha=1.0)
    _, two = theirs(LoConModule, [KERNEL], lora_dim=2, alpha=1.0)
    _, odd = theirs(LokrModule, ["down_blocks.1.resnets.0.time_emb_proj"], lora_dim=1, alpha=1.0, factor=2, unbalanced_factorization=True)  # fmt: skip
    for state, match in ((one | two, "an adapter is of one method"), (odd, "unbalanced_factorization")):
        save_file(state, tmp_path / "a.safetensors")
        model = unet()
        with pytest.raises(KeyMismatchError, match=match):
            ad.load(model, tmp_path / "a.safetensors")
        assert ad.adapters(model) == {}
