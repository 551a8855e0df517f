"""vLLM's rules for a folder."""

import json

import pytest
from safetensors.torch import load_file, save_file

import adaptome as ad
from adaptome.core.errors import CheckpointError, FormatError
from adaptome.interop.vllm import check

from ..core.models import bert, llama, move


@pytest.fixture
def folder(tmp_path):
    model = llama(layers=1)
    ad.attach(model, "mos", targets="attention", r=3)
    move(model)
    ad.convert(model, tmp_path / "served", rank=3)
    return tmp_path / "served"


def edit(folder, **settings):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def test_what_convert_writes_is_served(folder):
    served = check(folder)
    assert served.max_lora_rank == 8 and served.layers == 4
    assert str(served).endswith(f"--enable-lora --max-lora-rank 8 --lora-modules mine={folder}")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"use_dora": True}, "use_dora is set"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is set"),
        ({"bias": "all"}, "biases are not served"),
        (
            {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"q_proj": 4}},
            "rank_pattern is set; alpha_pattern is set",
        ),
        ({"r": 1024}, "r = 1024 is above 512"),
        ({"r": 16}, "factors have rank 8, and r = 16"),
        ({"target_modules": None}, "has no target_modules"),
        ({"peft_type": "LOHA"}, "of type LOHA"),
    ],
)
def test_what_is_refused(folder, settings, said):
    edit(folder, **settings)
    with pytest.raises(FormatError, match=said):
        check(folder)


def test_tensors_that_are_no_factors(folder, tmp_path):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    key = next(k for k in tensors if k.endswith("lora_A.weight"))
    save_file(
        {k: v for k, v in tensors.items() if k != key}
        | {"base_model.model.classifier.bias": tensors[key][0]},
        path,
    )
    with pytest.raises(FormatError, match=r"1 tensors are no factors .*classifier.bias; .*one factor alone"):
        check(folder)
    with pytest.raises(CheckpointError):
        check(tmp_path)


def test_a_head_is_refused(tmp_path):
    model = bert()
    ad.attach(model, "lora", targets="attention", train="classifier", r=8)
    ad.export(model, tmp_path / "head", format="peft-lora")
    with pytest.raises(FormatError, match="modules_to_save is set"):
        check(tmp_path / "head")
