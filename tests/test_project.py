"""The project's files agree with each other and with the code."""

from __future__ import annotations

import ast
import os
import re
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import adaptome

tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no TOML reader")
ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]


def requirements() -> list[Requirement]:
    """Every requirement, base and extras, but the extras of our own that they name."""
    lines = [*PROJECT["dependencies"], *(line for extra in EXTRAS.values() for line in extra)]
    return [r for r in map(Requirement, lines) if r.name != "adaptome"]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_version_is_said_once_and_the_same():
    assert PROJECT["version"] == adaptome.__version__


def test_constraints_are_exact_and_of_no_machine():
    """Names and plain versions: no address, no path, no build such as +cpu."""
    for name, version in pins().items():
        assert re.fullmatch(r"[A-Za-z0-9._-]+", name)
        assert re.fullmatch(r"[0-9][0-9A-Za-z.]*", version), f"{name}=={version}"


def test_the_lock_satisfies_every_requirement_that_make_installs():
    locked = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pins().items()}
    not_installed = {"wandb", "open-clip-torch"}  # optional, and in no group that `make` installs
    for requirement in requirements():
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if name in not_installed:
            continue
        assert name in locked, f"{name} is in no line of constraints.txt; run make lock"
        assert requirement.specifier.contains(locked[name]), f"{requirement} but {locked[name]} is locked"


def test_extras_that_extras_name_exist():
    for lines in EXTRAS.values():
        for requirement in map(Requirement, lines):
            if requirement.name == "adaptome":
                assert requirement.extras <= set(EXTRAS)


def test_errors_name_extras_that_exist():
    """`pip install 'adaptome[x]'` in a message must work."""
    named = set()
    for file in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id == "MissingExtraError"
            ):
                named |= {ast.literal_eval(a) for a in node.args[1:2] if isinstance(a, ast.Constant)}
        named |= set(re.findall(r"adaptome\[([a-z]+)\]", file.read_text(encoding="utf-8")))
    assert {"cli", "train"} <= named <= set(EXTRAS)


def test_the_base_needs_torch_and_safetensors_alone():
    needed = {Requirement(line).name for line in PROJECT["dependencies"]}
    assert needed - {"typing-extensions"} == {"torch", "safetensors"}  # torch needs that itself


def test_the_readme_sets_up_by_two_commands():
    block = re.search(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert [line.split("#")[0].strip() for line in block[1].splitlines()] == ["make quickstart", "make test"]


def test_makefile_targets_that_pages_name_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for page in ("README.md", "CONTRIBUTING.md", ".ci/run"):
        for line in re.findall(
            r"(?:^|`)make ((?:[a-z-]+ ?)+)", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE
        ):
            words = {word for word in line.split() if not word.startswith("--")}
            assert words <= targets, f"{page}: make {line}"


@pytest.mark.skipif(sys.platform == "win32", reason="no executable bits")
def test_the_check_of_the_server_can_be_run():
    assert (ROOT / ".ci" / "run").stat().st_mode & stat.S_IXUSR


def test_the_wheel_holds_the_package_whole_and_its_recipes_run_by_name(tmp_path):
    """Built from a copy, unpacked elsewhere, and asked from a folder that has nothing of ours."""
    pytest.importorskip("setuptools", minversion="77")
    source, unpacked = tmp_path / "source", tmp_path / "unpacked"
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    code = "from setuptools.build_meta import build_wheel; build_wheel('out')"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    with zipfile.ZipFile(next((source / "out").glob("adaptome-*.whl"))) as wheel:
        held = {name for name in wheel.namelist() if name.startswith("adaptome/")}
        wheel.extractall(unpacked)
    files = (path for path in (source / "src").rglob("*") if path.is_file())
    assert held == {str(path.relative_to(source / "src")) for path in files if ".egg-info" not in str(path)}
    code = (
        "import adaptome, sys; from adaptome.recipe import load_recipe, shipped_recipes\n"
        "assert adaptome.__file__.startswith(sys.argv[1]), adaptome.__file__\n"
        "print(*[name for name in shipped_recipes() if load_recipe(name, validate=False).title])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(unpacked)],
        cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(unpacked)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == {path.stem for path in (ROOT / "src").rglob("recipes/*/*.yaml")}
