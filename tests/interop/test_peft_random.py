"""PEFT's OFT and RandLoRA folders give PEFT's function, to 1e-5."""

import json

import peft
import pytest
import torch
from torch import nn

import adaptome as ad
from adaptome.core.errors import FormatError, MergeError

CONFIGS = {
    "oft": lambda: peft.OFTConfig(oft_block_size=4, target_modules=["0", "2"]),
    "oft, exact": lambda: peft.OFTConfig(oft_block_size=4, target_modules=["0", "2"], use_cayley_neumann=False),
    "oft, 3 terms": lambda: peft.OFTConfig(oft_block_size=4, target_modules=["0", "2"], num_cayley_neumann_terms=3),
    "oft, 7 terms": lambda: peft.OFTConfig(oft_block_size=4, target_modules=["0", "2"], num_cayley_neumann_terms=7),
    "oft, shared": lambda: peft.OFTConfig(r=2, oft_block_size=0, block_share=True, target_modules=["0"]),
    "oft, bounded": lambda: peft.OFTConfig(oft_block_size=4, target_modules=["0", "2"], coft=True, eps=0.4, module_dropout=0.5),
    "randlora": lambda: peft.RandLoraConfig(r=5, target_modules=["0", "2"], randlora_alpha=10),
    "randlora, sparse": lambda: peft.RandLoraConfig(r=3, target_modules=["0", "2"], sparse=True),
}  # fmt: skip


def two() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 6)).eval()


def folder(case: str, path) -> nn.Module:
    theirs = peft.get_peft_model(two(), CONFIGS[case]()).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    theirs.save_pretrained(path)
    return theirs


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CONFIGS)
def test_a_folder_gives_pefts_function(case, tmp_path):
    theirs, x = folder(case, tmp_path / "theirs"), torch.randn(7, 12)
    model = two()
    ad.load(model, tmp_path / "theirs")
    assert not torch.allclose(model(x), two()(x), atol=1e-2)
    torch.testing.assert_close(model(x), theirs(x), rtol=1e-5, atol=1e-5)
    ad.save(model, tmp_path / "ours")
    again = two()
    ad.load(again, tmp_path / "ours")
    assert torch.equal(again(x), model(x))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "method",
    [
        ad.OFT(size=4),
        ad.OFT(size=2, series=3, block_share=True),
        ad.OFT(size=4, coft=True, eps=0.4, dropout=0.5),
    ],
)
def test_oft_runs_the_same_in_peft(method, tmp_path):
    model, x = two(), torch.randn(7, 12)
    ad.attach(model, method, targets=["0", "2"])
    with torch.no_grad():
        for parameter in ad.parameters_of(model).values():
            parameter.normal_(std=0.2)
    ad.export(model, tmp_path / "out", format="peft")
    theirs = peft.PeftModel.from_pretrained(two(), tmp_path / "out").eval()
    torch.testing.assert_close(theirs(x), model(x), rtol=1e-5, atol=1e-5)
    again = two()
    ad.load(again, tmp_path / "out")
    read = ad.adapters(again)["default"].method
    assert [getattr(read, n) for n in ("dropout", "coft", "eps")] == [method.dropout, method.coft, method.eps]


@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_the_same_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    folder("randlora", tmp_path / "a")
    file = tmp_path / "a" / "adapter_model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if "randlora_A" not in k}, file)
    model = two()
    with pytest.raises(FormatError, match="save_projection=True"):
        ad.load(model, tmp_path / "a")
    folder("oft", tmp_path / "b")
    config = tmp_path / "b" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_cayley_neumann_terms": 2}))
    with pytest.raises(FormatError, match="num_cayley_neumann_terms = 2"):
        ad.load(model, tmp_path / "b")
    assert ad.adapters(model) == {}
    ad.attach(model, "randlora", r=3, targets="0")
    with pytest.raises(MergeError, match="read and not written"):
        ad.export(model, tmp_path / "c", format="peft")
