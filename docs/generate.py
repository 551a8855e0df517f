"""The computed parts of the documentation, from the registry and the command line's own definitions.

    python docs/generate.py           write the generated parts of the README
    python docs/generate.py --check   exit 1, with the difference, when they are out of date

The pages of the methods and of the commands are made in the build (hooks.py) and stand in no file.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import itertools
import json
import re
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import adaptome as ad
from adaptome.core.method import type_name
from adaptome.recipe.systems import System, systems

from figure import line_chart

ROOT = Path(__file__).resolve().parent.parent
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


# -- the README's table --------------------------------------------------------------------------------------------


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


def cell(text: str) -> str:
    """Text that a Markdown table can hold."""
    return " ".join(text.split()).replace("|", "\\|")


def fill(text: str, name: str, content: str) -> str:
    """`text` with what stands between the markers `name` replaced.

    Raises:
        ValueError: when the markers are not there.
    """
    begin, end = f"<!-- generated: {name} -->", "<!-- end -->"
    head, found, rest = text.partition(begin)
    _, closed, tail = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"no {begin} ... {end}")
    return f"{head}{begin}\n{content}\n{end}{tail}"


def readme(text: str) -> str:
    """The README with its generated parts made new."""
    return fill(fill(text, "methods", methods_table()), "systems", systems_table())


# -- the pages of the methods --------------------------------------------------------------------------------------


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


def paper_links(text: str) -> str:
    """arXiv numbers as links."""
    return re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


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


# -- the systems of papers -------------------------------------------------------------------------------------------


def systems_table() -> str:
    """A row for every system that has a recipe: paper, what it does, methods, recipes, and its demo's figure."""
    lines = ["| system | what it does | methods | recipes | demo |", "| --- | --- | --- | --- | --- |"]
    for system in systems().values():
        told = system.about()
        if told["state"] != "recipes":
            continue
        methods = ", ".join(f"[`{name}`]({source(ad.list_methods()[name])})" for name in told["methods"])
        recipes = ", ".join(f"[`{name}`]({recipe_file(name)})" for name in told["recipes"] + told["demos"])
        title = f"{system.title}, {paper_links(told['paper'])}"
        lines.append(
            f"| {title} | {cell(system.does)} | {methods} | {recipes} | {figure_of(told['demos'])} |"
        )
    return "\n".join(lines)


def recipe_file(name: str) -> str:
    """The file of a recipe, from the repository's root."""
    package = Path(ad.__file__).parent
    return f"src/adaptome/{next(package.glob(f'recipes/*/{name}.yaml')).relative_to(package).as_posix()}"


def figure_of(demos: list[str]) -> str:
    """What the demonstrations gave, and the command that printed it, where benchmarks/results/systems/<demo>.json has it.

    Such a file holds metric, values by seed and their mean, those of the frozen base and of something trivial, and the command.
    """
    told = []
    for demo in demos:
        stored = RESULTS / f"{demo}.json"
        if stored.is_file():
            found = json.loads(stored.read_text(encoding="utf-8"))
            beside = f"base {found['base']:.3f}, {found['trivial_is']} {found['trivial']:.3f}"
            told.append(f"{found['metric']} {found['value']:.3f} ({beside}): `{found['command']}`")
    return "<br>".join(told) or ("not measured" if demos else "-")


RESULTS = ROOT / "benchmarks/results/systems"


def systems_index() -> str:
    """The page that lists all systems, those that are not here yet as well."""
    rows = [system.about() for system in systems().values()]
    lines = ["| system | what it does | methods | state |", "| --- | --- | --- | --- |"]
    for r in rows:
        methods = ", ".join(f"[`{name}`](../methods/{name}.md)" for name in r["methods"])
        state = {"recipes": "recipes", "method": "the method", "not yet": "not yet"}[r["state"]]
        lines.append(f"| [{r['title']}]({r['name']}.md) | {cell(r['does'])} | {methods or '-'} | {state} |")
    lead = (
        "The systems of published papers, and what of each is here. `adaptome systems` prints the same list."
    )
    return "\n\n".join(["# Systems", lead, "\n".join(lines)]) + "\n"


