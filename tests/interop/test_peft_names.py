"""The names in an exported configuration select the adapted modules in PEFT, and no others."""

import json

import peft
import pytest
import torch
from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn

import adaptome as ad
from adaptome.core.errors import MergeError
from adaptome.interop.peft_names import target_modules
from tests.core.models import llama


class Nested(nn.Module):
    """`layer` at the root, and another one inside; `extra_layer`, whose name ends alike without a dot."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.extra_layer = nn.Linear(6, 6), nn.Linear(6, 6)
        self.inner = nn.ModuleDict({"layer": nn.Linear(6, 6), "head": nn.Linear(6, 6)})
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.inner["head"](self.inner["layer"](self.extra_layer(self.layer(x)))))


def moved(model, **how):
    ad.attach(model, "lora", r=2, seed=1, **how)
    with torch.no_grad():
        for value in ad.parameters_of(model).values():
            value.normal_(std=0.3, generator=torch.Generator().manual_seed(3))
    return model


def written(folder):
    return json.loads((folder / "adapter_config.json").read_text())["target_modules"]


CASES = {
    "one name": ("attention", None, ["k_proj", "o_proj", "q_proj", "v_proj"]),
    "two roles": (["q", "down"], None, ["down_proj", "q_proj"]),
    "one layer": ("q", [1], ["1.self_attn.q_proj"]),
    "a head": ("head", None, ["lm_head"]),
}


@pytest.mark.parametrize("case", CASES)
def test_endings_are_written_where_they_select_the_same(case, tmp_path):
    targets, layers, expected = CASES[case]
    model = moved(llama(), targets=targets, layers=layers)
    ad.export(model, tmp_path / "out")
    assert written(tmp_path / "out") == expected
    config = peft.PeftConfig.from_pretrained(tmp_path / "out")
    chosen = {name for name, _ in llama().named_modules() if check_target_module_exists(config, name)}
    assert chosen == set(ad.adapters(model)["default"].adapters)
    ids = torch.tensor([[1, 2, 3]])
    theirs = peft.PeftModel.from_pretrained(llama(), tmp_path / "out").eval()
    torch.testing.assert_close(theirs(ids).logits, model(ids).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("targets", "expected"),
    [("=layer", "layer"), (["=inner.layer"], ["inner.layer"]), (["=layer", "=inner.layer"], ["layer"]), ("=extra_layer", ["extra_layer"])],
)  # fmt: skip
def test_a_name_that_another_ends_in_adapts_no_other(targets, expected, tmp_path):
    model, x = moved(Nested(), targets=targets), torch.randn(4, 6)
    ad.export(model, tmp_path / "out")
    assert written(tmp_path / "out") == expected
    theirs = peft.PeftModel.from_pretrained(Nested(), tmp_path / "out").eval()
    adapted = {
        name.removeprefix("base_model.model.") for name, m in theirs.named_modules() if hasattr(m, "lora_A")
    }
    assert adapted == set(ad.adapters(model)["default"].adapters)
    torch.testing.assert_close(theirs(x), model(x), rtol=1e-5, atol=1e-6)
    other = Nested()
    ad.load(other, tmp_path / "out")
    torch.testing.assert_close(other(x), model(x))


def test_names_are_taken_literally():
    names = ["a.layer", "b.layer", "layer", "aXlayer", "layers"]
    assert target_modules(["layer"], names) == "layer"
    assert target_modules(["a.layer", "layer"], names) == r"a\.layer|layer"
    assert target_modules(["a.layer"], names) == ["a.layer"]
    assert target_modules(["a.layer", "b.layer", "layer"], names) == ["layer"]


def test_a_target_that_peft_would_leave_out_for_a_head_is_refused(tmp_path):
    model = moved(Nested(), targets="=inner.head", train=["=head"])
    with pytest.raises(MergeError, match="'head' is a head here, and so inner.head would be left out"):
        ad.export(model, tmp_path / "out")
