"""The computed pages of the reference: objectives, roles, names, other libraries' types, architectures, commands."""

from __future__ import annotations

import inspect
import json
import re
import sys
from typing import Any

from cells import ROOT, cell, paper_links

import adaptome as ad


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
