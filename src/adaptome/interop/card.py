"""The model card beside an exported adapter: what it is, on which base, and how it is loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

CARD = "README.md"


def card(config: Mapping[str, Any], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """A page in Markdown with the entries that model hubs read.

    Args:
        config: PEFT's settings.
        tensors: of the adapter.
        metadata: of the tensors' file, see `provenance`.
    """
    base, kind = config.get("base_model_name_or_path"), str(config["peft_type"])
    # a path of this machine is no name for others
    named = isinstance(base, str) and bool(re.fullmatch(r"[\w.-]+(/[\w.-]+)?", base))
    numbers = sum(t.numel() for t in tensors.values())
    head = ["---", *([f"base_model: {base}"] if named else []), "library_name: peft", "tags:", "- adaptome", f"- {kind.lower()}", "---"]  # fmt: skip
    method = metadata.get("method", "?")
    facts = {
        "method it was trained by": f"`{method}`", "stored as": f"PEFT's {kind}", "numbers": f"{numbers:,}",
        "base": f"`{base}`" if named else "not named: load it on the model that it was trained on",
        "revision of the base": metadata.get("revision", "not recorded"), "structure of the base, SHA-256": metadata.get("base_names_sha256", "-"),
        "tensors, SHA-256": metadata.get("sha256", "-"),
    }  # fmt: skip
    if kind == "LORA":
        facts["rank and alpha"] = f"{config['r']} and {config['lora_alpha']}"
    table = ["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in facts.items())]
    used = [
        "```python", "from peft import PeftModel", "", 'model = PeftModel.from_pretrained(base, "path/to/this/folder")', "```",
    ]  # fmt: skip
    return "\n".join(
        [
            *head,
            "",
            "# Adapter",
            "",
            *table,
            "",
            "With `base` the model that it was trained on:",
            "",
            *used,
            "",
        ]
    )
