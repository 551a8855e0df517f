"""The computed parts of the documentation, from the registry and the command line's own definitions.

    python docs/generate.py           write the generated parts of the README
    python docs/generate.py --check   exit 1, with the difference, when they are out of date

The pages of the methods and of the commands are made in the build (hooks.py) and stand in no file.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable

from cells import ROOT
from method_pages import MODELS as MODELS
from method_pages import body as body
from method_pages import method_page as method_page
from method_pages import methods_index as methods_index
from method_pages import methods_table
from method_pages import planned as planned
from method_pages import source as source
from reference_pages import api, equivalents, objectives_list, roles_table
from reference_pages import architectures_page as architectures_page
from reference_pages import commands_page as commands_page
from system_pages import system_page as system_page
from system_pages import systems_index as systems_index
from system_pages import systems_table

from adaptome.recipe.systems import systems as systems

PARTS: dict[str, Callable[[], str]] = {
    "methods": methods_table,
    "roles": roles_table,
    "api": api,
    "equivalents": equivalents,
    "systems": systems_table,
    "objectives": objectives_list,
}


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
