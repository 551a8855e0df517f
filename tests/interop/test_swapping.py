"""Adapters swapped while a compiled model serves."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounter

import adaptome as ad
from adaptome.core.errors import CheckpointError, MergeError, StateError

from ..core.models import IDS, bert, llama, move, run

#: method, settings and targets of what is served in turn
SERVED = {
    "small": ("lora", {"r": 2, "alpha": 7.0}, ["q", "v"]),
    "large": ("lora", {"r": 8, "rslora": True}, "all-linear"),
    "vera": ("vera", {"r": 4}, "attention"),
    "mos": ("mos", {"r": 3}, ["q", "v"]),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folder of each, and what it makes of the model alone."""
    root = tmp_path_factory.mktemp("adapters")
    made = {}
    for seed, (name, (method, settings, targets)) in enumerate(SERVED.items()):
        model = llama(layers=1)
        ad.attach(model, method, targets=targets, **settings)
        move(model, seed=seed)
        ad.save(model, root / name)
        made[name] = (root / name, run(model))
    ad.export(model, root / "peft", format="peft-lora")
    made["peft"] = (root / "peft", run(model))
    return made


def test_nothing_is_compiled_again(folders):
    torch._dynamo.reset()
    model = llama(layers=1)
    base, trained = run(model), [p.requires_grad for p in model.parameters()]
    first = ad.hot_swap(model, folders["small"][0], pad_to=8, targets="all-linear")
    assert (first.rank, first.pad_to, first.layers, len(first.empty)) == (2, 8, 2, 5)
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    torch.testing.assert_close(run(compiled), folders["small"][1])
    frames = counter.frame_count
    with torch._dynamo.config.patch(error_on_recompile=True):
        for name in ("large", "peft", "vera", "mos", "small"):
            folder, expected = folders[name]
            assert not torch.allclose(run(compiled), expected)
            swap = ad.hot_swap(compiled, folder)
            torch.testing.assert_close(run(compiled), expected, rtol=1e-4, atol=1e-5)
            assert swap.pad_to == 8 and swap.error < 1e-4 and name[:4] in f"{folder} {swap}"
    assert counter.frame_count == frames == 1
    ad.detach(model)
    assert torch.equal(run(model), base) and [p.requires_grad for p in model.parameters()] == trained


def test_a_place_takes_part_in_rows_and_beside_others(folders):
    model = llama(layers=1)
    for name in ("one", "two"):
        ad.hot_swap(model, folders["small"][0], name, pad_to=8, targets="all-linear")
    ad.hot_swap(model, folders["large"][0], "two")
    with ad.per_row(model, ["one", "two"]):
        made = run(model)
    torch.testing.assert_close(made[0], folders["small"][1][0])
    torch.testing.assert_close(made[1], folders["large"][1][1], rtol=1e-4, atol=1e-5)


def test_what_does_not_fit_is_refused_and_what_runs_stays(folders, tmp_path):
    model = llama(layers=1)
    with pytest.raises(StateError, match="pad_to=64"):
        ad.hot_swap(model, folders["small"][0])
    assert not ad.adapters(model)
    ad.hot_swap(model, folders["small"][0], pad_to=2)
    runs = run(model)
    with pytest.raises(StateError, match=r"sits on .* has no place"):
        ad.hot_swap(model, folders["vera"][0], max_error=1.0)
    with pytest.raises(MergeError, match=r"does not fit rank 2: cut to it, the update differs by"):
        ad.hot_swap(model, folders["large"][0])
    with pytest.raises(CheckpointError):
        ad.hot_swap(model, tmp_path / "nowhere")
    other = llama(layers=2)
    ad.attach(other, "lora", r=2)
    ad.save(other, tmp_path / "other")
    with pytest.raises(CheckpointError):
        ad.hot_swap(model, tmp_path / "other")
    assert torch.equal(run(model), runs) and list(ad.adapters(model)) == ["hot"]
    ad.attach(model, "dora", "mine", targets="q", r=2)
    with pytest.raises(StateError, match="nothing can be swapped into it"):
        ad.hot_swap(model, folders["small"][0], "mine")


def test_heads_and_activations_are_refused(tmp_path):
    model = bert()
    ad.attach(model, "lora", targets="attention", train="classifier", r=2)
    ad.save(model, tmp_path / "head")
    ad.detach(model)
    ad.attach(model, "houlsby", size=2)
    ad.save(model, tmp_path / "houlsby")
    ad.detach(model)
    for name, said in (("head", "trains classifier whole"), ("houlsby", "no LoRA form")):
        with pytest.raises(MergeError, match=said):
            ad.hot_swap(model, tmp_path / name, pad_to=4)
    assert not ad.adapters(model) and torch.isfinite(run(model, IDS)).all()