def system_page(system: System) -> str:
    """One system: what it does, its parts, what runs without network, its own data, and its recipes as they are."""
    told = system.about()
    rows = {
        "paper": paper_links(told["paper"]),
        "methods": ", ".join(f"[`{name}`](../methods/{name}.md)" for name in told["methods"]) or "not yet",
        "task": ", ".join(f"`{name}`" for name in told["tasks"]) or "not yet",
        "recipes": ", ".join(f"`{name}`" for name in told["recipes"]) or "not yet",
        "demonstration": ", ".join(f"`{name}`" for name in told["demos"]) or "not yet",
        "runs without network": "<br>".join(f"`{command}`" for command in told["offline"]) or "not yet",
        "the paper's own data and weights": system.needs,
    }
    table = "\n".join(
        ["| | |", "| --- | --- |", *(f"| {key} | {cell(value)} |" for key, value in rows.items())]
    )
    does = system.does[0].upper() + system.does[1:]
    parts = [f"# {system.title}", f"{does}.", table]
    for name, recipe in system.recipes().items():
        parts += [f"## {name}", f"```yaml\n{recipe.text.rstrip()}\n```"]
    return "\n\n".join(parts) + "\n"


def objectives_list() -> str:
    """Every objective: its equation, its source, and its settings."""
    from adaptome.objectives.base import objectives

    parts = []
    for name, cls in objectives().items():
        head, _, rest = inspect.cleandoc(sys.modules[cls.__module__].__doc__ or "").partition("\n")
        parts += [f"### {name}", cell(head.partition(": ")[2][:1].upper() + head.partition(": ")[2][1:])]
        for paragraph in re.split(r"\n\s*\n", rest.strip("\n")):
            indented = all(line.startswith("  ") for line in paragraph.splitlines())
            parts.append(
                f"```text\n{inspect.cleandoc(paragraph)}\n```" if indented else paper_links(paragraph)
            )
        rows = [
            f"| `{key}` | `{'required' if f.is_required() else repr(f.default)}` | {cell(f.description or '')} |"
            for key, f in cls.Settings.model_fields.items()
        ]
        if rows:
            parts.append("\n".join(["| setting | default | meaning |", "| --- | --- | --- |", *rows]))
    return "\n\n".join(parts)


# -- parts of pages written by hand --------------------------------------------------------------------------------


def roles_table() -> str:
    """Every role that targets may name."""
    from adaptome.core.roles import ROLES

    return "\n".join(
        [
            "| role | selects |",
            "| --- | --- |",
            *(f"| `{name}` | {cell(text)} |" for name, text in ROLES.items()),
        ]
    )


def api() -> str:
    """Every public name: the verbs first, then the classes."""
    parts = []
    for title, classes in (("Functions", False), ("Classes", True)):
        names = [
            n for n in sorted(ad.__all__) if n != "errors" and inspect.isclass(getattr(ad, n)) is classes
        ]
        parts += [f"## {title}", *(f"::: adaptome.{name}" for name in names)]
    return "\n\n".join(parts)


def equivalents() -> str:
    """What the types of other libraries are here, a table each."""
    from adaptome.equivalents import LIBRARIES, LYCORIS, PEFT

    parts = []
    for title, kind, library in (
        (f"PEFT {PEFT}", "type", "peft"),
        (f"LyCORIS {LYCORIS}", "algorithm", "lycoris"),
    ):
        parts += [f"## {title}", ""]
        parts += [f"| {kind} | here | settings | notes |", "| --- | --- | --- | --- |"]
        for entry in LIBRARIES[library]:
            here = f"[`{entry.method}`](../methods/{entry.method}.md)" if entry.method else "none"
            settings = ", ".join(f"`{ours}={theirs}`" for ours, theirs in entry.settings.items())
            parts.append(f"| `{entry.type}` | {here} | {settings} | {cell(entry.note)} |")
        parts.append("")
    return "\n".join(parts).rstrip()


PARTS: dict[str, Callable[[], str]] = {
    "methods": methods_table,
    "roles": roles_table,
    "api": api,
    "equivalents": equivalents,
    "systems": systems_table,
    "objectives": objectives_list,
}


# -- the page of the architectures ---------------------------------------------------------------------------------


