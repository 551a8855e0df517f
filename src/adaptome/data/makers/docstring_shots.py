"""made:module-docstrings: docstrings of modules of the standard library that can be told in a sentence, with the module masked.

Columns text and label, as `made:docstrings`; the modules are named here, so that a recipe can describe them. Take few of each: `data.shots`.
"""

from __future__ import annotations

from adaptome.core.errors import DataError
from adaptome.data.makers import maker
from adaptome.data.splits import Table
from adaptome.data.stdlib_docstrings import docstring_task

MODULES = "asyncio decimal email http importlib inspect logging mailbox multiprocessing tarfile tkinter turtle unittest xml"


@maker("module-docstrings")
def module_docstrings(seed: int) -> dict[str, Table]:
    """200 docstrings at most of each of 14 modules; those that this Python comes without are left out."""
    task = docstring_task(labels=40)
    wanted = [name for name in MODULES.split() if name in task.labels]
    if len(wanted) < 2:
        raise DataError(
            "made:module-docstrings: this Python's standard library comes without the sources of its modules."
        )
    made = {}
    for name, examples in (("train", task.train), ("validation", task.validation), ("test", task.test)):
        rows = [(e.text, task.labels[e.label]) for e in examples if task.labels[e.label] in wanted]
        columns = {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
        made[name] = Table("made:module-docstrings", columns, range(len(rows)), "row", {})
    return made
