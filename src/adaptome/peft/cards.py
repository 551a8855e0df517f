"""The model card of PEFT's folders: README.md, whose head tells the hub what the folder is."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from adaptome.core.errors import MissingExtraError
from adaptome.core.files import write_atomic
from adaptome.core.version import __version__
from adaptome.peft.configs import PeftConfig

NAME = "README.md"
_HEAD = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)


def write_card(folder: Path, model: nn.Module, configs: Mapping[str, PeftConfig]) -> None:
    """Write the card, or put what is known into the head of the card that is there, whose text stays.

    Args:
        folder: of the adapters.
        model: with its `config`, where it is a model of transformers.
        configs: of the adapters, by name.

    Raises:
        MissingExtraError: there is a card, and no yaml to read its head.
    """
    path = folder / NAME
    text = path.read_text("utf-8") if path.is_file() else ""
    found = _HEAD.match(text)
    known = _known(model, configs)
    head = _read(found[1]) if found else {}
    tags = (
        [*head.get("tags", []), *known.pop("tags")]
        if isinstance(head.get("tags", []), list)
        else known.pop("tags")
    )
    head |= known | {"tags": list(dict.fromkeys(tags))}
    body = (
        text[found.end() :]
        if found
        else text
        or _BODY.format(methods=", ".join(sorted({_name(c) for c in configs.values()})), version=__version__)
    )
    write_atomic(path, f"---\n{_written(head)}---\n{body}")


_BODY = """
# An adapter

Made with adaptome {version}: {methods}.
"""


def _name(config: PeftConfig) -> str:
    return config.method()[0] if config.kind == "ADAPTOME" else config.kind


def _known(model: nn.Module, configs: Mapping[str, PeftConfig]) -> dict[str, Any]:
    known: dict[str, Any] = {
        "library_name": "peft",
        "tags": [
            f"base_model:adapter:{c.base_model_name_or_path}"
            for c in configs.values()
            if c.base_model_name_or_path
        ],
    }
    settings: Any = getattr(model, "config", None)
    base = settings.to_dict().get("_name_or_path") if hasattr(settings, "to_dict") else None
    if base is not None:
        known["base_model"] = base
        known["tags"].append("transformers")
    known["tags"] += sorted({"lora" for c in configs.values() if c.kind == "LORA"})
    return known


def _read(head: str) -> dict[str, Any]:
    if importlib.util.find_spec("yaml") is None:
        raise MissingExtraError("pyyaml", "train")
    import yaml

    found = yaml.safe_load(head)
    return found if isinstance(found, dict) else {}


def _written(head: Mapping[str, Any]) -> str:
    """As YAML; what is written here alone, names and lists of names, needs no library."""
    if all(
        isinstance(v, str) or (isinstance(v, list) and all(isinstance(t, str) for t in v))
        for v in head.values()
    ):
        lines = []
        for key, value in head.items():
            lines += (
                [f"{key}: {_quoted(value)}"]
                if isinstance(value, str)
                else [f"{key}:" if value else f"{key}: []", *(f"- {_quoted(t)}" for t in value)]
            )
        return "".join(f"{line}\n" for line in lines)
    import yaml

    written: str = yaml.safe_dump(dict(head), sort_keys=False)
    return written


def _quoted(text: str) -> str:
    """In quotes, unless it is a plain word."""
    return (
        text
        if re.fullmatch(r"[A-Za-z][\w./-]*", text)
        and text.lower() not in ("yes", "no", "true", "false", "null", "on", "off")
        else "'" + text.replace("'", "''") + "'"
    )
