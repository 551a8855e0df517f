"""A tokenizer in a GGUF file, where llama.cpp has its kind."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from adaptome.core.errors import MergeError

_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
#: how a byte-level tokenizer cuts text before merging, and whether whole words skip the merges -> llama.cpp's name for it
_KINDS = {(None, False): "gpt-2", (_SPLIT % "{1,3}", True): "llama-bpe", (_SPLIT % "", False): "qwen2"}


def add_vocabulary(writer: Any, tokenizer: Any, size: int, gguf: Any) -> tuple[str, ...]:
    """Write the tokens, their merges and scores, the special ones and the chat template.

    Args:
        writer: of the gguf package.
        tokenizer: of transformers; None for none.
        size: rows of the embedding; tokens beyond the tokenizer's are unused.
        gguf: the package.

    Raises:
        MergeError: llama.cpp would read text otherwise, or is not known to read it the same.
    """
    if tokenizer is None:
        writer.add_tokenizer_model("no_vocab")
        return ("no vocabulary is in the file: llama.cpp takes token ids only",)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        tokenizer.save_pretrained(folder)
        own = _own_model(tokenizer)
        if own is not None and not (folder / "tokenizer.model").is_file():
            (folder / "tokenizer.model").write_bytes(own.read_bytes())
        described = _described(folder)
        if described.get("model", {}).get("type") == "BPE" and not described["model"].get("byte_fallback"):
            writer.add_tokenizer_model("gpt2")
            writer.add_tokenizer_pre(_kind(described))
            _add_tokens(writer, gguf.BpeVocab(folder), size, gguf)
        elif (folder / "tokenizer.model").is_file():
            writer.add_tokenizer_model("llama")
            writer.add_tokenizer_pre("default")
            _add_tokens(writer, gguf.SentencePieceVocab(folder), size, gguf, scores=True)
        else:
            raise _unknown("has no SentencePiece model file (tokenizer.model) beside it")
        gguf.SpecialVocab(folder, load_merges=True, n_vocab=size).add_to_gguf(writer, quiet=True)
    return ()


def _own_model(tokenizer: Any) -> Path | None:
    """SentencePiece's file that a tokenizer was made from, which newer ones do not save again."""
    for place in (
        getattr(tokenizer, "vocab_file", None),
        Path(str(tokenizer.name_or_path)) / "tokenizer.model",
    ):
        if place and Path(place).name == "tokenizer.model" and Path(place).is_file():
            return Path(place)
    return None


def _described(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer.json"
    return dict(json.loads(path.read_text("utf-8"))) if path.is_file() else {}


def _kind(described: dict[str, Any]) -> str:
    """llama.cpp's name for the way a tokenizer cuts text."""
    before = described.get("pre_tokenizer") or {}
    steps = before.get("pretokenizers", [before])
    whole = bool(described["model"].get("ignore_merges"))
    cuts = [str(step["pattern"].get("Regex")) for step in steps if step.get("type") == "Split"]
    levels = [step for step in steps if step.get("type") == "ByteLevel"]
    if (
        len(levels) == 1
        and len(cuts) + 1 == len(steps)
        and len(cuts) < 2
        and not levels[0].get("add_prefix_space")
    ):
        regex = bool(levels[0].get("use_regex", True))
        found = _KINDS.get((cuts[0] if cuts else None, whole))
        if found is not None and regex == (not cuts):
            return found
    raise _unknown(f"cuts text in a way that is none of {', '.join(_KINDS.values())}")


def _unknown(why: str) -> MergeError:
    return MergeError(
        f"the tokenizer {why}, so that llama.cpp might read text otherwise; nothing was written.\n"
        "  Use ad.save_merged, and convert_hf_to_gguf.py on its folder, or tokenizer=None for a file that takes token ids."
    )


def _add_tokens(writer: Any, vocabulary: Any, size: int, gguf: Any, scores: bool = False) -> None:
    tokens = list(vocabulary.all_tokens())
    if len(tokens) > size:
        raise MergeError(
            f"the tokenizer has {len(tokens)} tokens, the model's embedding {size} rows; nothing was written."
        )
    tokens += [(f"[PAD{i}]".encode(), -10000.0, gguf.TokenType.UNUSED) for i in range(len(tokens), size)]
    writer.add_token_list([token for token, _, _ in tokens])
    if scores:
        writer.add_token_scores([score for _, score, _ in tokens])
    writer.add_token_types([kind for _, _, kind in tokens])
