"""Adapter folders with damaged, altered and invented files: our errors alone, and the model as it was."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import adaptome as ad
from adaptome.core.errors import AdaptomeError

FILES = {
    "ours": ("adaptome.json", "adapter.safetensors"),
    "peft": ("adapter_config.json", "adapter_model.safetensors"),
}
WORDS = [
    None,
    True,
    -1,
    0,
    10**9,
    1e308,
    "",
    "../../etc/passwd",
    "lora",
    "os.system",
    [],
    {},
    ["*"],
    [[]],
    {"r": -1},
    {"": None},
    "a" * 300,
]


def base() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"first": nn.Linear(6, 5), "second": nn.Linear(5, 4)})


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("fuzz")
    model = base()
    ad.attach(model, "lora", r=2, targets=["first", "second"])
    ad.save(model, place / "ours")
    ad.export(model, place / "peft")
    return place


def loaded_or_refused(folder) -> None:
    model = base()
    bits = {k: v.clone() for k, v in model.state_dict().items()}
    try:
        ad.load(model, folder)
    except AdaptomeError:
        assert ad.adapters(model) == {} and type(model["first"]) is nn.Linear
        assert all(p.requires_grad for p in model.parameters())
    else:
        ad.detach(model)
    for key, value in model.state_dict().items():
        assert torch.equal(value, bits[key])


FUZZ = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)


@FUZZ
@given(
    kind=st.sampled_from(sorted(FILES)),
    which=st.integers(0, 1),
    at=st.integers(0, 10**6),
    byte=st.integers(0, 255),
    cut=st.booleans(),
)
def test_damaged_bytes(folders, kind, which, at, byte, cut):
    folder = folders / f"{kind}-bytes"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(folders / kind, folder)
    path = folder / FILES[kind][which]
    data = bytearray(path.read_bytes())
    at %= len(data)
    data[at] = byte
    path.write_bytes(bytes(data[:at]) if cut else bytes(data))
    loaded_or_refused(folder)


def paths_of(value, prefix=()):
    yield prefix
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from paths_of(inner, (*prefix, key))


@FUZZ
@given(
    kind=st.sampled_from(sorted(FILES)),
    pick=st.integers(0, 10**6),
    word=st.sampled_from(WORDS),
    drop=st.booleans(),
)
def test_altered_settings(folders, kind, pick, word, drop):
    folder = folders / f"{kind}-settings"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(folders / kind, folder)
    path = folder / FILES[kind][0]
    content = json.loads(path.read_text())
    places = [p for p in paths_of(content) if p]
    *way, last = places[pick % len(places)]
    inner = content
    for key in way:
        inner = inner[key]
    if drop:
        del inner[last]
    else:
        inner[last] = word
    path.write_text(json.dumps(content))
    loaded_or_refused(folder)


@FUZZ
@given(
    kind=st.sampled_from(sorted(FILES)),
    pick=st.integers(0, 50),
    shape=st.lists(st.integers(0, 7), max_size=3),
    dtype=st.sampled_from([torch.float32, torch.int64, torch.bool, torch.bfloat16]),
    name=st.sampled_from(["", "first.A", "../x", "base_model.model.first.lora_A.weight", "a.b.c", "first"]),
    swap=st.booleans(),
)
def test_altered_tensors(folders, kind, pick, shape, dtype, name, swap):
    from safetensors.torch import load_file, save

    folder = folders / f"{kind}-tensors"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(folders / kind, folder)
    path = folder / FILES[kind][1]
    tensors = load_file(path)
    keys = sorted(tensors)
    key = keys[pick % len(keys)]
    tensors[key if swap else name] = torch.ones(shape).to(dtype)
    data = save(tensors)
    path.write_bytes(data)
    if kind == "ours":  # who alters a file can make its hash too
        manifest = json.loads((folder / "adaptome.json").read_text())
        manifest["tensors"]["sha256"] = hashlib.sha256(data).hexdigest()
        (folder / "adaptome.json").write_text(json.dumps(manifest))
    loaded_or_refused(folder)
