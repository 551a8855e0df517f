"""adaptome.peft beside PEFT: the same counts, keys and outputs from one script with another import."""

import copy
import json

import peft
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

import adaptome.peft as ours
from adaptome.core.errors import CheckpointError, KeyMismatchError, MethodError, StateError, TargetError

X = torch.arange(14).view(2, 7)


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, vocab_size=50,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def base(llama):
    return copy.deepcopy(llama)


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=X).logits


def randomised(model):
    """The adapter's tensors redrawn, by PEFT's keys."""
    torch.manual_seed(1)
    kept = ("vera_A", "vera_B", "delora_w_norm", ".zeros")  # drawn from a seed, or the base's
    drawn = {
        k: v if k.endswith(kept) or not v.is_floating_point() else 0.1 * torch.randn_like(v)
        for k, v in ours.get_peft_model_state_dict(model).items()
    }
    ours.set_peft_model_state_dict(model, drawn)
    return drawn


QV = ["q_proj", "v_proj"]
CASES = {
    "lora": ("LoraConfig", {}),
    "rslora, patterns": ("LoraConfig", {"use_rslora": True, "rank_pattern": {"q_proj": 4}, "alpha_pattern": {"v_proj": 3}}),
    "dora": ("LoraConfig", {"use_dora": True, "target_modules": QV}),
    "all-linear": ("LoraConfig", {"target_modules": "all-linear", "exclude_modules": ["up_proj"]}),
    "regex, layers": ("LoraConfig", {"target_modules": ["q_proj"], "layers_to_transform": [1]}),
    "head": ("LoraConfig", {"modules_to_save": ["lm_head"]}),
    "loha": ("LoHaConfig", {"target_modules": QV}),
    "lokr": ("LoKrConfig", {"target_modules": QV}),
    "ia3": ("IA3Config", {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]}),
    "vera": ("VeraConfig", {"r": 8, "target_modules": ["q_proj"]}),
    "fourierft": ("FourierFTConfig", {"n_frequency": 20, "target_modules": QV}),
    "boft": ("BOFTConfig", {"target_modules": QV}),
    "boft by number": ("BOFTConfig", {"target_modules": QV, "boft_block_size": 0, "boft_block_num": 4}),
    "oft": ("OFTConfig", {"target_modules": QV, "oft_block_size": 8}),
    "oft by number": ("OFTConfig", {"target_modules": QV, "oft_block_size": 0, "r": 4}),
    "oft bounded": ("OFTConfig", {"target_modules": QV, "oft_block_size": 8, "coft": True, "eps": 0.05, "module_dropout": 0.5}),
    "boft dropout": ("BOFTConfig", {"target_modules": QV, "boft_dropout": 0.5}),
    "adalora": ("AdaLoraConfig", {"target_modules": QV, "total_step": 10}),
    "beft": ("BeftConfig", {"target_modules": ["v_proj"]}),
    "c3a": ("C3AConfig", {"block_size": 8, "block_size_pattern": {"v_proj": 4}}),
    "deft": ("DeftConfig", {"r": 4, "alpha": 8}),
    "deft, qr": ("DeftConfig", {"r": 4, "decomposition_method": "qr", "target_modules": ["down_proj"]}),
    "deft, para": ("DeftConfig", {"r": 4, "para": True}),
    "delora": ("DeloraConfig", {"rank_pattern": {"v_proj": 3}}),
    "glora": ("GloraConfig", {"r": 3}),
    "glora, vectors": ("GloraConfig", {"config_A_B": "vector", "config_C": "none", "config_D_E": "vector"}),
    "gralora": ("GraloraConfig", {"r": 4, "hybrid_r": 2}),
    "hira": ("HiraConfig", {"r": 4}),
    "hra": ("HRAConfig", {"r": 4}),
    "hra, orthonormal": ("HRAConfig", {"r": 3, "apply_GS": True}),
    "miss": ("MissConfig", {"r": 5, "miss_dropout": 0.5}),
    "miss, mini": ("MissConfig", {"r": 4, "init_weights": "mini", "mini_r": 2}),
    "miss, bat": ("MissConfig", {"r": 4, "init_weights": "bat"}),
    "peanut": ("PeanutConfig", {"r": 4, "depth": 2, "act_fn": "gelu", "scaling": 2.0}),
    "road": ("RoadConfig", {"group_size": 8}),
    "road, 4": ("RoadConfig", {"group_size": 8, "variant": "road_4"}),
    "shira": ("ShiraConfig", {"r": 2}),
    "vblora": ("VBLoRAConfig", {"r": 2, "num_vectors": 10, "vector_length": 8, "target_modules": QV}),
    "waveft": ("WaveFTConfig", {"n_frequency": 20, "wavelet_family": "db2", "n_frequency_pattern": {"v_proj": 9}}),
    "norms": ("LNTuningConfig", {"target_modules": ["input_layernorm"]}),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_the_same_script_gives_the_same_model(case, base, llama, tmp_path):
    config, settings = CASES[case]
    mine = ours.get_peft_model(base, getattr(ours, config)(task_type="CAUSAL_LM", **settings))
    theirs = peft.get_peft_model(
        copy.deepcopy(llama), getattr(peft, config)(task_type="CAUSAL_LM", **settings)
    )
    assert isinstance(mine, ours.PeftModelForCausalLM)
    drawn = randomised(mine)
    assert {k: v.shape for k, v in drawn.items()} == {
        k: v.shape for k, v in peft.get_peft_model_state_dict(theirs).items()
    }
    peft.set_peft_model_state_dict(theirs, drawn)
    torch.testing.assert_close(logits(mine), logits(theirs), rtol=1e-5, atol=1e-5)
    mine.save_pretrained(tmp_path / "mine")
    theirs.save_pretrained(tmp_path / "theirs")
    read_there = peft.PeftModel.from_pretrained(copy.deepcopy(llama), tmp_path / "mine")
    read_here = ours.PeftModel.from_pretrained(copy.deepcopy(llama), tmp_path / "theirs")
    torch.testing.assert_close(logits(read_there), logits(theirs), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits(read_here), logits(theirs), rtol=1e-5, atol=1e-5)


