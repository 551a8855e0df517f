"""The recipes for entities: the demonstration in few steps, the papers' at full size by their counts, and what two stages leave behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    DebertaV2Config,
    ElectraConfig,
    pipeline,
)

import adaptome as ad
from adaptome.recipe import load_recipe, stages_of
from adaptome.training import load_run, run_stages
from tests.tasks.conftest import tokenizer_folder  # noqa: F401
from tests.tasks.tiny import small

FOLDER = Path(ad.__file__).parent / "recipes" / "token-classification"
PAPERS = sorted(p.stem for p in FOLDER.glob("*.yaml") if p.stem != "openmed-demo")
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
#: the published sizes of the backbones
CONFIGS = {
    "openmed-deberta": lambda: DebertaV2Config(
        **LARGE, vocab_size=128100, max_position_embeddings=512, type_vocab_size=0, relative_attention=True,
        position_buckets=256, norm_rel_ebd="layer_norm", share_att_key=True, pos_att_type=["p2c", "c2p"], position_biased_input=False,
    ),
    "openmed-pubmedbert": lambda: BertConfig(**LARGE, vocab_size=30522),
    "openmed-bioelectra": lambda: ElectraConfig(**LARGE, embedding_size=1024, vocab_size=30522),
}  # fmt: skip
SHARES = {"openmed-deberta": 434e6, "openmed-pubmedbert": 335e6, "openmed-bioelectra": 335e6}


@pytest.mark.parametrize("name", PAPERS)
def test_the_papers_counts_at_full_size(name):
    """2,359,296 numbers for query, key and value of 24 layers, and a head of 1,025 for each label; below 1.5 %."""
    with torch.device("meta"):
        config = CONFIGS[name]()
        config.num_labels = 3
        model = AutoModelForTokenClassification.from_config(config)
    section = stages_of(load_recipe(name))[1][1].methods[0]
    plan = ad.plan(model, section.name, targets=section.targets, train="classifier", **section.settings)
    assert plan.trainable == 2_359_296 + 1025 * 3
    total = sum(p.numel() for p in model.parameters())
    assert total == pytest.approx(SHARES[name], rel=0.01) and plan.trainable / total < 0.015
    counts = {"qv": 1_572_864, "qkvo": 3_145_728}
    for which, count in counts.items():
        assert ad.plan(model, "lora", r=16, targets=list(which)).trainable == count


def test_the_recipes_are_the_papers():
    assert set(PAPERS) == set(CONFIGS)
    for name in PAPERS:
        texts, ner = (recipe for _, recipe in stages_of(load_recipe(name)))
        assert texts.task.name == "masked-lm" and ner.task.name == "token-classification"
        for recipe in (texts, ner):
            assert recipe.methods[0].settings == {"r": 16, "alpha": 32, "dropout": 0.05}
        assert 1e-4 <= texts.training.learning_rate <= 2e-4 and 5e-5 <= ner.training.learning_rate <= 5e-4
        assert ner.start.how == "merged"


@pytest.fixture
def demo(tmp_path, tokenizer_folder):  # noqa: F811
    """The demonstration in few steps on a small model."""

    def make(*changes, second=None):
        content = yaml.safe_load((FOLDER / "openmed-demo.yaml").read_text())
        content["model"] = {"from_config": small("bert", vocab_size=40), "tokenizer": tokenizer_folder}
        for stage in content["stages"]:
            stage["training"] |= {"max_steps": 4, "eval_steps": 4, "save_steps": 4, "learning_rate": 0.02}
        if second:
            content["stages"][1] |= second
            content["stages"][1] = {k: v for k, v in content["stages"][1].items() if v is not None}
        return load_recipe(
            content, [f"output={tmp_path / 'out'}", "training.device=cpu", "data.limit=40", *changes]
        )

    return make


def encoder(model):
    return {n: p.detach().clone() for n, p in model.bert.named_parameters() if "adaptome" not in n}


def test_without_the_second_adapter_the_pre_trained_model_is_left(demo, tmp_path):
    made = run_stages(demo(), [])
    texts, ner = made.stages.values()
    assert texts.metrics["perplexity"] < texts.metrics["perplexity_before"]
    assert "f1" in ner.metrics and any("masked-LM head" in note for note in texts.notes)
    out = tmp_path / "out"
    merged = load_run(out / "1-texts").model
    start = encoder(merged)
    ad.merge(merged, keep=False)
    loaded = load_run(out).model
    assert list(ad.adapters(loaded)) == ["default"]
    ad.detach(loaded)
    found = encoder(loaded)
    assert found.keys() == encoder(merged).keys()
    for key, value in encoder(merged).items():
        assert torch.equal(found[key], value), key
    assert any(not torch.equal(start[key], found[key]) for key in found)


def test_with_one_adapter_there_is_no_second_and_the_base_is_as_it_was(demo, tmp_path):
    second = {"start": "adapter", "method": None}
    run_stages(demo(second=second), [])
    out = tmp_path / "out"
    first, loaded = load_run(out / "1-texts").model, load_run(out).model
    assert list(ad.adapters(loaded)) == ["default"]
    for key, value in encoder(first).items():
        assert torch.equal(encoder(loaded)[key], value)


def test_the_merged_model_is_a_plain_one(demo, tmp_path):
    """It says what the run says, keeps its labels, and works in transformers' pipeline; the adapter is small."""
    run_stages(demo(), [])
    out = tmp_path / "out"
    loaded = load_run(out)
    ids = torch.randint(5, 30, (2, 9))
    with torch.no_grad():
        before = loaded.model(input_ids=ids).logits
    ad.merge(loaded.model, keep=False)
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(input_ids=ids).logits, before, atol=1e-4, rtol=0)
    loaded.task.save_base(loaded.model, loaded.processor, tmp_path / "merged")
    plain = AutoModelForTokenClassification.from_pretrained(tmp_path / "merged")
    assert plain.config.id2label == dict(enumerate(loaded.task.labels))
    with torch.no_grad():
        torch.testing.assert_close(plain(input_ids=ids).logits, before, atol=1e-4, rtol=0)
    tagger = pipeline("ner", model=plain, tokenizer=AutoTokenizer.from_pretrained(tmp_path / "merged"))
    assert {one["entity"] for one in tagger("the cat runs in paris")} <= set(loaded.task.labels)


