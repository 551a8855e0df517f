"""Protein generation: texts and masks, what is left out, valid answers, measures, stages, and counts at full size."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Phi3Config

import adaptome as ad
from adaptome.core.errors import DataError, RecipeError, TargetError
from adaptome.data import load_splits
from adaptome.recipe import load_recipe, stages_of
from adaptome.tasks import get_task
from adaptome.training import load_run, run, run_stages
from tests.tasks.tiny import small, spec

TINY = {
    "from_config": small("llama", num_key_value_heads=2, vocab_size=258, max_position_embeddings=128),
    "tokenizer": "bytes",
}
ROWS = [
    {"sequence": s, "property": p}
    for s, p in [("MKVLAGHHE", "CheY"), ("MKVLCGHHE", "CheY"), ("WWYFPPQRS", "Trx"), ("WWYFPAQRS", "Trx")]
]


def splits(folder, rows=ROWS, test=None):
    files = {}
    for name, some in (("train", rows), ("test", test or rows)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
        files[name] = str(folder / f"{name}.jsonl")
    return load_splits(**files, validation_fraction=0)


def prepared(task, folder, rows=ROWS):
    processor = task.load_processor(spec(**TINY))
    return processor, task.prepare(splits(folder, rows), processor)


@pytest.mark.parametrize("prompt, text", [
    ("bracket", "[Generate CheY protein]\n"), ("superfamily", "[Generate by superfamily] Superfamily=<CheY>\n"), ("A {property}:", "A CheY:\n"),
])  # fmt: skip
def test_the_prompt_is_not_in_the_loss_and_the_sequence_whole(prompt, text, tmp_path):
    task = get_task("protein-generation", prompt=prompt)
    processor, data = prepared(task, tmp_path)
    row = data["train"][0]
    learned = [i for i in row["labels"] if i != -100]
    assert processor.decode(row["input_ids"], skip_special_tokens=True) == f"{text}Seq=<MKVLAGHHE>"
    assert (
        processor.decode(learned, skip_special_tokens=True) == "Seq=<MKVLAGHHE>"
        and learned[-1] == processor.eos_token_id
    )
    written = processor.decode(learned, skip_special_tokens=True).removeprefix("Seq=<")
    assert task.valid(written) == ("MKVLAGHHE", None)


def test_sequences_alone_are_all_in_the_loss(tmp_path):
    task = get_task("protein-generation", controlled=False)
    processor, data = prepared(task, tmp_path, [{"sequence": row["sequence"]} for row in ROWS])
    row = data["train"][0]
    assert processor.decode(row["input_ids"], skip_special_tokens=True) == "Seq=<MKVLAGHHE>"
    assert row["labels"][1:] == row["input_ids"][1:]


def test_what_cannot_be_learned_is_left_out_and_told(tmp_path):
    rows = [
        *ROWS,
        {"sequence": "MXV", "property": "Trx"},
        {"sequence": "Seq=<MBV>", "property": "Superfamily=<CheY>"},
        {"sequence": "A" * 90, "property": "Trx"},
    ]
    task = get_task("protein-generation", max_length=64)
    _, data = prepared(task, tmp_path, rows)
    told = "\n".join(data.notes)
    assert len(data["train"]) == 4 and task.labels == ["CheY", "Trx"]
    assert (
        "train: 1 sequences are left out: letters that are no amino acid (X) (the first: " in told
        and "train.jsonl, line 5" in told
    )
    assert (
        "train: 1 sequences are left out: with their prompts they exceed 64 tokens (task.max_length)" in told
    )
    mapped = get_task("protein-generation", letters="map", max_length=64)
    assert len(prepared(mapped, tmp_path, rows)[1]["train"]) == 5 and mapped.labels == ["CheY", "Trx"]
    with pytest.raises(DataError, match=r"no sequence of the train split is left; .*no amino acid"):
        prepared(get_task("protein-generation"), tmp_path, rows[4:5] * 2)
    task = get_task("protein-generation")
    with pytest.raises(
        DataError, match="property 'Chey' of the test split is none of train's. Did you mean 'CheY'"
    ):
        task.prepare(
            splits(tmp_path, ROWS, [{"sequence": "MKV", "property": "Chey"}]),
            task.load_processor(spec(**TINY)),
        )
    with pytest.raises(RecipeError, match=r"prompt='brackt' is none of bracket.*Did you mean 'bracket'"):
        get_task("protein-generation", prompt="brackt")


@pytest.mark.parametrize("text, reason", [
    ("MKVLAGHH>", None), ("MKVLAGHH> and more", None), ("MKVLAGHH", "without end"), ("MKXLAGHH>", "letters"), ("MKV>", "length"), (">", "empty"),
])  # fmt: skip
def test_valid_answers(text, reason):
    task = get_task("protein-generation", shortest=4, longest=20)
    assert task.valid(text)[1] == reason


def test_answers_are_sifted_and_counted():
    task, seen = get_task("protein-generation"), set()
    kept, out = task._sifted(["MKVLAGHH>", "MKVLAGHH>", "A" * 30 + ">", "MKV", "MKZ>", "WYFP>"], seen)
    assert kept == ["MKVLAGHH", "WYFP"] and out == {
        "repeated": 1,
        "low complexity": 1,
        "without end": 1,
        "letters": 1,
    }


def test_measures_of_what_was_written(tmp_path):
    rows = [
        {"sequence": s, "property": p}
        for p, s in [
            ("a", "MKVLAGHHE"),
            ("a", "MKVLAGHHD"),
            ("a", "MKVLAGHCE"),
            ("b", "WWYFPPQRS"),
            ("b", "WWYFPPQRT"),
            ("b", "WWYFPAQRS"),
        ]
    ]
    folds = tmp_path / "folds.csv"
    folds.write_text("name,plddt,tm\nMKVLAGHHE,70,0.5\nWWYFPPQNS,80,0.7\n")
    task = get_task("protein-generation", folds=str(folds))
    prepared(task, tmp_path, rows)
    said = [["MKVLAGHHE>"], ["WWYFPPQNS>"], ["WWYFPPQRS>"], ["MKV"]]
    answers = [{"property": p, "written": w, "sequences": w[:1]} for p, w in zip("aaba", said, strict=True)]
    found = task.judge(splits(tmp_path, rows)["test"], answers)
    assert found["valid"] == 0.75 and found["unique"] == 1 and found["property_accuracy"] == 0.5
    assert (
        found["property_accuracy_a"] == 0.5
        and found["property_accuracy_b"] == 1 == found["classifier_accuracy"]
    )
    assert found["nearest_identity"] == pytest.approx((1 + 8 / 9 + 1) / 3)
    assert (found["folded"], found["plddt"], found["tm"]) == (pytest.approx(2 / 3), 75, pytest.approx(0.6))


def test_two_stages_and_use(tmp_path):
    few = [
        "training.device=cpu",
        "stages.0.training.max_steps=2",
        "stages.1.training.max_steps=2",
        f"output={tmp_path / 'run'}",
        "data.limit=100",
    ]
    few += [
        "stages.0.data={name: 'made:protein-language', limit: 10}",
        "task.max_new_tokens=8",
        "evaluation.examples=1",
    ]
    result = run_stages(load_recipe("protein-lm-demo", few), callbacks=[])
    assert {"valid", "composition_divergence", "classifier_accuracy"} <= {*result.last.metrics}
    loaded = load_run(tmp_path / "run", ["task.samples=2"])
    task, model, processor = loaded.task, loaded.model, loaded.processor
    one, other = task.predict(model, processor, ["CheY: MKR", ""])
    assert (
        len(one["written"]) == 2
        and all(text.startswith("MKR") for text in one["written"])
        and other["property"] == "any"
    )
    assert task.predict(model, processor, ["CheY: MKR", ""])[0] == one
    with pytest.raises(DataError, match="Did you mean 'CheY'"):
        task.predict(model, processor, ["Chey"])
    with pytest.raises(DataError, match="the first residues have letters"):
        task.predict(model, processor, ["CheY: MX"])
    made, reading = task.metered(model, processor, ["CheY"])
    assert (
        reading["tokens"] == sum(len(ids) for ids in processor(made[0]["written"])["input_ids"]) > 0
        and reading["tokens_per_second"] > 0
        and reading["method"]
    )


def test_a_second_stage_starts_as_the_merged_first(tmp_path):
    rows = splits(tmp_path)
    data = {"train": str(tmp_path / "train.jsonl"), "validation_fraction": 0}
    lora = {"name": "lora", "r": 4, "targets": "all-linear"}
    recipe = load_recipe({
        "model": TINY, "task": {"name": "protein-generation", "controlled": False}, "data": data, "method": lora, "evaluation": {"split": "none"},
        "training": {"max_steps": 3, "batch_size": 4, "learning_rate": 0.01, "device": "cpu", "keep_best": False}, "output": str(tmp_path / "two"),
        "stages": [{"name": "language"}, {"name": "control", "start": "merged", "task": {"controlled": True}, "method": lora}],
    })  # fmt: skip
    (_, first), (_, second) = stages_of(recipe)
    run(first, callbacks=[])
    run(second, callbacks=[])
    before, after = load_run(first.output.folder), load_run(second.output.folder)
    ids = torch.tensor(before.processor("Seq=<" + rows["train"].rows["sequence"][0])["input_ids"])[None]
    with torch.no_grad():
        told = before.model(input_ids=ids).logits
        with ad.disabled(after.model):
            torch.testing.assert_close(after.model(input_ids=ids).logits, told, rtol=1e-4, atol=1e-5)
        path = after.model(input_ids=ids).logits
        ad.merge(after.model)
        torch.testing.assert_close(after.model(input_ids=ids).logits, path, rtol=1e-4, atol=1e-5)
        assert (path - told).abs().max() > 1e-3


LLAMA = LlamaConfig(
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
)
PHI = Phi3Config(
    vocab_size=32064,
    hidden_size=3072,
    intermediate_size=8192,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
)
NAMES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def whole():
    with torch.device("meta"):
        return {
            "llama": AutoModelForCausalLM.from_config(LLAMA),
            "phi": AutoModelForCausalLM.from_config(PHI),
        }


@pytest.mark.parametrize("kind, total, counts", [
    ("llama", 8_030_261_248, {128: 335_544_320, 64: 167_772_160, 32: 83_886_080}), ("phi", 3_821_079_552, {128: 201_326_592, 64: 100_663_296, 32: 50_331_648}),
])  # fmt: skip
def test_counts_at_full_size(whole, kind, total, counts):
    model = whole[kind]
    assert sum(p.numel() for p in model.parameters()) == total
    for r, count in counts.items():
        assert ad.plan(model, "lora", r=r, targets="all-linear").trainable == count


def test_unfused_names_on_fused_projections(whole):
    """A list of names that matches a part of the layers alone is refused; what those two alone would give is the sheet's figure."""
    assert ad.plan(whole["llama"], "lora", r=128, targets=NAMES).trainable == 335_544_320
    with pytest.raises(TargetError, match="q_proj"):
        ad.plan(whole["phi"], "lora", r=128, targets=NAMES)
    assert ad.plan(whole["phi"], "lora", r=128, targets=["o_proj", "down_proj"]).trainable == 71_303_168
    fused = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
    assert ad.plan(whole["phi"], "lora", r=128, targets=fused).trainable == 201_326_592
