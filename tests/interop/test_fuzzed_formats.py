"""Damaged, altered and invented files of other libraries: our errors alone, and the model as it was."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import adaptome as ad
from adaptome.core.errors import AdaptomeError

METHODS = {"kohya": "lora", "diffusers": "dora", "loha": "loha", "lokr": "lokr", "norms": "norm-tuning"}
FUZZ = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)


def base() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"first": nn.Linear(6, 5), "second": nn.Conv2d(3, 4, 3), "norm": nn.LayerNorm(4)})


def llama() -> nn.Module:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, vocab_size=20,
            bos_token_id=1, eos_token_id=2,
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    place = tmp_path_factory.mktemp("formats")
    for name, method in METHODS.items():
        model = base()
        more = {"r": 1} if method not in ("norm-tuning",) else {}
        ad.attach(model, method, targets=["norm"] if method == "norm-tuning" else ["first", "second"], **more)
        format = name if name in ("kohya", "diffusers") else "lycoris"
        ad.export(model, place / f"{name}.safetensors", format=format)
    model = llama()
    ad.attach(model, "lora", r=2, targets=["q", "down"])
    ad.export(model, place / "gguf.gguf", format="gguf")
    return place


def loaded_or_refused(path, make=base) -> None:
    model = make()
    bits = {k: v.clone() for k, v in model.state_dict().items()}
    try:
        ad.load(model, path)
    except AdaptomeError:
        assert ad.adapters(model) == {}
        assert all(p.requires_grad for p in model.parameters())
    else:
        ad.detach(model)
    for key, value in model.state_dict().items():
        assert torch.equal(value, bits[key])


@FUZZ
@given(
    kind=st.sampled_from([*METHODS, "gguf"]), at=st.integers(0, 10**6), byte=st.integers(0, 255), cut=st.booleans(), early=st.booleans()
)  # fmt: skip
def test_damaged_bytes(files, kind, at, byte, cut, early):
    path = files / (f"{kind}.gguf" if kind == "gguf" else f"{kind}.safetensors")
    data = bytearray(path.read_bytes())
    at %= min(len(data), 600) if early else len(data)
    data[at] = byte
    altered = files / f"bytes{path.suffix}"
    altered.write_bytes(bytes(data[:at]) if cut else bytes(data))
    loaded_or_refused(altered, llama if kind == "gguf" else base)


@FUZZ
@given(
    kind=st.sampled_from(sorted(METHODS)),
    pick=st.integers(0, 50),
    shape=st.lists(st.integers(0, 9), max_size=4),
    dtype=st.sampled_from([torch.float32, torch.int64, torch.bool, torch.bfloat16]),
    ending=st.sampled_from([
        "", "alpha", "lora_mid.weight", "hada_t1", "lokr_t2", "lokr_w1_a", "diff", "diff_b", "w_norm", "on_input", "dora_scale", "lora_down.weight",
        "oft_blocks", "lora_A.weight", "lora_magnitude_vector", "weight",
    ]),
    swap=st.booleans(),
    drop=st.booleans(),
)  # fmt: skip
def test_altered_tensors(files, kind, pick, shape, dtype, ending, swap, drop):
    tensors = load_file(files / f"{kind}.safetensors")
    keys = sorted(tensors)
    key = keys[pick % len(keys)]
    if drop:
        del tensors[key]
    tensors[key if swap else f"{key.partition('.')[0]}.{ending}"] = torch.ones(shape).to(dtype)
    path = files / "tensors.safetensors"
    path.write_bytes(save(tensors))
    loaded_or_refused(path)


@FUZZ
@given(
    value=st.sampled_from([
        "", "{", "[]", "null", '{"transformer.lora_alpha": "x"}', '{"transformer.lora_alpha": 1e400}', '{"transformer.alpha_pattern": {"(a+)+$": 1}}',
        '{"transformer.alpha_pattern": [1]}', '{"transformer.lora_alpha": null}', '{"transformer.alpha_pattern": {"first": {}}}', "[" * 10**5,
        '{"transformer.lora_alpha": true}', '{"transformer.lora_alpha": 4, "transformer.alpha_pattern": {"^first": 2}}',
    ])
)  # fmt: skip
def test_altered_settings(files, value):
    path = files / "settings.safetensors"
    path.write_bytes(
        save(load_file(files / "diffusers.safetensors"), metadata={"lora_adapter_metadata": value})
    )
    loaded_or_refused(path)


@pytest.mark.parametrize("ending", [".bin", ".pt", ".pth", ".ckpt", ".pkl"])
def test_no_pickle_is_opened(tmp_path, ending):
    class Boom:
        def __reduce__(self):
            return (exec, ("raise SystemExit",))

    path = tmp_path / f"adapter{ending}"
    torch.save(Boom(), path)
    with pytest.raises(ad.errors.FormatError, match="never read here"):
        ad.load(base(), path)


def test_a_file_of_too_many_tensors_is_refused(tmp_path, monkeypatch):
    from adaptome.interop.images import file

    monkeypatch.setattr(file, "MOST_KEYS", 3)
    path = tmp_path / "a.safetensors"
    path.write_bytes(save({f"lora_unet_{i}.lora_up.weight": torch.ones(1, 1) for i in range(4)}))
    with pytest.raises(ad.errors.FormatError, match="holds 4 tensors"):
        ad.load(base(), path)
    monkeypatch.setattr(file, "MOST_BYTES", 10)
    with pytest.raises(ad.errors.FormatError, match="bytes"):
        ad.load(base(), path)
