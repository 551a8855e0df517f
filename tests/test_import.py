"""What `import adaptome` costs and brings in, and that its public names are what they say."""

import ast
import importlib
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import adaptome as ad

HEAVY = (
    "transformers",
    "datasets",
    "pydantic",
    "peft",
    "accelerate",
    "typer",
    "rich",
    "sklearn",
    "bitsandbytes",
    "torchao",
)


def run(code: str, **environment: str) -> str:
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**kept, **environment}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_and_every_method_cost_little_over_torch(tmp_path):
    """The median of five processes, for the import, every public name and every method; processor time, for the tests share the cores.

    From bytecode, as an installed package has it, and with torch's objects collected before: once in a while a full collection
    falls into what follows `import torch`, whatever that is, and takes 0.06 s.
    """
    code = (
        "import gc, time, torch\n"
        "gc.collect()\n"
        "start = time.process_time()\n"
        "import adaptome as ad\n"
        "[getattr(ad, name) for name in ad.__all__], ad.list_methods()\n"
        "print(time.process_time() - start)"
    )
    first, *others = (float(run(code, PYTHONPYCACHEPREFIX=str(tmp_path))) for _ in range(6))
    assert any(tmp_path.rglob("*.pyc")) and statistics.median(others) <= 0.15, (first, others)


def test_import_brings_in_nothing_heavier_than_torch():
    code = (
        "import sys, adaptome as ad\n"
        "[getattr(ad, name) for name in ad.__all__]; ad.list_methods()\n"
        f"print(*[name for name in {HEAVY} if name in sys.modules])"
    )
    assert run(code) == ""


@pytest.mark.parametrize("name", ad.__all__)
def test_every_public_name_is_there_and_documented(name):
    value = getattr(ad, name)
    assert value.__doc__, f"ad.{name} has no docstring"
    assert name in dir(ad)


def test_type_checkers_and_the_import_agree_on_where_names_live():
    tree = ast.parse(Path(ad.__file__).read_text(encoding="utf-8"))
    block = next(n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")
    typed = {alias.name: node.module for node in block.body for alias in node.names}
    assert typed == ad._HOME
    for name, module in typed.items():
        assert getattr(ad, name) is getattr(importlib.import_module(module), name)
    assert set(ad.__all__) == set(typed) | {"AdaptomeError", "errors"}


def test_a_misspelt_name_tells_the_nearest():
    with pytest.raises(AttributeError, match="Did you mean 'attach'"):
        ad.atach  # noqa: B018
    with pytest.raises(AttributeError, match="Did you mean 'LoRA'"):
        ad.LoRa  # noqa: B018


def test_methods_are_attributes_by_their_class_name():
    for cls in ad.list_methods().values():
        assert getattr(ad, cls.__name__) is cls
