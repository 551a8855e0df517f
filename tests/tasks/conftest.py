"""Small tokenizers, made here: nothing is downloaded."""

from __future__ import annotations

import pytest

from tests.tasks.tiny import WORDS


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory) -> str:
    """A BERT tokenizer over WORDS and pieces of them."""
    from transformers import BertTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "##s", "##ing", "play", ".", ","]
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n")
    BertTokenizer(vocab={word: i for i, word in enumerate(vocab)}, model_max_length=64).save_pretrained(
        folder
    )
    return str(folder)


@pytest.fixture(scope="session")
def byte_tokenizer_folder(tmp_path_factory) -> str:
    """A tokenizer of single bytes with an end-of-sequence token and a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<pad>", "<eos>", *alphabet])}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<pad>")
    made.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    folder = tmp_path_factory.mktemp("bytes")
    made.save_pretrained(folder)
    return str(folder)