def test_counts_are_those_of_peft(base, llama, capsys):
    mine = ours.get_peft_model(base, ours.LoraConfig(task_type=ours.TaskType.CAUSAL_LM))
    theirs = peft.get_peft_model(copy.deepcopy(llama), peft.LoraConfig(task_type="CAUSAL_LM"))
    assert mine.get_nb_trainable_parameters() == theirs.get_nb_trainable_parameters()
    mine.print_trainable_parameters()
    printed = capsys.readouterr().out
    theirs.print_trainable_parameters()
    assert printed == capsys.readouterr().out


def test_a_start_off_the_base_changes_the_outputs(base, llama):
    model = ours.get_peft_model(base, ours.LoraConfig(init_lora_weights=False))
    assert not torch.allclose(logits(model), logits(llama))


def test_several_adapters(base, llama, tmp_path):
    model = ours.get_peft_model(base, ours.LoraConfig(init_lora_weights=False))
    first = logits(model)
    model.add_adapter("other", ours.LoHaConfig(target_modules=["q_proj"], init_weights=False))
    assert (model.active_adapter, list(model.peft_config)) == ("default", ["default", "other"])
    torch.testing.assert_close(logits(model), first)
    model.set_adapter("other")
    second = logits(model)
    assert model.active_adapters == ["other"] and not torch.allclose(first, second)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained and all(".other." in n for n in trained)
    with model.disable_adapter():
        torch.testing.assert_close(logits(model), logits(llama))
    torch.testing.assert_close(logits(model), second)
    model.disable_adapter_layers()
    torch.testing.assert_close(logits(model), logits(llama))
    model.enable_adapter_layers()
    model.save_pretrained(tmp_path)
    assert (tmp_path / "other" / "adapter_config.json").is_file()
    again = ours.PeftModel.from_pretrained(copy.deepcopy(llama), tmp_path)
    assert again.load_adapter(tmp_path / "other", "other").missing_keys == []
    torch.testing.assert_close(logits(again), first)
    again.set_adapter("other")
    torch.testing.assert_close(logits(again), second)
    model.delete_adapter("other")
    assert model.active_adapters == ["default"]
    torch.testing.assert_close(logits(model), first)


