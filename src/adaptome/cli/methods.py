"""`adaptome methods`: what can be attached."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from adaptome.cli._output import JsonOption, print_json, print_table

EXAMPLES = """Examples:

adaptome methods

adaptome methods dora

adaptome methods --json > methods.json

adaptome methods --peft     # what another library's method is called here
"""


def register(app: typer.Typer) -> None:
    """Put the command on the application."""
    app.command("methods", epilog=EXAMPLES)(methods)


def methods(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="One method, to see its settings and its equation.")
    ] = None,
    peft: Annotated[
        bool,
        typer.Option(
            "--peft", help="Show what PEFT's types and LyCORIS' algorithms are here, or why they are not."
        ),
    ] = False,
    json: JsonOption = False,
) -> None:
    """List the adaptation methods, or tell all about one."""
    from adaptome.core.method import list_methods, method_class

    if peft:
        _tell_equivalents(json)
    elif name is not None:
        cls = method_class(name)
        if json:
            print_json(cls.about())
        else:
            _tell(cls)
    else:
        _list([cls.about() for cls in list_methods().values()], json)


def _list(known: list[dict[str, Any]], json: bool) -> None:
    """All methods, a line each."""
    if json:
        print_json(known)
        return
    print_table(
        ("method", "family", "what it does", "merge", "as LoRA"),
        [
            (m["name"], m["subcategory"] or m["category"], _short(m["summary"]), m["merge"], m["export"])
            for m in known
        ],
    )
    print(f"\n{len(known)} methods; `adaptome methods NAME` tells all about one.")


def _tell_equivalents(json: bool) -> None:
    """The tables of other libraries' types."""
    from dataclasses import asdict

    from adaptome.equivalents import LIBRARIES, LYCORIS, PEFT

    if json:
        print_json({library: [asdict(entry) for entry in entries] for library, entries in LIBRARIES.items()})
        return
    for title, library in ((f"PEFT {PEFT}: type", "peft"), (f"LyCORIS {LYCORIS}: algorithm", "lycoris")):
        rows = []
        for entry in LIBRARIES[library]:
            settings = ", ".join(f"{ours}={theirs}" for ours, theirs in entry.settings.items())
            rows.append((entry.type, entry.method or "none", settings, entry.note))
        print_table((title, "here", "settings", "notes"), rows)
        print()


def _short(summary: str) -> str:
    """The summary without the method's name in front and the full stop behind."""
    before, colon, after = summary.partition(": ")
    return (after if colon and len(before) < 40 else summary).rstrip(".")


def _tell(cls: Any) -> None:
    import inspect

    about = cls.about()
    print(inspect.cleandoc(cls.__doc__ or ""), end="\n\n")
    keys = (
        "category",
        "models",
        "positions",
        "merge",
        "export",
        "identity_at_init",
        "inference_overhead",
        "per_sample_routing",
        "hosts",
        "admits_packed",
        "default_targets",
        "budget_solves",
    )
    print_table(("property", "value"), [(key.replace("_", " "), _words(about[key])) for key in keys])
    if about["options"]:
        rows = [(o["name"], o["type"], repr(o["default"]), o.get("help", "")) for o in about["options"]]
        print()
        print_table(("setting", "type", "default", "meaning"), rows)


def _words(value: Any) -> Any:
    return "nothing" if value is None else ", ".join(value) if isinstance(value, (list, tuple)) else value
