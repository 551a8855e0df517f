"""What `import adaptome` costs and brings in, and that its public names are what they say."""

import ast
import importlib
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


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_and_every_method_cost_little_over_torch():
    """The median of five processes, for the import and every public name; processor time, for the tests share the cores."""
    code = (
        "import time, torch\n"
        "start = time.process_time()\n"
        "import adaptome as ad\n"
        "[getattr(ad, name) for name in ad.__all__]\n"
        "print(time.process_time() - start)"
    )
    assert statistics.median(float(run(code)) for _ in range(5)) <= 0.15


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
