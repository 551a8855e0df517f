"""Rows with adapters of their own, and adapters made of others, as PEFT computes them; and the model card."""

import peft
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from adaptome.core.errors import AdaptomeError
from adaptome.peft import LoraConfig, get_peft_model

IDS = torch.tensor([[2, 3, 4], [5, 6, 7], [1, 1, 2]])


def base():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=8, n_positions=16)).eval()


def settings(r):
    return dict(
        r=r,
        lora_alpha=8,
        target_modules=["c_attn", "c_fc"],
        fan_in_fan_out=True,
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )


@pytest.fixture
def both(tmp_path):
    """Ours with two adapters, and PEFT's with the same."""
    torch.manual_seed(1)
    ours = get_peft_model(base(), LoraConfig(**settings(2)), "a")
    ours.add_adapter("b", LoraConfig(**settings(2)))
    ours.save_pretrained(tmp_path)
    theirs = peft.PeftModel.from_pretrained(base(), tmp_path / "a", "a")
    theirs.load_adapter(tmp_path / "b", "b")
    return ours.eval(), theirs.eval()


def test_rows_have_the_adapters_that_they_name(both):
    ours, theirs = both
    names = ["b", "__base__", "a"]
    with torch.no_grad():
        made, expected = (m(input_ids=IDS, adapter_names=names).logits for m in both)
        torch.testing.assert_close(made, expected, rtol=0, atol=1e-5)
        made, expected = (
            m.generate(input_ids=IDS, adapter_names=names, num_beams=2, max_new_tokens=4, pad_token_id=0, attention_mask=torch.ones_like(IDS)) for m in both
        )  # fmt: skip
        assert torch.equal(made, expected)
        with ours.disable_adapter():
            torch.testing.assert_close(
                ours(input_ids=IDS, adapter_names=names).logits, base()(input_ids=IDS).logits
            )
    for wrong, said in (
        (["a"], "Length of `adapter_names` should be the same as the number of inputs, but got 1 and 3"),
        (["a", "c", "d"], "Trying to infer with non-existing adapter"),
    ):
        with pytest.raises(ValueError, match=said):
            ours(input_ids=IDS, adapter_names=wrong)
    ours.train()
    with pytest.raises(ValueError, match="when the model is in training mode"):
        ours(input_ids=IDS, adapter_names=names)
    ours.eval().merge_adapter(["a"])
    with pytest.raises(ValueError, match="when there are merged adapters"):
        ours(input_ids=IDS, adapter_names=names)


@pytest.mark.parametrize(("how", "rank"), [("linear", None), ("cat", None), ("svd", None), ("svd", 3)])
def test_a_weighted_adapter_is_the_one_that_peft_makes(both, how, rank, tmp_path):
    outputs = []
    for model in both:
        model.add_weighted_adapter(["a", "b"], [0.7, -0.4], "sum", combination_type=how, svd_rank=rank)
        model.set_adapter("sum")
        with torch.no_grad():
            outputs.append(model(input_ids=IDS).logits)
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-5)
    ours = both[0]
    assert ours.active_adapter == "sum" and ours.peft_config["sum"].r == both[1].peft_config["sum"].r
    ours.save_pretrained(tmp_path / "made", selected_adapters=["sum"])
    again = peft.PeftModel.from_pretrained(base(), tmp_path / "made" / "sum").eval()
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=IDS).logits, outputs[0], rtol=0, atol=1e-5)


def test_what_cannot_be_summed_is_refused(both):
    ours, _ = both
    for adapters, how, said in (
        (["a", "b"], "ties", "ad.combine"),
        (["a"], "cat", "1 adapters and 2 weights"),
        (["a", "c"], "cat", "does not exist"),
    ):
        with pytest.raises(AdaptomeError, match=said):
            ours.add_weighted_adapter(adapters, [1.0, 1.0], "sum", combination_type=how)
    ours.add_adapter("c", LoraConfig(**settings(3)))
    with pytest.raises(AdaptomeError, match="ranks"):
        ours.add_weighted_adapter(["a", "c"], [1.0, 1.0], "sum", combination_type="linear")
    assert "sum" not in ours.peft_config


def test_the_card_tells_the_hub_and_leaves_what_is_written(both, tmp_path):
    yaml = pytest.importorskip("yaml")
    ours, _ = both
    ours.get_base_model().config._name_or_path = "openai/gpt2: 'small'"
    (tmp_path / "README.md").write_text("---\nlicense: mit\ntags:\n- mine\n---\n\n# Mine\n")
    for _ in range(2):  # twice is once
        ours.save_pretrained(tmp_path)
        _, head, body = (tmp_path / "README.md").read_text().split("---\n")
        told = yaml.safe_load(head)
        assert body == "\n# Mine\n" and told["license"] == "mit" and told["library_name"] == "peft"
        assert (
            told["base_model"] == "openai/gpt2: 'small'"
            and told["tags"].count("lora") == told["tags"].count("mine") == 1
        )
    ours.save_pretrained(tmp_path / "new")
    assert (
        yaml.safe_load((tmp_path / "new" / "README.md").read_text().split("---\n")[1])["base_model"]
        == told["base_model"]
    )


def test_it_is_pushed_as_it_is_saved(both, monkeypatch):
    import os
    from types import SimpleNamespace

    told = {}

    class Hub:
        def __init__(self, token):
            told["token"] = token

        def create_repo(self, name, private, exist_ok):
            return SimpleNamespace(repo_id=f"me/{name}")

        def upload_folder(self, repo_id, folder_path, commit_message):
            return repo_id, sorted(os.listdir(folder_path)), commit_message

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    assert both[0].push_to_hub("mine", token="t", selected_adapters=["a"]) == (
        "me/mine",
        ["README.md", "a"],
        "Upload adapter",
    )
    assert told == {"token": "t"}


def test_what_is_loaded_to_be_run_runs_without_dropout(both, tmp_path):
    from adaptome.peft import PeftModel

    both[0].save_pretrained(tmp_path, selected_adapters=["a"])
    assert not PeftModel.from_pretrained(base().train(), tmp_path / "a").training
    assert PeftModel.from_pretrained(base().train(), tmp_path / "a", is_trainable=True).training
