"""`adaptome quantize`: a folder in, a folder out that loads again."""

import json

import pytest
import torch
from typer.testing import CliRunner

import adaptome as ad
from adaptome.cli._app import build

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Llama with a byte-level tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    path = tmp_path_factory.mktemp("model")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokens).save_pretrained(path)
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2, vocab_size=256, tie_word_embeddings=False
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    return path


def call(*arguments):
    return CliRunner().invoke(build(), ["quantize", *map(str, arguments)])


@pytest.mark.parametrize(
    "options",
    [
        ["--scheme", "uniform", "--bits", "3", "--set", "group=32"],
        ["--scheme", "gptq", "--text", "TEXT", "--length", "16", "--set", "magr=true"],
        ["--scheme", "sketch", "--set", "tables=2", "--targets", "mlp"],
        ["--scheme", "uniform", "--set", "group=32", "--format", "gptq"],
    ],
)
def test_the_written_folder_loads(folder, tmp_path, options):
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 20)
    options = [str(text) if o == "TEXT" else o for o in options]
    done = call(folder, tmp_path / "out", *options, "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout[done.stdout.index("{") :])
    assert told["after"] < told["before"] and len(told["layers"]) == (3 if "mlp" in options else 7)
    written = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert written["quant_method"] == told["format"] == ("gptq" if "gptq" in options[-1:] else "adaptome")
    model = ad.load_quantized(tmp_path / "out")
    assert type(model.model.layers[0].mlp.up_proj).__name__ == "PackedLinear"
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = torch.tensor([tokenizer("a fox")["input_ids"]])
    assert torch.isfinite(model(ids).logits).all()
    again = call(folder, tmp_path / "out")
    assert again.exit_code != 0 and "not empty" in str(again.exception)


def test_wrong_settings_are_told(folder, tmp_path):
    for options, words in (
        (["--scheme", "gptq"], "calibration data"),
        (["--scheme", "unifrom"], "Nearest: uniform"),
        (["--set", "grup=3"], "Did you mean 'group'"),
        (["--scheme", "gptq", "--text", tmp_path / "none.txt"], "no such file"),
    ):
        done = call(folder, tmp_path / "x", *options)
        assert done.exit_code != 0 and words in str(done.exception), done.output
        assert not (tmp_path / "x").exists()
