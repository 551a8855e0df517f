"""The computed pages of the methods, and the table of them in the README."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
import re
import sys
import typing
from typing import Any

import torch
from cells import cell, paper_links
from torch import nn

import adaptome as ad
from adaptome.core.method import type_name

from figure import line_chart

#: the models whose counts a method's page tells: name, configuration class, its arguments
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama-3.2-1B": (
        "LlamaConfig",
        {
            "vocab_size": 128256,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "tie_word_embeddings": True,
        },
    ),
    "RoBERTa-base": (
        "RobertaConfig",
        {"vocab_size": 50265, "type_vocab_size": 1, "max_position_embeddings": 514},
    ),
    "ViT-B/16": ("ViTConfig", {}),
}
#: a model of every kind, for a method's example: the first kind that the method is for
EXAMPLES = {
    "LLM": ("AutoModel", "FacebookAI/roberta-base"),
    "VFM": ("AutoModelForImageClassification", "google/vit-base-patch16-224"),
    "VLM": ("AutoModel", "openai/clip-vit-base-patch32"),
}
Class = type[ad.Method]


def methods_table() -> str:
    """Every method in one line, its name linked to its file."""
    lines = ["| method | what it does | merge | as LoRA | paper |", "| --- | --- | --- | --- | --- |"]
    for name, cls in ad.list_methods().items():
        lines.append(
            f"| [`{name}`]({source(cls)}) | {tell(cls)} | {MERGE[cls.merge]} | {EXPORT[cls.export]} | {paper(cls)} |"
        )
    return "\n".join(lines)


MERGE = {"exact": "exact", "none": "stays an adapter"}
EXPORT = {"low-rank": "exact", "delta": "by SVD", "none": "no"}


def source(cls: Class) -> str:
    """The file a method is written in, from the repository's root."""
    return f"src/{cls.__module__.replace('.', '/')}.py"


def tell(cls: Class) -> str:
    """A method's summary without its name in front, for a table cell."""
    return cell(re.sub(r"^[\w+\-³ ]{1,40}: ", "", cls.summary()).rstrip("."))


def paper(cls: Class) -> str:
    """The source with its arXiv number as a link."""
    return re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", cell(cls.source)) or "-"


def methods_index() -> str:
    """The page that lists all methods by category."""
    parts = [
        "# Methods",
        "Every method of the registry. `adaptome methods` prints the same list; `ad.list_methods()` returns the classes.",
    ]
    by_category = itertools.groupby(
        sorted(ad.list_methods().values(), key=lambda c: (c.category, c.name)), lambda c: c.category
    )
    for category, classes in by_category:
        rows = [
            f"| [{c.__name__}]({c.name}.md) | `{c.name}` | {tell(c)} | {MERGE[c.merge]} |" for c in classes
        ]
        parts.append(
            f"## {category.capitalize()}\n\n| method | name | what it does | merge |\n| --- | --- | --- | --- |\n"
            + "\n".join(rows)
        )
    return "\n\n".join(parts) + "\n"


