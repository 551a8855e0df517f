"""The pages of the documentation, their code blocks, and small models under the names that the pages use."""

from __future__ import annotations

import re
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "docs"))

import adaptome as ad  # noqa: E402

import generate  # noqa: E402  (docs/generate.py)

WRITTEN = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

_FENCE = re.compile(
    r"^(?P<indent>[ ]*)(?:<!-- not run: (?P<reason>[^\n]+) -->\n[ ]*)?```(?P<language>[^\n]*)\n(?P<code>.*?)^(?P=indent)```[ ]*$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, its first line in the page, and why it is not run (None: it is)."""

    language: str
    code: str
    line: int
    reason: str | None


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found = []
    for match in _FENCE.finditer(text):
        line = text.count("\n", 0, match.start("code")) + 1
        found.append(Block(match["language"].strip(), textwrap.dedent(match["code"]), line, match["reason"]))
    return found


def pages() -> dict[str, str]:
    """Every page by its name: the written ones, and the computed ones of the methods."""
    written = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in WRITTEN}
    computed = {f"methods/{name}.md": generate.method_page(cls) for name, cls in ad.list_methods().items()}
    return written | computed


_LLAMA = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
}
_ROBERTA = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 128,
    "max_position_embeddings": 66,
}
_VIT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
_CLIP_TEXT = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "meta-llama/Llama-3.2-1B": ("LlamaConfig", _LLAMA),
    "FacebookAI/roberta-base": ("RobertaConfig", _ROBERTA),
    "google/vit-base-patch16-224": ("ViTConfig", _VIT),
    "openai/clip-vit-base-patch32": ("CLIPConfig", {"text_config": _CLIP_TEXT, "vision_config": _VIT}),
}


def small_model(cls: type, name: str, **settings: Any) -> torch.nn.Module:
    """What `Auto....from_pretrained(name)` gives in these tests: the same architecture, tiny, always the same weights."""
    import transformers

    config, sizes = SMALL[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: torch.nn.Module = cls.from_config(getattr(transformers, config)(**sizes, **settings))
    return model.eval()