def architectures_page() -> str:
    """Which method works on which architecture, from what the sweep wrote."""
    stored = json.loads((ROOT / "benchmarks/results/architectures.json").read_text(encoding="utf-8"))
    rows = stored["classes"]
    run = {name: row for name, row in rows.items() if "" not in row["methods"]}
    methods = list(dict.fromkeys(method for row in run.values() for method in row["methods"]))
    versions = ", ".join(f"{name} {version}" for name, version in stored["versions"].items())
    faults = [(n, m, t) for n, row in run.items() for m, t in row["methods"].items() if t.startswith("fault")]
    parts = [
        "# Architectures",
        f"Tiny models of {len(rows)} classes of transformers that an `AutoModelFor...` makes, with default targets; {len(run)} of them "
        "run on made-up inputs. On each the adapted model starts as the base, a gradient reaches every adapter whose layer runs, merging "
        "changes nothing in the model's own output, and detaching gives the base's bits back. One class of every model type takes every "
        f"method here, the others LoRA. Written by `python benchmarks/architectures.py` with {versions}.",
        "✓ works; ✓* works where the made-up inputs reach (a model of images and text is run on text alone), or beside layers that the model itself "
        "gives no gradient; – refused with a reason; ✗ a fault; blank: not tried, or nothing it is on is run.",
    ]
    lines = [f"| class | {' | '.join(methods)} |", "| --- |" + " --- |" * len(methods)]
    for name, row in run.items():
        marks = [_mark(row["methods"].get(method, "")) for method in methods]
        lines.append(f"| {name} | {' | '.join(marks)} |")
    parts.append("\n".join(lines))
    if faults:
        table = [f"| {n} | `{m}` | {cell(t.removeprefix('fault: '))} |" for n, m, t in faults]
        parts += ["## Faults", "\n".join(["| class | method | what |", "| --- | --- | --- |", *table])]
    idle = [f"| {n} | {cell(row['methods'][''])} |" for n, row in rows.items() if "" in row["methods"]]
    parts += ["## Not run", "\n".join(["| class | why |", "| --- | --- |", *idle])]
    return "\n\n".join(parts) + "\n"


def _mark(text: str) -> str:
    if text.startswith("works"):
        return "✓*" if "," in text else "✓"
    return {"refused": "–", "fault": "✗"}.get(text.partition(":")[0], "")


# -- the pages of the commands -------------------------------------------------------------------------------------


def commands_page() -> str:
    """Every command with its arguments and options, from the application itself."""
    import click
    import typer

    from adaptome.cli._app import build

    group: Any = typer.main.get_command(build())
    parts = [
        "# Command line",
        "Exit codes: 0 done, 1 failed (the message on stderr; `--debug` shows where), 2 bad usage. "
        "Every command that reports takes `--json`.",
    ]
    for name, command in sorted(group.commands.items()):
        context = click.Context(command, info_name=f"adaptome {name}")
        usage = " ".join(["adaptome", name, *command.collect_usage_pieces(context)])
        rows = [
            f"| `{_flag(p)}` | {cell(getattr(p, 'help', '') or '')} |"
            for p in command.params
            if p.name != "help"
        ]
        parts += [f"## {name}", inspect.cleandoc(command.help or ""), f"```text\n{usage}\n```"]
        if rows:
            parts.append("\n".join(["| argument | meaning |", "| --- | --- |", *rows]))
    return "\n\n".join(parts) + "\n"


def _flag(parameter: Any) -> str:
    names = [*parameter.opts, *parameter.secondary_opts]
    return (
        ", ".join(names)
        if parameter.param_type_name == "option"
        else (parameter.metavar or parameter.name.upper())
    )


def main(arguments: list[str]) -> int:
    """Write or check the README; the exit code."""
    path = ROOT / "README.md"
    old = path.read_text(encoding="utf-8")
    new = readme(old)
    if "--check" not in arguments:
        path.write_text(new, encoding="utf-8")
        return 0
    if old != new:
        difference = difflib.unified_diff(
            old.splitlines(), new.splitlines(), "README.md", "generated", lineterm=""
        )
        print(
            "\n".join(difference), "\nREADME.md is out of date; run: make generate", file=sys.stderr, sep="\n"
        )
    return int(old != new)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
