"""The computed pages of the systems, and the table of them in the README."""

from __future__ import annotations

import json
from pathlib import Path

from cells import ROOT, cell, paper_links
from method_pages import source

import adaptome as ad
from adaptome.recipe.systems import System, systems


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
