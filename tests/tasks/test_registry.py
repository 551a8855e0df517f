"""The registry of tasks."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest

from adaptome.core import parts
from adaptome.core.errors import RecipeError
from adaptome.tasks import TaskOptions, base, get_task, register_task, tasks


def test_the_five_tasks_are_there():
    known = {"audio-classification", "causal-lm", "image-classification", "text-classification"}
    assert known | {"token-classification"} <= set(tasks())


def test_every_task_describes_itself():
    for name, task in tasks().items():
        assert task.__doc__ and task.name == name
        for key, field in task.Options.model_fields.items():
            assert field.description, f"{name}.{key}"
        assert get_task(name).to_dict()["name"] == name


def test_another_package_registers_a_task(monkeypatch):
    class Options(TaskOptions):
        size: int = 3

    mine = type("Mine", (tasks()["causal-lm"],), {"Options": Options})
    point = SimpleNamespace(name="my-task", load=lambda: register_task("my-task")(mine))
    monkeypatch.setattr(base.TASKS, "_known", dict(base.TASKS.all()))
    monkeypatch.setattr(parts, "entry_points", lambda group: [point] if group == "adaptome.tasks" else [])
    assert isinstance(get_task("my-task", size=4), mine)
    with pytest.raises(RecipeError, match=r"unknown key 'task\.sise' for my-task\. Did you mean 'size'\?"):
        get_task("my-task", sise=4)


def test_listing_tasks_imports_no_model_library():
    code = (
        "import sys; from adaptome.tasks import tasks; tasks();"
        "print([m for m in ('transformers', 'trl', 'sklearn', 'PIL', 'soundfile', 'scipy') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
