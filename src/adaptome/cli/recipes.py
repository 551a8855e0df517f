"""`adaptome recipes`: the recipes that come with adaptome, by the system they belong to."""

from __future__ import annotations

from typing import Annotated

import typer

from adaptome.cli._output import JsonOption, print_json, print_table

EXAMPLES = """Examples:

adaptome recipes

adaptome recipes gsm8k-lora

adaptome recipes gsm8k-lora > mine.yaml
"""


def register(app: typer.Typer) -> None:
    """Put the command on the application."""
    app.command("recipes", epilog=EXAMPLES)(recipes)


def recipes(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="One recipe, to print its file.", show_default=False)
    ] = None,
    json: JsonOption = False,
) -> None:
    """List the recipes that come with adaptome, or print one: to read, or to begin one's own with."""
    from adaptome.recipe import shipped_recipe, shipped_recipes
    from adaptome.recipe.systems import system_of

    if name is not None:
        found = shipped_recipe(name)
        if json:
            print_json({**found.about(), "text": found.text})
        else:
            print(found.text, end="")
        return
    known = [{**recipe.about(), "system": system_of(n)} for n, recipe in shipped_recipes().items()]
    known.sort(key=lambda r: (r["system"] is None, r["system"] or "", r["name"].endswith("-demo")))
    if json:
        print_json(known)
        return
    rows = [(r["name"], r["system"], r["task"], r["purpose"].rstrip(".")) for r in known]
    print_table(("recipe", "system", "task", "what it is for"), rows)
    print(
        "\n`adaptome train NAME` carries one out, `adaptome compare NAME` a study; `adaptome recipes NAME` prints its file."
    )
