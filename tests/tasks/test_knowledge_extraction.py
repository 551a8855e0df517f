"""Knowledge extraction: marks, cloze and mask, the state that is read, label words, and what is refused."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from adaptome.core.errors import DataError, RecipeError
from adaptome.data.splits import Splits, Table, to_split
from adaptome.tasks import get_task, task_from_dict
from adaptome.tasks.clozes import CueCollator
from adaptome.tasks.knowledge_extraction import label_words
from tests.tasks.tiny import small, spec

WORDS = "anna lives in paris".split()
SPAREFUL = ["[unused1]", "[unused2]", "[unused3]", "[unused4]"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from transformers import BertTokenizer

    words = ["anna", "bob", "lives", "in", "paris", "this", "sentence", ",", "is", "the", "of", "a", ".", "runs", "city"]  # fmt: skip
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *SPAREFUL, *words]
    folder = tmp_path_factory.mktemp("spare")
    BertTokenizer(vocab={w: i for i, w in enumerate(vocab)}, model_max_length=64).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def model(tokenizer):
    return spec(from_config=small("llama", vocab_size=40, num_key_value_heads=2), tokenizer=tokenizer)


def splits_of(**columns):
    table = Table("rows", columns, range(1, len(columns["label"]) + 1), "row")
    return Splits({"train": to_split([table], "train")})


def relations(labels=("home", "job"), **more):
    count = len(labels)
    return splits_of(
        tokens=[WORDS] * count, head=[[[0, 1]]] * count, tail=[[[3, 4]]] * count, label=[*labels], **more
    )


def test_a_relation_is_read_at_the_mask_of_a_cloze(model):
    task = get_task("knowledge-extraction")
    processor = task.load_processor(model)
    data = task.prepare(relations(), processor)
    row = data["train"][0]
    told = processor.convert_ids_to_tokens(row["input_ids"])
    assert " ".join(told) == (
        "[CLS] [unused1] anna [unused2] lives in [unused3] paris [unused4] "
        "in this sentence , paris is the [MASK] of anna . [SEP]"
    )
    assert told[row["cue"]] == "[MASK]" and len(processor) == 24  # marks were in the vocabulary
    torch.manual_seed(0)
    built = task.load_model(model, processor).eval()
    batch = data.collator([data["train"][n] for n in range(2)])
    states = built.encoder(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
    ).last_hidden_state
    expected = states[0, row["cue"]] @ built.classifier.weight.T + built.classifier.bias
    torch.testing.assert_close(built(**batch).logits[0], expected)


def test_padding_changes_no_answer(model):
    task = get_task("knowledge-extraction")
    processor = task.load_processor(model)
    task.prepare(relations(), processor)
    built = task.load_model(model, processor).eval()
    short, long = "<h>anna</h> in <t>paris</t>", "<h>bob</h> lives in the city of <t>paris</t>"
    (alone,), (first, _) = (task.predict(built, processor, x) for x in ([short], [short, long]))
    assert alone["label"] == first["label"]
    assert alone["score"] == pytest.approx(first["score"], abs=1e-5)


def test_a_type_is_read_at_its_own_cloze(model):
    task = get_task("knowledge-extraction")
    processor = task.load_processor(model)
    made = splits_of(tokens=[WORDS] * 2, mention=[[[3, 4]]] * 2, label=["city", "person"])
    row = task.prepare(made, processor)["train"][0]
    told = " ".join(processor.convert_ids_to_tokens(row["input_ids"]))
    assert "[unused1] paris [unused2] in this sentence , paris is a [MASK] . [SEP]" in told
    assert task.inputs(made["train"].rows) == 2 * ["anna lives in <m>paris</m>"]


def test_the_sentence_is_cut_and_the_cloze_never(model):
    task = get_task("knowledge-extraction", max_length=20)
    processor = task.load_processor(model)
    long = splits_of(
        tokens=[[*WORDS, *["runs"] * 30]] * 2, head=[[[0, 1]]] * 2, tail=[[[3, 4]]] * 2, label=["x", "y"]
    )
    data = task.prepare(long, processor)
    row = data["train"][0]
    told = processor.convert_ids_to_tokens(row["input_ids"])
    assert len(told) == 20 and told[row["cue"]] == "[MASK]"
    assert told[-12:] == "in this sentence , paris is the [MASK] of anna . [SEP]".split()
    assert any("2 of 2 examples of train exceed 20 tokens" in note for note in data.notes)
    with pytest.raises(DataError, match="alone has more tokens"):
        task = get_task("knowledge-extraction", max_length=16, prompt="{mask} " + "is " * 40 + "{head}")
        task.prepare(relations(), task.load_processor(model))


def test_label_words_begin_the_classifier(model):
    task = get_task("knowledge-extraction", head="words", label_words={"home": "lives in"})
    processor = task.load_processor(model)
    task.prepare(relations(labels=("home", "city")), processor)
    torch.manual_seed(0)
    built = task.load_model(model, processor)
    torch.manual_seed(0)
    whole = AutoModelForCausalLM.from_config(built.encoder.config, dtype=torch.float32)
    table = whole.get_output_embeddings().weight
    ids = processor.convert_tokens_to_ids(["lives", "in", "city"])
    assert task.labels == ["city", "home"]
    torch.testing.assert_close(built.classifier.weight[1], table[ids[:2]].mean(0))
    torch.testing.assert_close(built.classifier.weight[0], table[ids[2]])
    assert label_words("person-artist/author") == "person artist author"


def test_it_comes_back_from_its_description(model):
    task = get_task("knowledge-extraction", markers=SPAREFUL, prompt="{head} is {mask} {tail}")
    processor = task.load_processor(model)
    task.prepare(relations(), processor)
    again = task_from_dict(task.to_dict())
    assert again.labels == ["home", "job"]
    built = again.load_model(model, processor)
    (told,) = again.predict(built, processor, ["<h>anna</h> lives in <t>paris</t>"])
    assert set(told["scores"]) == {"home", "job"}


def test_what_cannot_be_done_is_told(model, tokenizer_folder):
    with pytest.raises(RecipeError, match="no token '\\[unused1\\]'"):
        get_task("knowledge-extraction").load_processor(spec(tokenizer=tokenizer_folder))
    task = get_task("knowledge-extraction", prompt="{head} of {tial} {mask}")
    with pytest.raises(RecipeError, match="'tial' is none of mask, head, tail"):
        task.prepare(relations(), task.load_processor(model))
    task = get_task("knowledge-extraction", prompt="{head} of {tail}")
    with pytest.raises(RecipeError, match="has no {mask}"):
        task.prepare(relations(), task.load_processor(model))
    task = get_task("knowledge-extraction")
    processor = task.load_processor(model)
    task.prepare(relations(), processor)
    with pytest.raises(DataError, match="mark the entities"):
        task.predict(task.load_model(model, processor), processor, ["anna lives in paris"])
    with pytest.raises(DataError, match="row 1: head has no place"):
        task.prepare(splits_of(tokens=[WORDS] * 2, head=[[], [[0, 1]]], tail=[[[3, 4]]] * 2, label=["home", "job"]), processor)  # fmt: skip


def test_batches_are_padded_at_the_end():
    batch = CueCollator(9)([{"input_ids": [1, 2], "cue": 1}, {"input_ids": [1, 2, 3], "cue": 0}])
    assert batch["input_ids"].tolist() == [[1, 2, 9], [1, 2, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]] and "labels" not in batch