def method_page(cls: Class) -> str:
    """One method: what it is, an example, equation, options, counts, metadata and source."""
    auto, name = next(EXAMPLES[kind] for kind in cls.models if kind in EXAMPLES)
    example = (
        "import adaptome as ad\n"
        f"from transformers import {auto}\n\n"
        f'model = {auto}.from_pretrained("{name}")\n'
        f'print(ad.attach(model, "{cls.name}"))'
    )
    unrun = f"<!-- not run: it needs {cls.needs} -->\n" if cls.needs else ""
    parts = [
        f"# {cls.__name__}",
        cls.summary(),
        f"{unrun}```python\n{example}\n```",
        body(cls),
        "## Options",
        options(cls),
        "## Trainable parameters",
        counts(cls),
        "## About",
        about(cls),
        "## Source",
        f"The whole of `{source(cls)}`:",
        f"<!-- not run: the method's file -->\n```python\n{inspect.getsource(sys.modules[cls.__module__]).rstrip()}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def body(cls: Class) -> str:
    """The docstring after its first line: prose as prose, indented lines as they are, aligned entries as a table."""
    _, _, rest = inspect.cleandoc(cls.__doc__ or "").partition("\n")
    parts = []
    for paragraph in re.split(r"\n\s*\n", rest.strip("\n")):
        lines = paragraph.splitlines()
        if all(line.startswith("  ") for line in lines):
            parts.append("```text\n" + inspect.cleandoc(paragraph) + "\n```")
        elif re.match(r"[a-z][\w-]*( \w+)?\s{2,}\S", lines[0] if lines else ""):
            parts.append(_entries(lines))
        else:
            parts.append(paragraph)
    return "\n\n".join(parts)


def _entries(lines: list[str]) -> str:
    entries: list[list[str]] = []
    for line in lines:
        key, _, value = line.partition("  ")
        if line.startswith(" ") and entries:
            choice = re.match(r"'[\w-]+':", line.strip())  # 'gaussian': ... begins a line
            entries[-1][1] += ("<br>" if choice else " ") + line.strip()
        else:
            entries.append([key.strip(), value.strip()])
    rows = [f"| {key} | {cell(paper_links(value))} |" for key, value in entries]
    return "\n".join(["| | |", "| --- | --- |", *rows])


def options(cls: Class) -> str:
    """The settings: name, type, default, bounds and meaning."""
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    if not fields:
        return "None."
    hints = typing.get_type_hints(cls)
    words = {"at_least": "≥", "above": ">", "at_most": "≤", "below": "<", "choices": "one of"}
    lines = ["| name | type | default | admits | meaning |", "| --- | --- | --- | --- | --- |"]
    for field in fields:
        bounds = ", ".join(f"{words[k]} {field.metadata[k]}" for k in words if k in field.metadata)
        kind = cell(type_name(hints[field.name]))
        lines.append(
            f"| `{field.name}` | `{kind}` | `{field.default!r}` | {cell(bounds)} | {cell(field.metadata.get('help', ''))} |"
        )
    return "\n".join(lines)


@functools.cache
def _model(name: str) -> nn.Module:
    import transformers

    config, settings = MODELS[name]
    with torch.device("meta"):
        return transformers.AutoModel.from_config(getattr(transformers, config)(**settings))


def planned(cls: Class, model: str, **settings: Any) -> int | None:
    """Trainable numbers of the method on its own targets; None when the model has none of them."""
    try:
        return ad.plan(_model(model), cls, **settings).trainable
    except (ad.errors.TargetError, ad.errors.HostError):
        return None


def size_option(cls: Class) -> str | None:
    """The setting that decides how much trains: the first whole number whose doubling adds parameters."""
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        if isinstance(field.default, int) and not isinstance(field.default, bool) and field.default > 0:
            small, large = (_count_with(cls, field.name, field.default * k) for k in (1, 2))
            if small and large and large > small:
                return field.name
    return None


def _count_with(cls: Class, option: str, value: int) -> int | None:
    try:
        return planned(cls, next(iter(MODELS)), **{option: value})
    except ad.errors.MethodError:  # beyond the option's bounds, or at odds with another one
        return None


def counts(cls: Class) -> str:
    """Counts on real architectures with the default settings, and a figure over the setting that decides the size."""
    lines = ["| model | trainable | of all |", "| --- | --- | --- |"]
    for model in MODELS:
        count = planned(cls, model)
        total = sum(p.numel() for p in _model(model).parameters())
        shown = "none of its targets" if count is None else f"{count:,}"
        lines.append(
            f"| {model} | {shown} | {'' if count is None else f'{100 * count / (total + count):.3f} %'} |"
        )
    text = "With the default settings and targets, by formula, at the real sizes:\n\n" + "\n".join(lines)
    option = size_option(cls)
    if option is None:
        return text
    measured = {v: c for v in (1, 2, 4, 8, 16, 32, 64, 128, 256) if (c := _count_with(cls, option, v))}
    if len(measured) < 2:
        return text
    model = next(iter(MODELS))
    chart = line_chart(list(measured), list(measured.values()), option, f"trainable parameters on {model}")
    return f"{text}\n\nOn {model}, by `{option}`:\n\n{chart}"


def about(cls: Class) -> str:
    """The metadata that `adaptome methods --json` prints."""
    yes = {True: "yes", False: "no"}
    rows = {
        "name": f"`{cls.name}`",
        "family": ", ".join(filter(None, (cls.category, cls.subcategory))),
        "kinds of models": ", ".join(cls.models),
        "parts of the model": ", ".join(cls.located()),
        "merge": MERGE[cls.merge],
        "export as LoRA": EXPORT[cls.export],
        "starts as the base": yes[cls.identity_at_init],
        "cost at inference": cls.inference_overhead,
        "ways differ within a batch": yes[cls.per_sample_routing],
        "works on": ", ".join(cls.hosts) or "no layer",
        "quantised layers": yes[cls.admits_packed],
        "default targets": f"`{cls.default_targets}`",
        "paper": paper(cls),
    }
    return "\n".join(["| | |", "| --- | --- |", *(f"| {k} | {v} |" for k, v in rows.items())])
