"""Every code block of the README, CONTRIBUTING and the documentation runs, in order, page by page."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import subprocess
import sys
import types
from pathlib import Path

import pytest
import transformers

from adaptome.cli import main
from adaptome.core import method

from .pages import SMALL, blocks, pages, small_model

PAGES = pages()
#: languages that are shown and not run
SHOWN = {"text", "yaml", "json", "toml"}


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder to write in, small models under the hub's names, and a registry that forgets what a page registers."""
    monkeypatch.chdir(tmp_path)
    for name in ("AutoModel", "AutoModelForCausalLM", "AutoModelForImageClassification", "AutoModelForSequenceClassification"):  # fmt: skip
        auto = getattr(transformers, name)
        monkeypatch.setattr(auto, "from_pretrained", small_or(auto.from_pretrained))
    method.list_methods()
    monkeypatch.setattr(method, "_REGISTRY", dict(method._REGISTRY))
    return tmp_path


def small_or(original):
    """`from_pretrained` that gives a small model for the names the pages use, and does as ever for others."""

    def from_pretrained(name, *args, **settings):
        if name in SMALL:
            return small_model(original.__self__, name, **settings)
        return original(name, *args, **settings)

    return from_pretrained


#: guides whose commands take long: whole comparisons and streams
LONG = ("compare.md", "continual.md", "advise.md")


@pytest.mark.parametrize(
    "page", [pytest.param(p, marks=pytest.mark.slow if str(p).endswith(LONG) else ()) for p in PAGES]
)
def test_code_blocks_run(page, workplace, monkeypatch):
    namespace = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", namespace)
    for block in blocks(PAGES[page]):
        if block.reason is not None:
            continue
        if block.language in SHOWN:
            write_if_named(block.code)
            continue
        where = f"{page}, line {block.line}"
        if block.language == "python":
            exec(compile("\n" * (block.line - 1) + block.code, page, "exec"), vars(namespace))
        elif block.language == "bash":
            run_commands(block.code, where)
        else:
            pytest.fail(
                f"{where}: a block of {block.language or 'no language'} is neither run nor known as shown only"
            )
    for name, value in list(vars(namespace).items()):
        if name.startswith("test_"):
            value()


def write_if_named(code: str) -> None:
    """A block that opens with a comment of one file name is that file, and the page goes on to use it."""
    if name := re.match(r"# ([\w-]+\.(?:yaml|json|toml))\n", code):
        Path(name[1]).write_text(code, encoding="utf-8")


def run_commands(code: str, where: str) -> None:
    """Run every line, each a command of ours, in the current folder."""
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        assert words[0] == "adaptome", (
            f"{where}: `{line}` is no adaptome command; mark the block <!-- not run: why -->"
        )
        said = io.StringIO()
        with (
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
            pytest.raises(SystemExit) as ended,
        ):
            main(words[1:])  # in this process: another one for each would spend most of its time importing
        assert not ended.value.code, f"{where}: `{line}` exited with {ended.value.code}\n{said.getvalue()}"


def test_the_blocks_of_a_page_are_all_found():
    text = "a\n```python\nx = 1\n```\n<!-- not run: slow -->\n```bash\nmake\n```\n1. item\n\n    ```python\n    y = 2\n    ```\n"
    first, second, third = blocks(text)
    assert (first.language, first.code, first.line, first.reason) == ("python", "x = 1\n", 3, None)
    assert (second.language, second.code, second.reason) == ("bash", "make\n", "slow")
    assert (third.code, third.line) == ("y = 2\n", 12)
    for page, content in PAGES.items():
        assert content.count("```") == 2 * len(blocks(content)), page


def test_a_new_method_is_found_by_its_file_alone(tmp_path):
    """CONTRIBUTING's worked example, as a file: attached, told by the command line and documented, with nothing else touched."""
    example = next(b for b in blocks(PAGES["CONTRIBUTING.md"]) if b.language == "python")
    (tmp_path / "half_lora.py").write_text(example.code, encoding="utf-8")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        f"import adaptome.methods; adaptome.methods.__path__.append({str(tmp_path)!r})\n"
        "import adaptome as ad\n"
        "assert ad.HalfLoRA.name == 'half-lora'\n"
        "from adaptome.cli import main\n"
        "main(['methods', 'half-lora'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Half LoRA: a low-rank update" in done.stdout
