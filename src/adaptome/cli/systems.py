"""`adaptome systems`: the systems of published papers, and what of each is here."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from adaptome.cli._output import JsonOption, print_json, print_table

EXAMPLES = """Examples:

adaptome systems

adaptome systems ast-petl

adaptome systems --json
"""


def register(app: typer.Typer) -> None:
    """Put the command on the application."""
    app.command("systems", epilog=EXAMPLES)(systems)


def systems(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="One system, to see all of it.", show_default=False)
    ] = None,
    json: JsonOption = False,
) -> None:
    """List the systems of papers: what each does, what runs here, and what it needs."""
    from adaptome.recipe.systems import get_system
    from adaptome.recipe.systems import systems as known

    if name is not None:
        told = get_system(name).about()
        if json:
            print_json(told)
        else:
            print_table(("", told["name"]), [(key, _words(value)) for key, value in told.items() if key != "name"])  # fmt: skip
        return
    rows = [system.about() for system in known().values()]
    if json:
        print_json(rows)
        return
    print_table(
        ("system", "what it does", "methods", "recipes", "demo"),
        [
            (r["name"], r["does"], _words(r["methods"]), _words(r["recipes"]), _words(r["demos"]))
            for r in rows
        ],
    )
    print(
        f"\n{len(rows)} systems; `adaptome systems NAME` tells what runs without network and what the paper's own data are."
    )


def _words(value: Any) -> str:
    return (", ".join(value) if isinstance(value, list) else str(value)) or "not yet"
