"""Loading models as recipes name them."""

from __future__ import annotations

import pytest
import torch

from adaptome.core.errors import MissingExtraError, RecipeError
from adaptome.tasks import models
from adaptome.tasks.models import (
    head_modules,
    load_config,
    load_labelled_config,
    load_pretrained,
    load_tokenizer,
    resolve,
)
from tests.tasks.tiny import small, spec


@pytest.fixture
def folder(tmp_path):
    """A saved BERT encoder without a head."""
    from transformers import AutoConfig, BertModel

    torch.manual_seed(0)
    given = small("bert", vocab_size=40)
    BertModel(AutoConfig.for_model(given.pop("model_type"), **given)).save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


def test_a_folder_loads_and_new_modules_are_told(folder):
    from transformers import AutoModelForSequenceClassification, BertModel

    model = spec(name=str(folder))
    loaded, new = load_pretrained(AutoModelForSequenceClassification, model, load_config(model, num_labels=3))
    assert new == ["classifier"]
    assert head_modules(loaded) == ["classifier"]
    assert loaded.config.num_labels == 3
    stored = BertModel.from_pretrained(folder).embeddings.word_embeddings.weight
    torch.testing.assert_close(loaded.bert.embeddings.word_embeddings.weight, stored)


def test_a_new_pooler_is_trained_with_the_head(tmp_path, tokenizer_folder):
    from transformers import AutoConfig, BertModel

    from adaptome.tasks import get_task

    given = small("bert", vocab_size=40)
    config = AutoConfig.for_model(given.pop("model_type"), **given)
    BertModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "bare")
    task = get_task("text-classification", pooling="cls")
    task.labels = ["a", "b"]
    built = task.load_model(spec(name=str(tmp_path / "bare"), tokenizer=tokenizer_folder))
    assert task.head_patterns(built) == ["classifier", "bert.pooler.dense"]


def test_a_head_of_another_size_is_made_anew(folder, tmp_path):
    from transformers import AutoModelForSequenceClassification

    model = spec(name=str(folder))
    first, _ = load_pretrained(AutoModelForSequenceClassification, model, load_config(model, num_labels=3))
    first.save_pretrained(tmp_path / "three")
    model = spec(name=str(tmp_path / "three"))
    second, new = load_pretrained(AutoModelForSequenceClassification, model, load_config(model, num_labels=5))
    assert (second.classifier.out_features, new) == (5, ["classifier"])


def test_a_checkpoint_without_the_base_is_refused(folder):
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForSequenceClassification

    weights = load_file(folder / "model.safetensors")
    kept = {k: v for k, v in weights.items() if "layer.1.attention" not in k}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    model = spec(name=str(folder))
    with pytest.raises(
        RecipeError,
        match=r"no weights for \d+ modules of BertForSequenceClassification's base, such as bert\.encoder",
    ):
        load_pretrained(AutoModelForSequenceClassification, model, load_config(model))


def test_an_encoder_is_no_causal_language_model(tmp_path, byte_tokenizer_folder):
    from transformers import AutoConfig, LlamaModel

    from adaptome.tasks import get_task

    given = small("llama", num_key_value_heads=2, vocab_size=258)
    LlamaModel(AutoConfig.for_model(given.pop("model_type"), **given)).save_pretrained(tmp_path / "body")
    with pytest.raises(RecipeError, match="the checkpoint has no weights for lm_head"):
        get_task("causal-lm").load_model(spec(name=str(tmp_path / "body"), tokenizer=byte_tokenizer_folder))


def test_dtype_and_attention_reach_the_model(folder):
    from transformers import AutoModel

    for model in (spec(name=str(folder)), spec(from_config=small("bert"))):
        model.dtype, model.attention = "bfloat16", "eager"
        loaded, _ = load_pretrained(AutoModel, model, load_config(model))
        assert (loaded.dtype, loaded.config._attn_implementation) == (torch.bfloat16, "eager")


def test_names_that_lead_nowhere_are_told(folder, monkeypatch):
    with pytest.raises(RecipeError, match=r"no such folder\. Near names: encoder\."):
        resolve(str(folder.parent / "encodr"))
    with pytest.raises(RecipeError, match=r"model_type 'brt' is not known\. Did you mean 'bert'\?"):
        load_config(spec(from_config={"model_type": "brt"}))
    with pytest.raises(
        RecipeError, match=r"comes without a tokenizer\. Name one, e\.g\. model\.tokenizer=minilm"
    ):
        load_tokenizer(spec(from_config=small("bert")))
    (folder / "config.json").unlink()
    with pytest.raises(RecipeError, match=r"could not be loaded: .*\n  Give a hub id"):
        load_config(spec(name=str(folder)))
    monkeypatch.setitem(models.PACKAGED, "absent", ("no_such_module", "model", "no-such-package"))
    with pytest.raises(MissingExtraError, match=r"no-such-package is not installed"):
        resolve("absent")


def test_what_a_checkpoint_has_more_is_told_where_it_lies_in_the_base_alone(folder, tmp_path, caplog, capfd):
    """transformers tells both in one table, beside a bar: a head that is left out is no reason to look up."""
    from transformers import AutoModel, AutoModelForSequenceClassification

    model = spec(name=str(folder))
    whole, _ = load_pretrained(AutoModelForSequenceClassification, model, load_config(model, num_labels=3))
    whole.save_pretrained(tmp_path / "whole")
    capfd.readouterr()
    other = spec(name=str(tmp_path / "whole"))
    load_pretrained(AutoModel, other, load_config(other))
    five = load_labelled_config(other, list("abcde"))
    assert load_pretrained(AutoModelForSequenceClassification, other, five)[1] == ["classifier"]
    assert (caplog.text, *capfd.readouterr()) == ("", "", "")
    load_pretrained(AutoModel, other, load_config(other, num_hidden_layers=1))
    assert (
        "16 weights of the checkpoint have no place in BertModel, such as bert.encoder.layer.1."
        in caplog.text
    )


def test_other_labels_than_the_checkpoints_are_no_reason_to_warn(folder, tmp_path, caplog):
    from transformers import AutoModelForSequenceClassification

    model = spec(name=str(folder))
    three = load_labelled_config(model, ["a", "b", "c"])
    load_pretrained(AutoModelForSequenceClassification, model, three)[0].save_pretrained(tmp_path / "three")
    config = load_labelled_config(spec(name=str(tmp_path / "three")), ["x", "y"])
    assert (config.num_labels, config.id2label, config.label2id) == (2, {0: "x", 1: "y"}, {"x": 0, "y": 1})
    assert caplog.text == ""