def test_an_adapter_of_the_papers_size_is_below_ten_megabytes(tmp_path):
    config = BertConfig(vocab_size=20, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=8, num_labels=3)  # fmt: skip
    model = AutoModelForTokenClassification.from_config(config)
    ids = torch.randint(0, 20, (1, 5))
    with torch.no_grad():
        before = model.eval()(input_ids=ids).logits
    ad.attach(model, "lora", r=16, alpha=32, targets=["q", "k", "v"], train="classifier")
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, before)
    size = (ad.save(model, tmp_path / "a") / "adapter.safetensors").stat().st_size
    assert 4 * 2_362_371 < size < 10e6
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    model(input_ids=ids, labels=ids % 3).loss.backward()
    optimizer.step()
    held = sum(v.numel() for state in optimizer.state.values() for v in state.values() if v.numel() > 1)
    assert held == 2 * (2_359_296 + 3_075)


def test_a_start_on_the_demonstrations_data_repeats():
    from adaptome.data import load_splits

    first, again, other = (load_splits("made:biomedical-entities", split_seed=s) for s in (0, 0, 1))
    assert first["train"].rows[:] == again["train"].rows[:] != other["train"].rows[:]
    texts = load_splits("made:biomedical-texts", split_seed=0)
    assert {k: len(v) for k, v in texts.items()} == {"train": 600, "validation": 100, "test": 100}
    named = {w for row in first["train"].rows["tokens"] for w in row}
    unseen = {w for row in first["test"].rows["tokens"] for w in row} - named
    assert len(unseen) > 60