def test_merge_unmerge_unload(base, llama):
    model = ours.get_peft_model(base, ours.LoraConfig(init_lora_weights=False))
    before, weights = logits(model), copy.deepcopy(base.state_dict())
    model.merge_adapter()
    torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-5)
    with pytest.warns(UserWarning, match="already merged"):
        model.merge_adapter()
    with pytest.raises(ValueError, match="while they are merged"):
        model.delete_adapter("default")
    with model.disable_adapter():
        torch.testing.assert_close(logits(model), logits(llama))
    model.unmerge_adapter()
    assert all(torch.equal(v, weights[k]) for k, v in base.state_dict().items())
    other = copy.deepcopy(model)
    plain = model.merge_and_unload(safe_merge=True)
    assert type(plain) is LlamaForCausalLM and plain.state_dict().keys() == llama.state_dict().keys()
    torch.testing.assert_close(logits(plain), before, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits(other.unload()), logits(llama))


def test_any_method_of_ours(base, llama, tmp_path):
    model = ours.get_peft_model(
        base, ours.AdaptomeConfig("mos", r=4, targets="attention", task_type="CAUSAL_LM")
    )
    randomised(model)
    model.save_pretrained(tmp_path)
    again = ours.PeftModel.from_pretrained(copy.deepcopy(llama), tmp_path)
    assert isinstance(again.peft_config["default"], ours.AdaptomeConfig)
    torch.testing.assert_close(logits(again), logits(model), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore")
def test_pissa_is_saved_relative_to_the_base_as_it_is(base, llama, tmp_path):
    model = ours.get_peft_model(base, ours.LoraConfig(init_lora_weights="pissa", r=4))
    randomised(model)
    model.save_pretrained(tmp_path)
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(llama), tmp_path)
    torch.testing.assert_close(logits(theirs), logits(model), rtol=1e-4, atol=1e-5)


def test_a_classifier_trains_its_head():
    torch.manual_seed(0)
    bert = BertForSequenceClassification(
        BertConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, vocab_size=30
        )
    )
    mine = ours.get_peft_model(copy.deepcopy(bert), ours.LoraConfig(task_type="SEQ_CLS"))
    theirs = peft.get_peft_model(copy.deepcopy(bert), peft.LoraConfig(task_type="SEQ_CLS"))
    assert mine.get_nb_trainable_parameters()[0] == theirs.get_nb_trainable_parameters()[0]
    assert ours.get_peft_model_state_dict(mine).keys() == peft.get_peft_model_state_dict(theirs).keys()


def test_injected_into_a_model_of_ones_own():
    net = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    assert ours.inject_adapter_in_model(ours.LoraConfig(r=2, target_modules=["0"]), net) is net
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == 2 * (6 + 4)


def test_made_ready_for_training_on_packed_weights(base):
    model = ours.prepare_model_for_kbit_training(
        base.to(torch.bfloat16), gradient_checkpointing_kwargs={"use_reentrant": False}
    )
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in model.parameters())
    model = ours.get_peft_model(model, ours.LoraConfig(task_type="CAUSAL_LM"))
    model.train()(input_ids=X, labels=X).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_half_precision_is_kept_when_asked(base):
    for autocast, expected in ((True, torch.float32), (False, torch.bfloat16)):
        model = ours.get_peft_model(
            copy.deepcopy(base).to(torch.bfloat16), ours.LoraConfig(), autocast_adapter_dtype=autocast
        )
        assert {p.dtype for p in model.parameters() if p.requires_grad} == {expected}


def test_refusals(base, tmp_path):
    with pytest.raises(TargetError, match="Near names: q_proj"):
        ours.get_peft_model(base, ours.LoraConfig(target_modules=["q_prj"]))
    with pytest.raises(MethodError, match="bias='all'"):
        ours.get_peft_model(base, ours.LoraConfig(bias="all"))
    with pytest.raises(MethodError, match="none of the configurations here"):
        ours.get_peft_model(base, peft.LoraConfig())
    with pytest.raises(MethodError, match="CAUSAL_LM"):
        ours.LoraConfig(task_type="CAUSAL")
    assert type(base) is LlamaForCausalLM
    assert not any("adaptome" in n for n, _ in base.named_modules())
    model = ours.get_peft_model(base, ours.LoraConfig())
    with pytest.raises(ValueError, match="does not exist"):
        model.set_adapter("other")
    with pytest.raises(StateError, match="pickle"):
        model.save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(KeyMismatchError):
        ours.set_peft_model_state_dict(model, {"base_model.model.nothing.lora_A.weight": torch.ones(8, 3)})
    with pytest.raises(CheckpointError, match="no folder"):
        ours.PeftModel.from_pretrained(base, tmp_path / "nowhere")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "XLORA"}))
    with pytest.raises(CheckpointError, match="XLORA"):
        ours.PeftModel.from_pretrained(base, tmp_path)
