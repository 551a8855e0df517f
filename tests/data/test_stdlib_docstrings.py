"""The docstring task is the same on every run, leaks no name and no example, and reads sources only."""

import subprocess
import sys
import time
from collections import Counter

import pytest

from adaptome.core.errors import DataError
from adaptome.data.stdlib_docstrings import docstring_task, mask_name, split_of


def everything(task):
    return [*task.train, *task.validation, *task.test]


@pytest.fixture(scope="module")
def task():
    return docstring_task()


@pytest.fixture
def library(tmp_path):
    """Two modules and a private one, with every kind of docstring that must or must not be taken."""
    (tmp_path / "alpha").mkdir()
    (tmp_path / "alpha" / "__init__.py").write_text(
        'raise RuntimeError("imported")\n'
        "class Alpha:\n"
        '    """The Alpha keeps its alphas in alpha order."""\n'
        "    def run(self):\n"
        '        """Run   every\n        task in turn."""\n'
        "try:\n"
        "    async def wait():\n"
        '        """Wait until the loop is idle."""\n'
        "except ImportError: pass\n"
        "def same():\n"
        '    """Return the very same words here."""\n'
        "def short():\n"
        '    """Too short."""\n'
    )
    (tmp_path / "alpha" / "tests").mkdir()
    (tmp_path / "alpha" / "tests" / "t.py").write_text('def t():\n    """Tests are not taken at all."""\n')
    (tmp_path / "beta.py").write_text(
        'def same():\n    """Return the very same words here."""\n'
        'def twice():\n    """Do a thing that is done twice."""\n'
        'def again():\n    """DO a thing that is done Twice."""\n'
        'def long():\n    """' + "word " * 100 + '"""\n'
    )
    (tmp_path / "_private.py").write_text('def p():\n    """Private modules are not taken here."""\n')
    (tmp_path / "gamma.py").write_text("def broken(:\n")
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "other.py").write_text(
        'def o():\n    """Other packages are not taken here."""\n'
    )
    return tmp_path


def test_it_takes_functions_classes_and_methods_once_and_imports_nothing(library):
    task = docstring_task(labels=2, root=library)
    assert task.labels == ("alpha", "beta")
    assert {(e.label, e.origin, e.text) for e in everything(task)} == {
        (0, "alpha:Alpha", "The [MASK] keeps its [MASK]s in [MASK] order."),
        (0, "alpha:Alpha.run", "Run every task in turn."),
        (0, "alpha:wait", "Wait until the loop is idle."),
        (1, "beta:twice", "Do a thing that is done twice."),
        (1, "beta:long", "word " * 59 + "word"),
    }


def test_the_standard_library_gives_sixteen_labels_and_two_thousand_examples(task):
    counts = Counter(e.label for e in everything(task))
    assert len(task.labels) == 16 and sorted(counts) == list(range(16))
    assert (
        1500 <= len(everything(task)) <= 3200 and max(counts.values()) == 200 and min(counts.values()) >= 60
    )
    assert {"asyncio", "email", "tkinter"} & set(task.labels)
    assert not any(label.startswith("_") for label in task.labels)


def test_no_text_holds_the_name_of_its_module_or_stands_twice(task):
    for example in everything(task):
        assert task.labels[example.label] not in example.text.casefold()
    texts = [e.text.casefold() for e in everything(task)]
    assert len(texts) == len(set(texts))


def test_a_second_reading_is_equal_and_quick(task):
    seen, start = [], time.process_time()
    assert docstring_task(progress=lambda done, files: seen.append((done, files))) == task
    assert time.process_time() - start < 10  # about 1.5 s of processor time
    assert seen[-1][0] == seen[-1][1] == len(seen) > 300


def test_a_text_stays_in_its_split_whatever_else_is_taken(task):
    fewer = docstring_task(labels=5, per_label=50)
    assert {e.text for e in fewer.train} <= {e.text for e in docstring_task(labels=5, per_label=90).train}
    for split in ("train", "validation", "test"):
        assert {split_of(e.text) for e in getattr(task, split)} == {split}
    sizes = task.sizes()
    total = sizes["train"] + sizes["validation"] + sizes["test"]
    assert abs(sizes["test"] / total - 0.25) < 0.04 and abs(sizes["validation"] / total - 0.15) < 0.04


@pytest.mark.parametrize(
    ("text", "name", "masked"),
    [
        ("See tarfile.TarFile and TAR_FILE", "tarfile", "See [MASK].[MASK] and [MASK]"),
        ("a tar file of my-tar-files", "tarfile", "a [MASK] of my-[MASK]s"),
        ("HTTPServer speaks http", "http", "[MASK]Server speaks [MASK]"),
        ("x ml is not XMLParser", "xml", "x ml is not [MASK]Parser"),
        ("decimals of a Decimal", "decimal", "[MASK]s of a [MASK]"),
    ],
)
def test_names_are_masked_in_every_spelling(text, name, masked):
    assert mask_name(text, name) == masked


@pytest.mark.parametrize("labels", [1, 3])
def test_too_few_modules_name_the_folder_and_the_number_found(library, labels):
    with pytest.raises(DataError, match=f"labels={labels}.*{library.name} has 2") as error:
        docstring_task(labels=labels, root=library)
    assert "Ask for 2 to 2" in str(error.value)


def test_no_module_of_the_library_is_imported():
    code = (
        "import sys; from adaptome.data.stdlib_docstrings import docstring_task; before = set(sys.modules)\n"
        "task = docstring_task(); new = set(sys.modules) - before; assert not new & {'tkinter', 'turtle'}, new"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
